"""Crops and their grids of points -> the decoder's output, batch by batch."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import accumulate, pairwise
from typing import NamedTuple, TypeVar

from samfast.automatic_masks import memory_plan
from samfast.automatic_masks.crop_state import CropState
from samfast.automatic_masks.generated_masks import GeneratedMasks
from samfast.automatic_masks.image_crops import Crop, CropGroup
from samfast.automatic_masks.options import AutomaticOptions
from samfast.automatic_masks.pipeline import JobQueue
from samfast.automatic_masks.point_model import Features, Inputs, PointModel
from samfast.decoding.decoder_output import DecoderOutput
from samfast.device.retry import RetryOnOOM

T = TypeVar("T")


class PointRange(NamedTuple):
    """The points from start to stop of a crop."""

    state: CropState
    start: int
    stop: int

    @property
    def is_last(self) -> bool:
        """Whether no points of the crop follow."""
        return self.stop == len(self.state.crop.points)


Receive = Callable[[PointRange, DecoderOutput], T]
"""Takes the output for some points; repeated, like the decoder, where memory does not suffice."""


def decode_points(
    groups: Iterable[CropGroup[Inputs]],
    model: PointModel[Inputs, Features],
    options: AutomaticOptions,
    queue: JobQueue[GeneratedMasks],
    receive: Receive[T],
) -> Iterator[list[tuple[PointRange, T]]]:
    """Encode groups of crops and decode their points; for each batch the results of `receive`."""
    retry = RetryOnOOM()
    for group in groups:
        if group.crops:
            queue.current_item = group.crops[0].image
            if group.crops[0].index == 0:
                retry = RetryOnOOM()
            features = model.encode(group.inputs)
            members = list(enumerate(group.crops))
            for batch in [members] if model.batch_across_crops else [[m] for m in members]:
                states = _open(batch, model, options, queue, retry)
                yield from _decode(features, states, model, options, queue, receive)
            queue.current_item = group.crops[-1].image + 1
            del features
        if group.failure is not None:
            queue.current_item = group.failure[0]
            raise group.failure[1]


def _open(
    members: Sequence[tuple[int, Crop]],
    model: PointModel[Inputs, Features],
    options: AutomaticOptions,
    queue: JobQueue[GeneratedMasks],
    retry: RetryOnOOM,
) -> list[CropState]:
    """The states of crops whose points are decoded together."""
    total = memory_plan.available_memory(options.max_memory, model.device)
    states = []
    for place, crop in members:
        queue.expect(crop.image, crop.count)
        plan = memory_plan.plan_memory(
            options.max_memory, total, crop.geometry, crop.image_size, model
        )
        states.append(CropState(crop, place, plan, retry))
    queue.deferred = all(state.plan.waiting_bytes > 0 for state in states)
    return states


def _decode(
    features: Features,
    states: Sequence[CropState],
    model: PointModel[Inputs, Features],
    options: AutomaticOptions,
    queue: JobQueue[GeneratedMasks],
    receive: Receive[T],
) -> Iterator[list[tuple[PointRange, T]]]:
    """Decode the points of some crops of a group, as many at a time as fit."""
    limit = memory_plan.points_per_call(
        options.points_per_batch, model.low_memory, model.objects_per_call
    )
    step = min(limit, *(state.plan.points for state in states))
    bounds = [0, *accumulate(len(state.crop.points) for state in states)]

    def work(start: int, stop: int) -> list[tuple[PointRange, T]]:
        ranges = [
            PointRange(state, max(start, first) - first, min(stop, last) - first)
            for state, (first, last) in zip(states, pairwise(bounds), strict=True)
            if max(start, first) < min(stop, last)
        ]
        queue.current_item = ranges[0].state.crop.image
        prompts = [(s.place, s.crop.model_points[begin:end]) for s, begin, end in ranges]
        output = model.decode(features, prompts)
        received, row = [], 0
        for points in ranges:
            rows = slice(row, row + points.stop - points.start)
            part = DecoderOutput(output.low_res[rows], output.iou[rows], output.codes[rows])
            received.append((points, receive(points, part)))
            row = rows.stop
        return received

    yield from states[0].retry.each(bounds[-1], step, work)
