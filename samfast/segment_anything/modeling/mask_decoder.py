"""As `segment_anything.modeling.mask_decoder`."""

from samfast.model.layers import MLP, LayerNorm2d
from samfast.model.mask_decoder import MaskDecoder

__all__ = ["MLP", "LayerNorm2d", "MaskDecoder"]
