"""As `segment_anything.modeling.sam`."""

from samfast.dropin.modeling.image_encoder import ImageEncoderViT
from samfast.dropin.modeling.mask_decoder import MaskDecoder
from samfast.dropin.modeling.prompt_encoder import PromptEncoder
from samfast.model.sam import Sam

__all__ = ["ImageEncoderViT", "MaskDecoder", "PromptEncoder", "Sam"]
