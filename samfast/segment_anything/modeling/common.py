"""As `segment_anything.modeling.common`."""

from samfast.model.layers import LayerNorm2d, MLPBlock

__all__ = ["LayerNorm2d", "MLPBlock"]
