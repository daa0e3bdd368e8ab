"""As `segment_anything.utils`."""
