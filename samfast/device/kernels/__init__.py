"""Parts of Triton kernels that several stages share; importing a module here imports triton."""
