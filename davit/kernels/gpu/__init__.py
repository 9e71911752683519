"""Triton kernels for CUDA, forward and backward, each a custom operator beside the plain formula that it must equal.

The operators are opaque to compilers (`torch.library.custom_op`): a graph of torch.compile or torch.export has them as
single nodes, and what runs there is what runs in eager mode. On a device without Triton they run the plain formula, so
that a program exported on CUDA still computes where there is none.
"""
