"""`segment_anything` 1.0's modules, classes and functions by their own names, on samfast.

`samfast.install_as_segment_anything()` makes `import segment_anything` mean this package.
"""

from samfast.segment_anything.automatic_mask_generator import SamAutomaticMaskGenerator
from samfast.segment_anything.build_sam import (
    build_sam,
    build_sam_vit_b,
    build_sam_vit_h,
    build_sam_vit_l,
    build_sam_vit_xs,
    sam_model_fast_registry,
    sam_model_registry,
)
from samfast.segment_anything.predictor import SamPredictor

__all__ = [
    "SamAutomaticMaskGenerator",
    "SamPredictor",
    "build_sam",
    "build_sam_vit_b",
    "build_sam_vit_h",
    "build_sam_vit_l",
    "build_sam_vit_xs",
    "sam_model_fast_registry",
    "sam_model_registry",
]
