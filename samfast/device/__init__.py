"""What any stage needs of a device: memory, copies, threads, CUDA graphs, kernels. No masks, no
prompts, no model.
"""
