"""The image encoder as a recipe runs it: plain, fused, compiled, as a CUDA graph."""
