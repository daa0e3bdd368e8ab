"""Kernels; importing a module here imports triton, but for CUDA C++."""
