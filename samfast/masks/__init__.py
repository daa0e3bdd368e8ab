"""Low-resolution logits -> masks of the original size, scored, without duplicates, encoded."""
