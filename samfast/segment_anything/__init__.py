"""The modules, classes and functions of `segment_anything` 1.0 under the same names.

After `samfast.install_as_segment_anything()`, `import segment_anything` imports this package. Like
the original's modules, these also give access to names that they import from one another.
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
