"""As `segment_anything.modeling`."""

from samfast.dropin.modeling import common
from samfast.dropin.modeling.image_encoder import ImageEncoderViT
from samfast.dropin.modeling.mask_decoder import MaskDecoder
from samfast.dropin.modeling.prompt_encoder import PromptEncoder
from samfast.dropin.modeling.sam import Sam
from samfast.dropin.modeling.transformer import TwoWayTransformer

__all__ = ["ImageEncoderViT", "MaskDecoder", "PromptEncoder", "Sam", "TwoWayTransformer", "common"]
