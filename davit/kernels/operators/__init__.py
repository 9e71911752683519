"""Custom operators of PyTorch, forward and backward, each beside the plain formula that it must equal (a whole block
has its modules for that).

They are opaque to compilers (`torch.library.custom_op`): a graph of torch.compile or torch.export has them as single
nodes, and what runs there is what runs in eager mode: Triton on CUDA, native.cpp on the CPU, and the plain formula
where there is neither, so that a program exported on CUDA still computes there.
"""
