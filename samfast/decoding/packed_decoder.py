"""Packed prompts of all images, decoded in parts; as CUDA graphs in few sizes."""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from samfast.decoding import decoder_operations, onednn_operations
from samfast.decoding.decoder import Decoder, DecoderCall, with_rows
from samfast.decoding.decoder_output import DecoderOutput, objects_per_call
from samfast.decoding.fused_decoder import FusedDecoder
from samfast.decoding.fused_prompt_encoder import FusedPrompts
from samfast.decoding.skip_low_iou import decode_masks
from samfast.device.cuda_graphs import Recorder
from samfast.device.transfer import to_device
from samfast.model.mask_decoder import MaskDecoder
from samfast.model.prompt_encoder import PromptEncoder
from samfast.model.sam import Sam
from samfast.prompts import device_checks
from samfast.prompts.object_rows import has_padding, image_count, image_of, on_host, points_of
from samfast.prompts.prompt_buffer import PromptLayout, sources_of, token_mask
from samfast.types import PackedPrompts

SOURCES_PER_CALL = 64
"""Images that the objects of one call may be of: with their keys, 4 MiB each in half precision."""

MAX_GRAPHS = 32
"""A graph is small; the tensors that it works in are shared by all graphs."""

MAX_GRIDS = 64
"""Parts of grids of points that are kept, some kB each: those of a photo for each place in a
batch."""

TOKENS = (2, 3, 4, 6, 8, 12, 16)
"""Sizes to which an object's prompt tokens are filled up for a graph; beyond, powers of two."""


class PlainObjectDecoder(nn.Module):
    """The plain mask decoder, called as `FusedDecoder`: keys are copied for each object unless all
    objects share them.
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
        min_iou: float | Tensor | None,
    ) -> tuple[Tensor, Tensor]:
        """As `FusedDecoder.forward`."""
        # The keys contain the dense prompt already.
        dense = keys.new_zeros(1, 1, 1, 1).expand(len(sparse), *keys.shape[1:])
        image = keys if len(keys) == 1 else keys[source_of]
        return decode_masks(
            self.decoder, image, position, sparse, dense, multimask, token_mask, min_iou
        )


@dataclass(frozen=True)
class _Part:
    """Objects start:stop of one PackedPrompts, which are decoded together.

    buffer  their points, boxes and images, as the layout has them
    images  the range of their images, if these follow each other and the host can read them
    """

    start: int
    stop: int
    layout: PromptLayout
    buffer: Tensor
    masks: Tensor | None
    sources: int
    images: slice | None


_Prepared = tuple[int, _Part, Tensor]
"""A part, the number of its prompts among all, and its buffer on the device."""


class _Inputs(NamedTuple):
    """The inputs of a part; a graph reads them from tensors that stay where they are."""

    buffer: Tensor
    features: Tensor
    masks: Tensor | None
    min_iou: float | Tensor | None


class PackedDecoder(Decoder):
    """Decodes the objects of all images as one flat batch.

    fuse    with the fused prompt encoder and mask decoder
    onednn  and that on a CPU, by oneDNN's products
    graph   as CUDA graphs

    With graphs, objects, sources and tokens are filled up to few sizes, so that few graphs serve
    all prompts. Padding rows are separate and padding tokens are masked, so results do not change.

    Raises UnsupportedRecipeError for fuse, where the decoder's structure is not SAM's.
    """

    def __init__(
        self, sam: Sam, *, fuse: bool = False, graph: bool = False, onednn: bool = False
    ) -> None:
        super().__init__(sam)
        self._home = sam.device  # graphs stay on it, even if the model is moved later
        self._fuse = fuse
        self._buffers: dict[tuple[object, ...], Tensor] = {}
        self._grids: dict[Hashable, list[_Prepared]] = {}  # least recently used first
        self.mask_decoder: nn.Module = PlainObjectDecoder(sam.mask_decoder)
        self._prompt_encoder: PromptEncoder | FusedPrompts = sam.prompt_encoder
        if fuse:
            operations = onednn_operations if onednn else decoder_operations
            self.mask_decoder = FusedDecoder(sam.mask_decoder, operations)
            self._prompt_encoder = FusedPrompts(sam.prompt_encoder)
            dtype = sam.mask_decoder.iou_token.weight.dtype
            self.low_memory = self._home.type == "cuda" and dtype != torch.float32
        if graph:
            modules = nn.ModuleList([sam.prompt_encoder, sam.mask_decoder])
            self.graphs = Recorder(modules, "decoder", MAX_GRAPHS)

    def describe(self) -> str:
        how = "fused" if self._fuse else "as it is written"
        graphs = ", replayed as CUDA graphs" if self.graphs is not None else ""
        count = objects_per_call(self._device)
        return f"{how}, on the packed prompts of all images, {count} objects at a time{graphs}"

    @property
    def _device(self) -> torch.device:
        return self._home

    @property
    def _skips_low_iou(self) -> bool:
        return self._fuse or super()._skips_low_iou

    def _decode(
        self, prompts: Sequence[PackedPrompts], call: DecoderCall, output: DecoderOutput
    ) -> None:
        # A grid of points is that of the image before, mostly; other prompts seldom come again.
        is_grid = self.graphs is not None and call.min_iou is not None
        prepared = self._kept(prompts) if is_grid else self._prepared(prompts)
        rows = [rows for _, rows in with_rows(prompts, output)]
        step = max((part.stop - part.start for _, part, _ in prepared), default=0)
        # The same for all parts. A graph has it among what it replays.
        position = None if self.graphs is not None else self._prompt_encoder.get_dense_pe()
        for number, part, buffer in prepared:
            packed = prompts[number]
            work = partial(self._decode_part, packed, part, buffer, position, call, rows[number])
            call.retry.run_chunks(part.start, part.stop, step, work)

    def _prepared(self, prompts: Sequence[PackedPrompts]) -> list[_Prepared]:
        """All parts of all prompts."""
        parts = [(n, part) for n, packed in enumerate(prompts) for part in self._parts(packed)]
        buffers = self._upload([part.buffer for _, part in parts])
        return [(n, part, buffer) for (n, part), buffer in zip(parts, buffers, strict=True)]

    def _kept(self, prompts: Sequence[PackedPrompts]) -> list[_Prepared]:
        """The same, from an earlier call with the same points on the same stream."""
        given = [_content(packed) for packed in prompts]
        if None in given:
            return self._prepared(prompts)
        key = (torch.cuda.current_stream(self._device).cuda_stream, *given)
        prepared = self._grids.pop(key, None) or self._prepared(prompts)
        while len(self._grids) >= MAX_GRIDS:
            self._grids.pop(next(iter(self._grids)), None)
        self._grids[key] = prepared
        return prepared

    def _decode_part(
        self,
        prompts: PackedPrompts,
        part: _Part,
        buffer: Tensor,
        position: Tensor | None,
        call: DecoderCall,
        output: DecoderOutput,
        start: int,
        stop: int,
    ) -> None:
        """Decode a part, or some of its objects after the GPU ran out of memory."""
        if (start, stop) != (part.start, part.stop):
            part = self._part(prompts, image_of(prompts), start, stop)
            (buffer,) = self._upload([part.buffer])
        try:
            if self.graphs is None:
                self._call(part, buffer, position, call, output)
            else:
                self._replay(self.graphs, part, buffer, call, output)
        except torch.OutOfMemoryError:
            self._buffers.clear()  # recorded graphs hold those that they read or write
            raise

    def _parts(self, prompts: PackedPrompts) -> Iterator[_Part]:
        images = image_of(prompts)
        for start, stop in self._bounds(prompts, images):
            yield self._part(prompts, images, start, stop)

    def _part(self, prompts: PackedPrompts, images: Tensor, start: int, stop: int) -> _Part:
        rows = slice(start, stop)
        images = images[rows]
        coords, labels = points_of(prompts, rows)
        boxes = None if prompts.boxes is None else prompts.boxes[rows]
        masks = None if prompts.masks is None else prompts.masks[rows]
        sources, image_range = min(image_count(prompts), stop - start), None
        if on_host(images):
            sources = int(sources_of(images)[-1]) + 1
            image_range = _range_of(images.numpy(), sources)
        layout = PromptLayout(
            objects=stop - start,
            sources=sources,
            points=0 if coords is None else coords.shape[1],
            boxes=boxes is not None,
            masks=masks is not None,
            padded=has_padding(prompts, labels),
        )
        if self.graphs is not None:
            layout = filled_up(layout)
        buffer = layout.write(coords, labels, boxes, images)
        return _Part(start, stop, layout, buffer, masks, sources, image_range)

    def _bounds(self, prompts: PackedPrompts, images: Tensor) -> Iterator[tuple[int, int]]:
        """The parts: at most so many objects, of at most SOURCES_PER_CALL images."""
        step, start = objects_per_call(self._device), 0
        ranks = sources_of(images).numpy() if on_host(images) else None
        if ranks is None and image_count(prompts) > SOURCES_PER_CALL:
            step = min(step, SOURCES_PER_CALL)
        while start < len(prompts):
            stop = min(start + step, len(prompts))
            if ranks is not None:
                stop = min(stop, int(ranks.searchsorted(ranks[start] + SOURCES_PER_CALL)))
            yield start, stop
            start = stop

    def _upload(self, buffers: list[Tensor]) -> list[Tensor]:
        """The buffers on the device; all those on the host are sent in one copy."""
        device = self._device
        waiting = [buffer for buffer in buffers if on_host(buffer)]
        if device.type == "cpu" or not waiting:
            return buffers
        sizes = [len(buffer) for buffer in waiting]
        sent = iter(torch.split(to_device(torch.cat(waiting), device), sizes))
        return [next(sent) if on_host(buffer) else buffer for buffer in buffers]

    def _call(
        self,
        part: _Part,
        buffer: Tensor,
        position: Tensor | None,
        call: DecoderCall,
        output: DecoderOutput,
    ) -> None:
        if part.images is not None:
            features = call.features[part.images]
        else:
            features = call.features.index_select(0, part.layout.views(buffer).sources)
        masks = None if part.masks is None else to_device(part.masks, self._device)
        given = _Inputs(buffer, features, masks, call.min_iou)
        output.put(part.start, *self._run(part.layout, given, call.multimask, position))

    def _replay(
        self,
        graphs: Recorder,
        part: _Part,
        buffer: Tensor,
        call: DecoderCall,
        output: DecoderOutput,
    ) -> None:
        layout, features, min_iou = part.layout, call.features, call.min_iou
        masks = None if part.masks is None else to_device(part.masks, self._device)

        def static() -> _Inputs:
            # Channels last, as the fused encoder leaves them and the fused decoder reads them.
            size = (layout.sources, *features.shape[2:], features.shape[1])
            images = self._buffer("features", size, features.dtype).permute(0, 3, 1, 2)
            size = (layout.objects, 1, *self._sam.prompt_encoder.mask_input_size)
            given = self._buffer("masks", size, torch.float32) if layout.masks else None
            least = None if min_iou is None else self._buffer("min_iou", (), torch.float32)
            return _Inputs(torch.zeros_like(buffer), images, given, least)

        def fill(into: _Inputs) -> None:
            into.buffer.copy_(buffer)
            if part.images is not None:
                into.features[: part.sources].copy_(features[part.images])
            else:
                sources = layout.views(buffer).sources[: part.sources]
                last = (0, 2, 3, 1)
                out = into.features[: part.sources].permute(last)
                torch.index_select(features.permute(last), 0, sources, out=out)
            if into.masks is not None and masks is not None:
                into.masks[: len(masks)].copy_(masks)
            if isinstance(into.min_iou, Tensor) and min_iou is not None:
                into.min_iou.fill_(min_iou)

        def run(given: _Inputs) -> list[Tensor]:
            answer = self._run(layout, given, call.multimask)
            # Copied into tensors that all graphs share, so that a recording keeps no memory for
            # its answer.
            return [
                self._buffer(name, tuple(x.shape), x.dtype).copy_(x)
                for name, x in zip(("low_res", "iou", "codes"), answer, strict=True)
            ]

        count = part.stop - part.start
        graphs(
            (layout, call.multimask, min_iou is not None, tuple(features.shape[1:])),
            static,
            fill,
            run,
            lambda answer: output.put(part.start, *(x[:count] for x in answer)),
        )

    def _run(
        self,
        layout: PromptLayout,
        given: _Inputs,
        multimask: bool,
        position: Tensor | None = None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Logits, IoU and codes of the objects in a buffer; features (Q, C, h, w) of sources.

        position  the dense positional encoding; None: it is computed here
        """
        coords, labels, boxes, source_of, _ = layout.views(given.buffer)
        points = None if coords is None or labels is None else (coords, labels)
        sparse, dense = self._prompt_encoder(points, boxes, given.masks)
        sources = source_of.long()
        if given.masks is None:
            keys = given.features + dense[:1]  # the same for every object
        else:
            keys = given.features[sources] + dense
            sources = torch.arange(layout.objects, device=source_of.device)
        mask = token_mask(labels, layout.boxes) if labels is not None and layout.padded else None
        if position is None:
            position = self._prompt_encoder.get_dense_pe()
        low_res, iou = self.mask_decoder(
            keys, position, sources, sparse, mask, multimask, given.min_iou
        )
        return low_res, iou, device_checks.non_finite(low_res, iou)

    def _buffer(self, name: str, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        """A tensor of that name, shape and dtype, the same one each time."""
        key = (name, shape, dtype)
        if key not in self._buffers:
            self._buffers[key] = torch.zeros(shape, dtype=dtype, device=self._device)
        return self._buffers[key]


def _content(prompts: PackedPrompts) -> Hashable | None:
    """The values of prompts of points alone; None for other prompts."""
    coords, labels, offsets = prompts.coords, prompts.labels, prompts.offsets
    if coords is None or labels is None or prompts.boxes is not None or prompts.masks is not None:
        return None
    if isinstance(offsets, Tensor) or not (on_host(coords) and on_host(labels)):
        return None
    values = [(x.dtype, tuple(x.shape), x.numpy().tobytes()) for x in (coords, labels)]
    images = None if prompts.images is None else tuple(prompts.images)
    return (*values, tuple(offsets), images)


def _range_of(images: NDArray[np.int64], sources: int) -> slice | None:
    """The images of objects of so many sources, if they follow each other."""
    first, last = int(images[0]), int(images[-1])
    follow = last - first + 1 == sources and bool((images[1:] >= images[:-1]).all())
    return slice(first, last + 1) if follow else None


def filled_up(layout: PromptLayout) -> PromptLayout:
    """The next larger one of the few layouts that graphs are recorded for."""
    points = layout.points
    extra = 2 if layout.boxes else 1  # a box is two tokens, points alone end with one
    if points:
        tokens = points + extra
        points = next((n for n in TOKENS if n >= tokens), _next_power(tokens)) - extra
    return PromptLayout(
        objects=_next_power(layout.objects),
        sources=_next_power(layout.sources),
        points=points,
        boxes=layout.boxes,
        masks=layout.masks,
        # Whether some points can be padding, not whether some are: one click per object cannot.
        padded=points > 1 or (points == 1 and (layout.boxes or layout.masks)),
    )


def _next_power(count: int) -> int:
    """The next power of two."""
    return 1 << (count - 1).bit_length()
