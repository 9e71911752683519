"""Compute blocks on the CPU: by oneDNN and by the compiled functions of native.cpp."""
