"""As `segment_anything.modeling`."""

from samfast.segment_anything.modeling import common
from samfast.segment_anything.modeling.image_encoder import ImageEncoderViT
from samfast.segment_anything.modeling.mask_decoder import MaskDecoder
from samfast.segment_anything.modeling.prompt_encoder import PromptEncoder
from samfast.segment_anything.modeling.sam import Sam
from samfast.segment_anything.modeling.transformer import TwoWayTransformer

__all__ = ["ImageEncoderViT", "MaskDecoder", "PromptEncoder", "Sam", "TwoWayTransformer", "common"]
