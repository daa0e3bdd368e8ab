"""Triton kernels. Importing a module here imports triton; `samfast.attention.op` does so when first called."""
