"""As `segment_anything.utils.transforms`."""

from samfast.transforms import ResizeLongestSide

__all__ = ["ResizeLongestSide"]
