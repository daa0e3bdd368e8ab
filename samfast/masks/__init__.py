"""Low-resolution logits to masks of the original size: measured, deduplicated, encoded."""
