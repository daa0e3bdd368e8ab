"""Masks of the prompted objects of many images, as a stream in which all stages overlap."""
