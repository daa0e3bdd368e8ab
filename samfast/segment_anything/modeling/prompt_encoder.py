"""As `segment_anything.modeling.prompt_encoder`."""

from samfast.model.layers import LayerNorm2d
from samfast.model.prompt_encoder import PositionEmbeddingRandom, PromptEncoder

__all__ = ["LayerNorm2d", "PositionEmbeddingRandom", "PromptEncoder"]
