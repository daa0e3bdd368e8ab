"""The decoder's passes over an image as operations of PyTorch: `samfast::from_image`, `to_image`,
`upscaling`.

On a GPU in 16 bits they are Triton kernels, elsewhere their reference in plain torch, whose
docstrings say the arguments. In float32 on a GPU the kernels' answers have been seen to change from
run to run (Triton 3.6, small images), so there the reference runs as well.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from samfast.decoding import decoder_reference as reference
from samfast.device.triton_support import need_triton


@dataclass(frozen=True)
class DecoderOperations:
    """Callables as those of `samfast.decoding.decoder_reference`, their tuples written out.

    from_image  (queries, keys, position, source_of, scale) -> answers
    to_image    (keys, position, source_of, mixed, shift, values, bias, norm weight, norm bias, eps,
                scale) -> keys
    to_image_   the same in place: image i is object i's and becomes its answer
    upscaling   (keys, source_of, height, width, wide, its bias, norm weight, norm bias, eps,
                narrow, its bias, kernels, wanted) -> logits
    """

    from_image: Callable[[Tensor, Tensor, Tensor, Tensor, float], Tensor]
    to_image: Callable[
        [Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, float, float],
        Tensor,
    ]
    to_image_: Callable[
        [Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, float, float], None
    ]
    upscaling: Callable[
        [
            Tensor,
            Tensor,
            int,
            int,
            Tensor,
            Tensor,
            Tensor,
            Tensor,
            float,
            Tensor,
            Tensor,
            Tensor,
            Tensor | None,
        ],
        Tensor,
    ]


_made: DecoderOperations | None = None


def decoder_operations() -> DecoderOperations:
    """The operations; registered with PyTorch when first asked for."""
    global _made  # not functools.cache, through which torch.compile would trace
    if _made is None:
        _made = _register()
    return _made


def _has_kernels(keys: Tensor) -> bool:
    return keys.device.type == "cuda" and keys.dtype != torch.float32


def _register() -> DecoderOperations:

    @torch.library.custom_op("samfast::from_image", mutates_args=())
    def from_image(
        queries: Tensor, keys: Tensor, position: Tensor, source_of: Tensor, scale: float
    ) -> Tensor:
        if not _has_kernels(keys):
            return reference.from_image(queries, keys, position, source_of, scale)
        need_triton("a fused recipe")
        from samfast.decoding.kernels.token_to_image import launch

        return launch(queries, keys, position, source_of, scale)

    from_image.register_fake(lambda queries, *rest: torch.empty_like(queries))

    @torch.library.custom_op("samfast::to_image", mutates_args=())
    def to_image(
        keys: Tensor,
        position: Tensor,
        source_of: Tensor,
        mixed: Tensor,
        shift: Tensor,
        values: Tensor,
        bias: Tensor,
        weight: Tensor,
        norm_bias: Tensor,
        eps: float,
        scale: float,
    ) -> Tensor:
        norm = (weight, norm_bias, eps)
        if not _has_kernels(keys):
            return reference.to_image(
                keys, position, source_of, mixed, shift, values, bias, norm, scale
            )
        need_triton("a fused recipe")
        from samfast.decoding.kernels.image_to_token import launch

        return launch(keys, position, source_of, mixed, shift, values, bias, norm, scale)

    to_image.register_fake(
        lambda keys, position, source_of, mixed, *rest: keys.new_empty(
            mixed.shape[1], *keys.shape[1:]
        )
    )

    @torch.library.custom_op("samfast::to_image_", mutates_args={"keys"})
    def to_image_(
        keys: Tensor,
        position: Tensor,
        source_of: Tensor,
        mixed: Tensor,
        shift: Tensor,
        values: Tensor,
        bias: Tensor,
        weight: Tensor,
        norm_bias: Tensor,
        eps: float,
        scale: float,
    ) -> None:
        norm = (weight, norm_bias, eps)
        if not _has_kernels(keys):
            keys.copy_(
                reference.to_image(
                    keys, position, source_of, mixed, shift, values, bias, norm, scale
                )
            )
            return
        need_triton("a fused recipe")
        from samfast.decoding.kernels.image_to_token import launch

        launch(keys, position, source_of, mixed, shift, values, bias, norm, scale, out=keys)

    to_image_.register_fake(lambda *given: None)

    @torch.library.custom_op("samfast::upscaling", mutates_args=())
    def upscaling(
        keys: Tensor,
        source_of: Tensor,
        height: int,
        width: int,
        wide: Tensor,
        wide_bias: Tensor,
        weight: Tensor,
        norm_bias: Tensor,
        eps: float,
        keep_dtype: Tensor,
        narrow_bias: Tensor,
        kernels: Tensor,
        wanted: Tensor | None,
    ) -> Tensor:
        layers = ((wide, wide_bias), (weight, norm_bias, eps), (keep_dtype, narrow_bias))
        if not _has_kernels(keys):
            return reference.upscaling(keys, source_of, (height, width), *layers, kernels, wanted)
        need_triton("a fused recipe")
        from samfast.decoding.kernels.upscaling import launch

        return launch(keys, source_of, (height, width), *layers, kernels, wanted)

    upscaling.register_fake(
        lambda keys, source_of, height, width, *rest: keys.new_empty(
            *rest[-2].shape[:2], 4 * height, 4 * width
        )
    )

    made: dict[str, Any] = {
        "from_image": from_image,
        "to_image": to_image,
        "to_image_": to_image_,
        "upscaling": upscaling,
    }
    return DecoderOperations(**made)
