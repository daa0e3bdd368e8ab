"""As `segment_anything.predictor`."""

from samfast.model.sam import Sam
from samfast.predictor import SamPredictor
from samfast.transforms import ResizeLongestSide

__all__ = ["ResizeLongestSide", "Sam", "SamPredictor"]
