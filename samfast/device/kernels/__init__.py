"""Pieces that the Triton kernels of several stages share. Importing a module here imports
triton.
"""
