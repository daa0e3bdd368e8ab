"""Triton kernels. Importing a module here imports triton; `samfast.attention.custom_op` does so
when first called.
"""
