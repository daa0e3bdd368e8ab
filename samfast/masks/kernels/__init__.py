"""Triton kernels. Importing a module here imports triton; `samfast.masks` does so when first called
on a GPU.
"""
