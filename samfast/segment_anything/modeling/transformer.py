"""As `segment_anything.modeling.transformer`."""

from samfast.model.layers import MLPBlock
from samfast.model.transformer import Attention, TwoWayAttentionBlock, TwoWayTransformer

__all__ = ["Attention", "MLPBlock", "TwoWayAttentionBlock", "TwoWayTransformer"]
