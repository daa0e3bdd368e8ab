"""As `segment_anything.modeling.sam`."""

from samfast.model.sam import Sam
from samfast.segment_anything.modeling.image_encoder import ImageEncoderViT
from samfast.segment_anything.modeling.mask_decoder import MaskDecoder
from samfast.segment_anything.modeling.prompt_encoder import PromptEncoder

__all__ = ["ImageEncoderViT", "MaskDecoder", "PromptEncoder", "Sam"]
