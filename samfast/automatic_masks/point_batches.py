"""Crops and their grids of points -> the decoder's output, batch by batch."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise
from typing import Generic, TypeVar

from samfast.automatic_masks import memory_plan
from samfast.automatic_masks.crop_state import CropState, PointRange
from samfast.automatic_masks.generated_masks import GeneratedMasks
from samfast.automatic_masks.image_crops import Crop, CropGroup
from samfast.automatic_masks.options import AutomaticOptions
from samfast.automatic_masks.point_model import Features, Inputs, PointModel
from samfast.decoding.decoder_output import DecoderOutput
from samfast.device.pipeline import JobQueue
from samfast.device.retry import RetryOnOOM

T = TypeVar("T")

Batches = Iterator[list[tuple[PointRange, T]]]
"""For each batch, its points and what `receive` made of their output."""


@dataclass(eq=False)
class PointDecoder(Generic[Inputs, Features, T]):
    """Encodes groups of crops and decodes their points.

    receive  takes the output for some points of a crop; is called again, as the decoder is, where
             memory does not suffice
    """

    model: PointModel[Inputs, Features]
    options: AutomaticOptions
    queue: JobQueue[GeneratedMasks]
    receive: Callable[[PointRange, DecoderOutput], T]

    def batches(self, groups: Iterable[CropGroup[Inputs]]) -> Batches[T]:
        """Queue the work of one batch after another."""
        retry = RetryOnOOM()
        for group in groups:
            if group.crops:
                self.queue.current_item = group.crops[0].image
                if group.crops[0].index == 0:
                    retry = RetryOnOOM()
                features = self.model.encode(group.inputs)
                members = list(enumerate(group.crops))
                across = self.model.batch_across_crops
                for together in [members] if across else [[member] for member in members]:
                    yield from self._decode(features, self._open(together, retry))
                self.queue.current_item = group.crops[-1].image + 1
                del features
            if group.failure is not None:
                self.queue.current_item = group.failure[0]
                raise group.failure[1]

    def _open(self, members: Sequence[tuple[int, Crop]], retry: RetryOnOOM) -> list[CropState]:
        """The states of crops whose points are decoded together."""
        stated, model = self.options.max_memory, self.model
        total = memory_plan.available_memory(stated, model.device)
        states = []
        for place, crop in members:
            self.queue.expect(crop.image, crop.count)
            plan = memory_plan.plan_memory(stated, total, crop.geometry, crop.image_size, model)
            states.append(CropState(crop, place, plan, retry))
        self.queue.deferred = all(state.plan.waiting_bytes > 0 for state in states)
        return states

    def _decode(self, features: Features, states: Sequence[CropState]) -> Batches[T]:
        """Decode the points of some crops of a group, as many at a time as fit."""
        wide = memory_plan.points_per_call(self.options.points_per_batch, self.model)
        step = min(wide, *(state.plan.points for state in states))
        bounds = [0, *accumulate(len(state.crop.points) for state in states)]

        def work(start: int, stop: int) -> list[tuple[PointRange, T]]:
            ranges = [
                PointRange(state, max(start, first) - first, min(stop, last) - first)
                for state, (first, last) in zip(states, pairwise(bounds), strict=True)
                if max(start, first) < min(stop, last)
            ]
            self.queue.current_item = ranges[0].state.crop.image
            prompts = [(s.place, s.crop.model_points[begin:end]) for s, begin, end in ranges]
            output = self.model.decode(features, prompts)
            received, row = [], 0
            for points in ranges:
                end = row + points.stop - points.start
                received.append((points, self.receive(points, output.rows(row, end))))
                row = end
            return received

        yield from states[0].retry.map_chunks(bounds[-1], step, work)
