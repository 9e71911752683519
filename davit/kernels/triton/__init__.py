"""Triton kernels for CUDA, which `davit.kernels.ops` calls."""
