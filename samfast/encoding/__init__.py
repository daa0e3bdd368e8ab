"""The image encoder: plain, fused, compiled, as CUDA graphs."""
