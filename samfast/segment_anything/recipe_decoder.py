"""A SamFast's decoder for the arguments of `SamPredictor`."""

from __future__ import annotations

import logging
from typing import Any

import torch
from torch import Tensor

from samfast.decoding.image_masks import upscale_masks
from samfast.device.retry import RetryOnOOM
from samfast.engine import FEWER_OBJECTS, SamFast
from samfast.masks.resize_geometry import ResizeGeometry
from samfast.model.sam import Sam
from samfast.types import PackedPrompts

_LOG = logging.getLogger("samfast")

_UNKNOWN_LABEL = -2
"""A point label for which every prompt encoder adds no learned vector, as for any but 1, 0, -1."""


class RecipeDecoder:
    """Decodes the prompts of one image as the recipe of a SamFast says."""

    def __init__(self, fast: SamFast) -> None:
        self.fast = fast
        self._logged: set[str] = set()

    @property
    def modules_unchanged(self) -> bool:
        """Whether no module of the prompt encoder or mask decoder was replaced or hooked."""
        model = self.fast.model
        return self.fast.decoder_modules.matches(model.prompt_encoder, model.mask_decoder)

    def decode(
        self,
        features: Any,
        coords: Tensor | None,
        labels: Tensor | None,
        boxes: Tensor | None,
        masks: Tensor | None,
        *,
        multimask: bool,
    ) -> tuple[Tensor, Tensor] | None:
        """Logits (P, M, 256, 256) and predicted IoU (P, M), both float32.

        None if the result could differ from that of the plain modules, which is logged once.
        Arguments are those of `SamPredictor.predict_torch`, and the features of the image.
        """
        reason = self._obstacle(features, coords, boxes, masks)
        if reason is not None:
            if reason not in self._logged:
                _LOG.info("SamPredictor decodes by the plain modules, not the recipe: %s", reason)
            self._logged.add(reason)
            return None
        count = next(len(each) for each in (coords, boxes, masks) if each is not None)
        if labels is not None:
            known = (labels == 1) | (labels == 0) | (labels == -1)
            labels = torch.where(known, labels, _UNKNOWN_LABEL).to(torch.int32)
        packed = PackedPrompts(
            None if coords is None else coords.to(torch.float32),
            labels,
            None if boxes is None else boxes.reshape(-1, 4).to(torch.float32),
            None if masks is None else masks.to(torch.float32).expand(count, -1, -1, -1),
            offsets=(0, count),
        )
        retry = RetryOnOOM(FEWER_OBJECTS)
        output = self.fast.decode(features, [packed], multimask=multimask, retry=retry)
        return output.low_res, output.iou

    @property
    def can_upscale(self) -> bool:
        """Whether no method of the model, such as `postprocess_masks`, was replaced."""
        return not is_overridden(self.fast.model, Sam)

    def upscale(
        self, low_res: Tensor, input_size: tuple[int, ...], original_size: tuple[int, ...]
    ) -> Tensor:
        """Logits (P, M, 256, 256) -> masks (P, M, H, W) bool, as SamFast upscales."""
        (h, w), (height, width) = input_size, original_size
        geometry = ResizeGeometry((h, w), (height, width), self.fast.image_size)
        threshold, retry = self.fast.model.mask_threshold, RetryOnOOM(FEWER_OBJECTS)
        return upscale_masks(low_res, (0, len(low_res)), [geometry], threshold, retry)[0]

    def _obstacle(
        self, features: Any, coords: Tensor | None, boxes: Tensor | None, masks: Tensor | None
    ) -> str | None:
        """The reason why the plain modules must decode, if there is one."""
        if not self.modules_unchanged:
            return "a module of the prompt encoder or mask decoder was replaced or hooked"
        if torch.is_grad_enabled():
            return "gradients are enabled"
        if not isinstance(features, Tensor) or features.dim() != 4 or len(features) != 1:
            return "the features are not those of one image"
        if coords is not None and coords.shape[1] == 0:
            return "objects without points are prompted by points"
        if coords is None and boxes is None and masks is None:
            return "there are no prompts"
        size = self.fast.model.prompt_encoder.mask_input_size
        if masks is not None and masks.shape[1:] != (1, *size):
            return "the mask prompts are not of the model's size"
        return None


def is_overridden(instance: object, expected: type) -> bool:
    """Whether the instance is of another class, or methods of that class were replaced in it."""
    methods = vars(expected)
    return type(instance) is not expected or any(callable(methods.get(n)) for n in vars(instance))
