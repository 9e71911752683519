"""Kernels for CUDA in Triton. `davit.kernels.operators` calls them."""
