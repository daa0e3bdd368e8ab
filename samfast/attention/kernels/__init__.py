"""Triton kernels; importing a module here imports triton, but for `tunables`."""
