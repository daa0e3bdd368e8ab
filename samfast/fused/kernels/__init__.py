"""Triton kernels. Importing a module here imports triton; `samfast.fused.op` does so when first called on a GPU."""
