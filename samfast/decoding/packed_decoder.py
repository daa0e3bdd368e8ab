"""Prompts of all images as one flat batch, decoded in parts; in few sizes where these are CUDA
graphs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from samfast.decoding.decoder_output import DecoderOutput, at_a_time
from samfast.decoding.skip_low_iou import skip_low_iou
from samfast.device.cuda_graphs import Recorder
from samfast.device.retry import RetryOnOOM
from samfast.device.transfer import upload
from samfast.model.mask_decoder import MaskDecoder
from samfast.model.sam import Sam
from samfast.prompts import device_checks
from samfast.prompts.flat_prompts import Flat
from samfast.prompts.prompt_buffer import PromptLayout, sources_of, token_mask

SOURCES_AT_A_TIME = 64
"""Images that objects of one call may be of: with their keys, 4 MiB each in half precision."""

GRAPHS_KEPT = 32
"""A graph itself is small; what they all work in is shared."""

TOKENS = (2, 3, 4, 6, 8, 12, 16)
"""Sizes to which an object's prompt tokens are filled up for a graph; beyond, powers of two."""


class DecodeObjects(Protocol):
    """A mask decoder on objects of several sources; `samfast.decoding.fused_decoder.FusedDecoder`
    is one.
    """

    def __call__(
        self,
        keys: Tensor,
        position: Tensor,
        source_of: Tensor,
        sparse: Tensor,
        token_mask: Tensor | None,
        multimask: bool,
        least_iou: float | Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Low-resolution logits (P, M, 4 * h, 4 * w) and predicted IoU (P, M).

        keys        (Q, C, h, w): of each source, the image's embedding plus the dense prompt's
        position    (1, C, h, w): the dense positional encoding
        source_of   (P,) int64
        sparse      (P, T, C);  token_mask (P, T) bool, False for padding, or None
        least_iou   where none of an object's masks is predicted a higher IoU, its logits may be
                    zeros; a number, or one on the device
        """


class EmbedPrompts(Protocol):
    """A prompt encoder: SAM's own, or `samfast.decoding.fused_prompt_encoder.FusedPrompts`."""

    def __call__(
        self, points: tuple[Tensor, Tensor] | None, boxes: Tensor | None, masks: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """As `PromptEncoder.forward`."""

    def get_dense_pe(self) -> Tensor:
        """As `PromptEncoder.get_dense_pe`."""


class PlainDecoder(nn.Module):
    """The plain mask decoder as `DecodeObjects`: each object gets its source's keys, copied unless
    all share them.
    """

    def __init__(self, decoder: MaskDecoder) -> None:
        super().__init__()
        self.decoder = decoder

    def forward(
        self,
        keys: Tensor,
        position: Tensor,
        source_of: Tensor,
        sparse: Tensor,
        token_mask: Tensor | None,
        multimask: bool,
        least_iou: float | Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """As `DecodeObjects`; with least_iou a GPU is waited for."""
        nothing = keys.new_zeros(1, 1, 1, 1).expand(
            len(sparse), *keys.shape[1:]
        )  # keys have the dense prompt
        decode: Callable[..., tuple[Tensor, Tensor]] = self.decoder
        if least_iou is not None and type(self.decoder) is MaskDecoder:
            decode = partial(skip_low_iou, self.decoder, least_iou=least_iou)
        return decode(
            image_embeddings=keys if len(keys) == 1 else keys[source_of],
            image_pe=position,
            sparse_prompt_embeddings=sparse,
            dense_prompt_embeddings=nothing,
            multimask_output=multimask,
            token_mask=token_mask,
        )


@dataclass(frozen=True)
class _Part:
    """Some objects that are decoded together: start:stop of the flat tensors.

    sources  how many there are, at most
    range    the images that they are, if these follow each other and the host knows
    """

    start: int
    stop: int
    layout: PromptLayout
    words: Tensor
    masks: Tensor | None
    sources: int
    range: slice | None


class _Static(NamedTuple):
    """What a graph reads."""

    words: Tensor
    features: Tensor
    masks: Tensor | None
    least_iou: Tensor | None


class Packed:
    """Decodes flat batches.

    decode  the mask decoder, on objects of several sources
    graphs  records and replays; None: everything is called, without padding
    embed   the prompt encoder; None: the model's

    With graphs, objects, sources and tokens are filled up to few sizes, so that whatever is asked
    runs through few graphs. What fills up has its own rows and tokens, and its tokens are masked:
    it changes nobody's answer.
    """

    def __init__(
        self,
        sam: Sam,
        decode: DecodeObjects,
        graphs: Recorder | None = None,
        embed: EmbedPrompts | None = None,
    ) -> None:
        self._sam = sam
        self._embed = embed or sam.prompt_encoder
        self._device = sam.device  # graphs are of it, wherever the model is moved later
        self.decode = decode
        self.graphs = graphs
        self._heeds = self._device.type == "cpu" or not isinstance(decode, PlainDecoder)
        self._buffers: dict[tuple[object, ...], Tensor] = {}

    def __call__(
        self,
        features: Tensor,
        flats: Sequence[Flat],
        multimask: bool,
        halving: RetryOnOOM,
        keep_dtype: bool = False,
        least_iou: float | None = None,
    ) -> list[DecoderOutput]:
        """Answers for each flat batch; features (B, C, h, w) are of all images. Under
        `inference_modes`.

        least_iou  as `Decoder` has it; heeded on a CPU and by a fused decoder: others would wait
                   for a GPU
        """
        least_iou = least_iou if self._heeds else None
        features = features.to(self._sam.mask_decoder.iou_token.weight.dtype)
        answers = [
            halving.whole(
                partial(
                    DecoderOutput.empty, self._sam, flat.count, multimask, self._device, keep_dtype
                )
            )
            for flat in flats
        ]
        parts = [
            (answer, flat, part)
            for answer, flat in zip(answers, flats, strict=True)
            for part in self._parts(flat)
        ]
        step = max((part.stop - part.start for _, _, part in parts), default=0)
        words = self._upload([part.words for _, _, part in parts])
        for (answer, flat, part), own in zip(parts, words, strict=True):
            work = partial(self._answer, flat, part, own, features, multimask, least_iou, answer)
            halving.over(part.start, part.stop, step, work)
        return answers

    def _answer(
        self,
        flat: Flat,
        part: _Part,
        words: Tensor,
        features: Tensor,
        multimask: bool,
        least_iou: float | None,
        answer: DecoderOutput,
        start: int,
        stop: int,
    ) -> None:
        """A part, or some of its objects."""
        if (start, stop) != (part.start, part.stop):
            part = self._part(flat, flat.image_of, start, stop)
            (words,) = self._upload([part.words])
        try:
            if self.graphs is None:
                self._call(part, words, features, multimask, least_iou, answer)
            else:
                self._replay(self.graphs, part, words, features, multimask, least_iou, answer)
        except torch.OutOfMemoryError:
            self._buffers.clear()  # those that a graph reads or writes, it keeps itself
            raise

    def _parts(self, flat: Flat) -> Iterator[_Part]:
        image_of = flat.image_of
        for start, stop in self._bounds(flat, image_of):
            yield self._part(flat, image_of, start, stop)

    def _part(self, flat: Flat, image_of: Tensor, start: int, stop: int) -> _Part:
        own = image_of[start:stop]
        coords, labels = flat.points(start, stop)
        boxes = None if flat.boxes is None else flat.boxes[start:stop]
        masks = None if flat.masks is None else flat.masks[start:stop]
        sources, images = min(len(flat.images), stop - start), None
        if flat.on_host:
            sources = int(sources_of(own)[-1]) + 1
            images = _following(own.numpy(), sources)
        layout = PromptLayout(
            objects=stop - start,
            sources=sources,
            points=0 if coords is None else coords.shape[1],
            boxes=boxes is not None,
            masks=masks is not None,
            padded=flat.padded(labels),
        )
        if self.graphs is not None:
            layout = filled_up(layout)
        words = layout.write(coords, labels, boxes, own)
        return _Part(start, stop, layout, words, masks, sources, images)

    def _bounds(self, flat: Flat, image_of: Tensor) -> Iterator[tuple[int, int]]:
        step, start = at_a_time(self._device), 0
        ranks = sources_of(image_of).numpy() if flat.on_host else None
        if ranks is None and len(flat.images) > SOURCES_AT_A_TIME:
            step = min(step, SOURCES_AT_A_TIME)
        while start < flat.count:
            stop = min(start + step, flat.count)
            if ranks is not None:
                stop = min(stop, int(ranks.searchsorted(ranks[start] + SOURCES_AT_A_TIME)))
            yield start, stop
            start = stop

    def _upload(self, words: list[Tensor]) -> list[Tensor]:
        """Each part's words on the device; what is on the host goes there in one copy."""
        device = self._device
        here = [own for own in words if own.device.type == "cpu"]
        if device.type == "cpu" or not here:
            return words
        to_device = iter(torch.split(upload(torch.cat(here), device), [len(own) for own in here]))
        return [next(to_device) if own.device.type == "cpu" else own for own in words]

    def _call(
        self,
        part: _Part,
        words: Tensor,
        features: Tensor,
        multimask: bool,
        least_iou: float | None,
        answer: DecoderOutput,
    ) -> None:
        if part.range is not None:
            features = features[part.range]
        else:
            features = features.index_select(0, part.layout.views(words).sources)
        masks = None if part.masks is None else upload(part.masks, self._device)
        answer.put(
            part.start, *self._run(part.layout, words, features, masks, multimask, least_iou)
        )

    def _replay(
        self,
        graphs: Recorder,
        part: _Part,
        words: Tensor,
        features: Tensor,
        multimask: bool,
        least_iou: float | None,
        answer: DecoderOutput,
    ) -> None:
        layout = part.layout
        masks = None if part.masks is None else upload(part.masks, self._device)

        def static() -> _Static:
            own = torch.zeros_like(words)
            # Channels last, as the fused encoder leaves them and the fused decoder reads them.
            size = (layout.sources, *features.shape[2:], features.shape[1])
            images = self._buffer("features", size, features.dtype).permute(0, 3, 1, 2)
            size = (layout.objects, 1, *self._sam.prompt_encoder.mask_input_size)
            given = self._buffer("masks", size, torch.float32) if layout.masks else None
            least = None if least_iou is None else self._buffer("least_iou", (), torch.float32)
            return _Static(own, images, given, least)

        def fill(into: _Static) -> None:
            into.words.copy_(words)
            if part.range is not None:
                into.features[: part.sources].copy_(features[part.range])
            else:
                sources = layout.views(words).sources[: part.sources]
                last = (0, 2, 3, 1)
                out = into.features[: part.sources].permute(last)
                torch.index_select(features.permute(last), 0, sources, out=out)
            if into.masks is not None and masks is not None:
                into.masks[: len(masks)].copy_(masks)
            if into.least_iou is not None and least_iou is not None:
                into.least_iou.fill_(least_iou)

        def run(given: _Static) -> list[Tensor]:
            out = self._run(
                layout, given.words, given.features, given.masks, multimask, given.least_iou
            )
            # Into tensors that all graphs share: what is left of a recording would be memory of its
            # own.
            return [
                self._buffer(name, tuple(x.shape), x.dtype).copy_(x)
                for name, x in zip(("low_res", "iou", "codes"), out, strict=True)
            ]

        count = part.stop - part.start
        graphs(
            (layout, multimask, least_iou is not None, tuple(features.shape[1:])),
            static,
            fill,
            run,
            lambda out: answer.put(part.start, *(x[:count] for x in out)),
        )

    def _run(
        self,
        layout: PromptLayout,
        words: Tensor,
        features: Tensor,
        masks: Tensor | None,
        multimask: bool,
        least_iou: float | Tensor | None = None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Logits, IoU and codes of faults for objects laid out so; features (Q, C, h, w) of their
        sources.
        """
        coords, labels, boxes, source, _ = layout.views(words)
        points = None if coords is None or labels is None else (coords, labels)
        sparse, dense = self._embed(points, boxes, masks)
        source_of = source.long()
        if masks is None:
            keys = features + dense[:1]  # the same for every object
        else:
            keys = features[source_of] + dense
            source_of = torch.arange(layout.objects, device=source.device)
        real = token_mask(labels, layout.boxes) if labels is not None and layout.padded else None
        given = keys, self._embed.get_dense_pe(), source_of, sparse, real, multimask
        low_res, iou = self.decode(*given) if least_iou is None else self.decode(*given, least_iou)
        return low_res, iou, device_checks.non_finite(low_res, iou)

    def _buffer(self, name: str, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        """A tensor of that name, shape and dtype, the same one each time."""
        key = (name, shape, dtype)
        if key not in self._buffers:
            self._buffers[key] = torch.zeros(shape, dtype=dtype, device=self._device)
        return self._buffers[key]


def _following(image_of: NDArray[np.int64], sources: int) -> slice | None:
    """The images of objects of so many sources, if these follow each other."""
    first, last = int(image_of[0]), int(image_of[-1])
    follow = last - first + 1 == sources and bool((image_of[1:] >= image_of[:-1]).all())
    return slice(first, last + 1) if follow else None


def filled_up(layout: PromptLayout) -> PromptLayout:
    """The next larger one of the few that graphs are recorded for."""
    points, extra = (
        layout.points,
        2 if layout.boxes else 1,
    )  # a box is two tokens, points alone end with one
    if points:
        points = next((n for n in TOKENS if n >= points + extra), _power(points + extra)) - extra
    return PromptLayout(
        objects=_power(layout.objects),
        sources=_power(layout.sources),
        points=points,
        boxes=layout.boxes,
        masks=layout.masks,
        # Not whether some are, but whether some can be: one click an object is all there is.
        padded=points > 1 or (points == 1 and (layout.boxes or layout.masks)),
    )


def _power(count: int) -> int:
    """The next power of two."""
    return 1 << (count - 1).bit_length()
