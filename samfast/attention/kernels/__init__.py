"""Kernels; importing a module here imports triton, but for `tunables` and CUDA C++."""
