"""Provide the Triton kernels for CUDA that `davit.kernels.ops` calls."""
