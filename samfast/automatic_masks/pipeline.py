"""Everything in image after image, with the device kept busy (the algorithm of `everything`, crop
by crop).

Crops are encoded in groups and their points decoded in batches. What a batch says is looked at only
when the next one has been given to the device, and so is every later step that waits: suppression,
runs, text. Each is a job that goes one step whenever a batch has been queued. What is in progress
is bounded, whatever the number of images.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import accumulate, pairwise
from typing import Generic, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from samfast.automatic_masks import candidates, image_crops, memory_plan
from samfast.automatic_masks import generated_masks as columns
from samfast.automatic_masks.candidates import (
    Answer,
    Candidates,
    DeferredCandidates,
    EagerCandidates,
    View,
)
from samfast.automatic_masks.generated_masks import GeneratedMasks
from samfast.automatic_masks.mask_encoding import as_text, encode, on_device, on_host
from samfast.automatic_masks.memory_plan import Plan
from samfast.automatic_masks.options import AutomaticOptions
from samfast.device.retry import REMEDY, RetryOnOOM
from samfast.device.transfer import DeviceJob
from samfast.errors import DeviceMemoryError, NumericsError
from samfast.masks import nms
from samfast.masks.resize_geometry import ResizeGeometry
from samfast.types import Size

Inputs = TypeVar("Inputs")
Features = TypeVar("Features")

JOBS = 8
"""Of jobs in progress beside those of the last batch, as many at most when the next is queued."""


@dataclass(frozen=True)
class Model(Generic[Inputs, Features]):
    """What is known of a model here.

    encode      a group's inputs -> the features of its crops
    decode      those, and for some of the crops, by their places in the group, points (n, 1, 2)
                float64 on the host, XY in the model's input pixels, each the foreground point of
                one object -> the answers for all points, in order
    side        the model's input side in pixels
    input_size  size of a crop, side -> its size inside the model's input
                (`samfast.images.input_size`)
    device      where it answers, whose memory is to suffice
    objects_at_a_time  it decodes no more in one go, however many it is given; None: it takes all
    mixes       whether points of several crops are decoded together where one crop's do not fill a
                batch
    lean        whether an object takes it little memory beside its answer, so that more are decoded
                together
    """

    encode: Callable[[Inputs], Features]
    decode: Callable[[Features, Sequence[tuple[int, Tensor]]], Answer]
    side: int
    input_size: Callable[[Size, int], Size]
    mask_threshold: float
    device: torch.device
    objects_at_a_time: int | None = None
    batch_across_crops: bool = False
    low_memory: bool = False


@dataclass(frozen=True, eq=False)
class Crop:
    """A crop of an image, one of `count`, and its grid of points.

    image   the image's number in the stream; these grow
    points  (n, 2) float64 XY in pixels of the crop
    placed  (n, 1, 2) float64 XY in pixels of the model's input
    """

    image: int
    index: int
    count: int
    view: View
    points: NDArray[np.float64]
    placed: Tensor


@dataclass(frozen=True, eq=False)
class Group(Generic[Inputs]):
    """Crops that are encoded together, in the order of images and their crops.

    failure  an error that ends the stream once all images before that number are done
    """

    crops: list[Crop]
    inputs: Inputs
    failure: tuple[int, Exception] | None = None


def cut(
    image: int, size: Size, options: AutomaticOptions, model: Model[Inputs, Features]
) -> list[Crop]:
    """The crops of an image (height, width).

    Raises InputError if options.max_memory does not suffice for one mask, and what model.input_size
    raises.
    """
    grids = options.grids()
    boxes = image_crops.crop_boxes(size, options.crop_n_layers, options.crop_overlap_ratio)
    made = []
    for index, (box, layer) in enumerate(boxes):
        x0, y0, x1, y1 = box
        height, width = y1 - y0, x1 - x0
        frame = ResizeGeometry(
            model.input_size((height, width), model.side), (height, width), model.side
        )
        if options.max_memory is not None:
            memory_plan.plan(
                options.max_memory,
                options.max_memory,
                frame,
                size,
                model.device,
                model.objects_at_a_time,
            )
        points = grids[layer] * np.array([width, height])
        scale = np.array([frame.input_size[1] / width, frame.input_size[0] / height])
        placed = torch.from_numpy(points * scale)[:, None]
        view = View(box, frame, size, model.mask_threshold)
        made.append(Crop(image, index, len(boxes), view, points, placed))
    return made


def stream(
    groups: Iterable[Group[Inputs]],
    model: Model[Inputs, Features],
    options: AutomaticOptions,
    *,
    texts: bool,
) -> Iterator[tuple[Size, list[GeneratedMasks]]]:
    """Of each image its size and, crop by crop, the masks found in it, duplicates within a crop
    removed.

    texts  masks as COCO's text, else as runs

    An error is raised when all images before the one it is about have been given. NumericsError,
    naming the image, where an answer holds NaN or infinity; DeviceMemoryError if the GPU runs out
    of memory with half as much at a time too.
    """
    line = _Line()
    queued = _queued(groups, model, options, texts, line)
    more = True
    while more and line.failure is None:
        try:
            more = next(queued, None) is not None
        except Exception as error:  # whatever it is, the images before come first
            line.fail(line.queueing, error)
        line.advance(JOBS)
        yield from line.results()
    while line.jobs:
        line.age()  # nothing else comes that could be waited for meanwhile
        line.advance(len(line.jobs))
        yield from line.results()
    if line.failure is not None:
        failure, line.failure = line.failure[1], None
        try:
            raise failure
        finally:
            # Its frames know it otherwise, and what they hold on the GPU stays until a collection.
            del failure


@dataclass(eq=False)
class _State:
    """What becomes of a crop: its candidates, batch by batch, None where not known yet, and bytes
    that they hold.
    """

    crop: Crop
    plan: Plan
    waiting: list[Candidates | None] = field(default_factory=list)
    held: int = 0


@dataclass(eq=False)
class _Job:
    """Work about an image; what was begun with the last batch is fresh, and waiting for it would be
    waiting idly.
    """

    image: int
    steps: DeviceJob[None]
    fresh: bool = True


class _Line:
    """Jobs in progress, and the images that they are about."""

    def __init__(self) -> None:
        self.jobs: list[_Job] = []
        self.failure: tuple[int, Exception] | None = None
        self.queueing = 0  # the image that is being encoded or decoded
        self.held = 0  # bytes of logits that wait, of all crops
        self.waits = False  # whether anything waits at all
        self._sizes: dict[int, Size] = {}
        self._parts: dict[int, list[GeneratedMasks | None]] = {}

    def open(self, crop: Crop) -> None:
        """A crop of an image will be done."""
        self._sizes[crop.image] = crop.view.image_size
        self._parts.setdefault(crop.image, [None] * crop.count)

    def put(self, crop: Crop, part: GeneratedMasks) -> None:
        """A crop is done."""
        self._parts[crop.image][crop.index] = part

    def age(self) -> None:
        """A new batch has been queued: everything else may wait now."""
        for job in self.jobs:
            job.fresh = False

    def begin(self, image: int, steps: DeviceJob[None]) -> None:
        """Begin a job, up to where it would wait."""
        self.jobs.append(_Job(image, steps))
        self._step(self.jobs[-1])

    def advance(self, most: int) -> None:
        """One step for each job that is not fresh, and again until no more than `most` of these are
        left.
        """
        if not self.waits:  # as nothing is queued before this is done
            self.age()
            most = 0
        while True:
            for job in [job for job in self.jobs if not job.fresh]:
                if job in self.jobs:  # else an error has ended it
                    self._step(job)
            if sum(not job.fresh for job in self.jobs) <= most:
                return

    def fail(self, image: int, error: Exception) -> None:
        """An error about an image; nothing more is done about it and those after it."""
        if isinstance(error, torch.OutOfMemoryError):
            cause, error = error, DeviceMemoryError(f"the GPU ran out of memory: {REMEDY}")
            error.__cause__ = cause
        if self.failure is None or image < self.failure[0]:
            self.failure = image, error
        self.jobs = [job for job in self.jobs if job.image < self.failure[0]]

    def results(self) -> Iterator[tuple[Size, list[GeneratedMasks]]]:
        """The images that are done, unless one before is not."""
        while self._parts:
            image = next(iter(self._parts))
            parts = [part for part in self._parts[image] if part is not None]
            if len(parts) < len(self._parts[image]):
                return
            del self._parts[image]
            yield self._sizes.pop(image), parts

    def _step(self, job: _Job) -> None:
        try:
            next(job.steps)
        except StopIteration:
            self.jobs.remove(job)
        except Exception as error:  # raised when its turn comes
            self.fail(job.image, error)


def _queued(
    groups: Iterable[Group[Inputs]],
    model: Model[Inputs, Features],
    options: AutomaticOptions,
    texts: bool,
    line: _Line,
) -> Iterator[bool]:
    """Encode and decode; stops after each batch, of which jobs have been begun."""
    halving = RetryOnOOM()
    for group in groups:
        if group.crops:
            line.queueing = group.crops[0].image
            if group.crops[0].index == 0:
                halving = RetryOnOOM()
            features = model.encode(group.inputs)
            whole = [(place, crop) for place, crop in enumerate(group.crops)]
            for members in [whole] if model.batch_across_crops else [[member] for member in whole]:
                yield from _batches(features, members, model, options, texts, halving, line)
            line.queueing = group.crops[-1].image + 1
            del features
        if group.failure is not None:
            line.queueing = group.failure[0]
            raise group.failure[1]


def _batches(
    features: Features,
    members: Sequence[tuple[int, Crop]],
    model: Model[Inputs, Features],
    options: AutomaticOptions,
    texts: bool,
    halving: RetryOnOOM,
    line: _Line,
) -> Iterator[bool]:
    """Decode the points of some crops of a group, with their places in it."""
    states = []
    most = options.max_memory, memory_plan.available(options.max_memory, model.device)
    for _, crop in members:
        line.open(crop)
        frame, size = crop.view.frame, crop.view.image_size
        states.append(
            _State(
                crop, memory_plan.plan(*most, frame, size, model.device, model.objects_at_a_time)
            )
        )
    line.waits = all(state.plan.held > 0 for state in states)
    step = memory_plan.at_a_time(
        options.points_per_batch, model.low_memory, model.objects_at_a_time
    )
    step = min(step, *(state.plan.objects for state in states))
    bounds = [0, *accumulate(len(crop.points) for _, crop in members)]
    look = DeferredCandidates if line.waits else EagerCandidates

    def work(start: int, stop: int) -> list[tuple[int, int, DeferredCandidates | EagerCandidates]]:
        pieces = []
        for i, (first, last) in enumerate(pairwise(bounds)):
            if max(start, first) < min(stop, last):
                pieces.append((i, max(start, first) - first, min(stop, last) - first))
        line.queueing = members[pieces[0][0]][1].image
        asked = [(members[i][0], members[i][1].placed[own:end]) for i, own, end in pieces]
        answer = model.decode(features, asked)
        made, place = [], 0
        for i, own, end in pieces:
            part = answer.part(place, place + end - own)
            made.append((i, end, look(part, own, states[i].crop.view, options, states[i].plan)))
            place += end - own
        return made

    for batch in halving.map_chunks(bounds[-1], step, work):
        line.age()
        for i, end, looked in batch:
            state, image = states[i], states[i].crop.image
            line.begin(image, _filter(state, looked, halving, line))
            if end == len(state.crop.points):
                line.begin(image, _conclude(state, options, model.device, texts, halving, line))
        del batch, looked
        yield True


def _filter(
    state: _State, looked: DeferredCandidates | EagerCandidates, halving: RetryOnOOM, line: _Line
) -> DeviceJob[None]:
    """What of a batch passes; as runs, if too many logits wait already."""
    place = len(state.waiting)
    state.waiting.append(None)
    yield
    wrong = looked.non_finite()
    if wrong is not None:
        raise NumericsError(
            f"image {state.crop.image}, object {wrong}: the answer holds NaN or infinity; so do "
            "the weights, "
            "or their dtype is too narrow: take a recipe in bf16 or fp32"
        )
    passing = looked.passing()
    del looked
    bytes_ = passing.held()
    if line.held + bytes_ > state.plan.held:
        masks = yield from encode(passing.masks, state.crop.view, state.plan, halving, on_device)
        passing, bytes_ = replace(passing, masks=[*masks]), 0
    line.held += bytes_
    state.held += bytes_
    state.waiting[place] = passing


def _conclude(
    state: _State,
    options: AutomaticOptions,
    device: torch.device,
    texts: bool,
    halving: RetryOnOOM,
    line: _Line,
) -> DeviceJob[None]:
    """Remove duplicates and encode what remains."""
    crop = state.crop
    while len(settled := [part for part in state.waiting if part is not None]) < len(state.waiting):
        yield
    kept = candidates.join(settled)
    del settled
    state.waiting.clear()
    index = yield from nms.keep_there(kept.boxes, kept.iou, options.box_nms_thresh, device)
    kept = kept.pick(index)
    line.held += kept.held() - state.held
    state.held = kept.held()
    masks: Sequence[NDArray[np.int64] | str]
    if texts:
        masks = yield from encode(kept.masks, crop.view, state.plan, halving, as_text)
    else:
        masks = yield from encode(kept.masks, crop.view, state.plan, halving, on_host)
    line.held -= state.held
    corner = np.array(crop.view.crop[:2])
    part = GeneratedMasks(
        boxes=kept.boxes + np.tile(corner, 2),
        area=kept.area,
        iou=kept.iou,
        stability=kept.stability,
        points=crop.points[kept.prompts] + corner,
        crop_boxes=np.tile(np.array(crop.view.crop), (len(masks), 1)),
        masks=columns.objects(masks),
    )
    line.put(crop, part)
