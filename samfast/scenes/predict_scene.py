"""Prompts in a scene -> objects: each is answered in a window of the scene centred on it."""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from samfast import coco_rle
from samfast.images import LoadedImage
from samfast.progress import reporting
from samfast.scenes.band_scaling import BandScaling
from samfast.scenes.open_scene import SceneLike, open_scene
from samfast.scenes.scene_engine import SceneEngine
from samfast.scenes.scene_objects import SceneObjects
from samfast.scenes.scene_prompts import ScenePrompt, read_geometries, scene_prompts
from samfast.scenes.segment_scene import (
    SceneOptions,
    closed_on_error,
    open_store,
    warn_of_failures,
)
from samfast.scenes.source import SceneReadError, Source
from samfast.scenes.tile_grid import Box, TileGrid
from samfast.scenes.tile_masks import shared
from samfast.scenes.tile_reader import TileImage, read_window
from samfast.scenes.tile_store import Piece, SceneObject
from samfast.scenes.window_embeddings import EmbeddingCache, content_key
from samfast.types import Embeddings, Masks, Progress, Prompts

COARSE, FINE = 2, 8
"""Windows lie on a lattice of a half of their side, so that neighbouring prompts and a second
question share one, and `samfast embed` can prepare them all. A prompt is at most a quarter of the
side from the middle, in x and in y. Large prompts, and those whose mask reaches the window's
border, are answered on a lattice of an eighth instead."""

SMALL = 0.25
"""Most of a window's side that a prompt's points and box may take on the coarse lattice: an eighth
of the side is left around it at least."""

ROOM = 0.75
"""Most of a window's side that a prompt's points and box may take; for larger ones the window is
doubled, and shown at half the resolution, until they fit."""

MAX_MASK_BYTES = 1 << 28
"""Most bytes of masks that one call of `predict` returns; each takes a byte per pixel."""


@dataclass(frozen=True, order=True)
class PromptWindow:
    """Where prompts are answered.

    top, left  in working pixels of the scene
    zoom       its pixels are so many working pixels wide
    """

    top: int
    left: int
    zoom: int

    def box(self, tile: int) -> Box:
        """The window in working pixels."""
        side = tile * self.zoom
        return self.left, self.top, self.left + side, self.top + side


def window_of(
    prompt: ScenePrompt, grid: TileGrid, zoom: int = 1, lattice: int = COARSE
) -> PromptWindow:
    """The window of a prompt: centred on it, but for the lattice and the scene's borders, beyond
    which it does not reach if the scene is as large.

    zoom     the least one
    lattice  of small prompts
    """
    low, high = working_extent(prompt, grid)
    while (high - low).max() > ROOM * grid.side * zoom:
        zoom *= 2
    side = grid.side * zoom
    step = max(1, side // (lattice if (high - low).max() <= SMALL * side else FINE))
    base = np.array(grid.base)  # a crop of the scene has the same lattice
    corner = np.rint(((low + high) / 2 - side / 2 + base) / step) * step - base
    return _inside_scene(corner, zoom, grid)


def centred_window(prompt: ScenePrompt, grid: TileGrid, zoom: int = 1) -> PromptWindow:
    """The window for a prompt whose mask reaches the border of the one that `window_of` tells."""
    return window_of(prompt, grid, zoom, FINE)


def working_extent(
    prompt: ScenePrompt, grid: TileGrid
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """The upper left and the lower right corner of a prompt, (x, y) in working pixels."""
    offset, scale = np.array(grid.offset), np.array(grid.scale)
    low, high = (
        np.array(corner) / scale + offset for corner in (prompt.extent[:2], prompt.extent[2:])
    )
    return low, high


def coarse_windows(grid: TileGrid) -> list[PromptWindow]:
    """All windows in which small prompts are answered, at the scene's working resolution."""
    step = max(1, grid.side // COARSE)
    x0, y0, x1, y1 = grid.scene_box
    axes = []
    for low, high, base in ((x0, x1, grid.base[0]), (y0, y1, grid.base[1])):
        first, last = (
            round((each - grid.side / 2 + base) / step) * step - base for each in (low, high)
        )
        axes.append(range(first, last + 1, step))
    return sorted({_inside_scene(np.array([x, y]), 1, grid) for y in axes[1] for x in axes[0]})


def _inside_scene(corner: NDArray[Any], zoom: int, grid: TileGrid) -> PromptWindow:
    x0, y0, x1, y1 = grid.scene_box
    last = np.ceil((x1, y1)) - grid.side * zoom
    left, top = np.maximum(np.floor((x0, y0)), np.minimum(corner, last)).astype(int).tolist()
    return PromptWindow(top, left, zoom)


def read_prompt_window(
    source: Source, scaling: BandScaling, grid: TileGrid, window: PromptWindow
) -> TileImage:
    """What the model is shown of a window."""
    (left, top), (sx, sy) = grid.offset, grid.scale
    corner = ((window.left - left) * sx, (window.top - top) * sy)
    scale = (sx * window.zoom, sy * window.zoom)
    return read_window(source, scaling, corner, grid.side, scale)


def predict_scene(
    engine: SceneEngine,
    scene: SceneLike,
    prompts: Prompts | str | os.PathLike[str],
    options: SceneOptions,
    *,
    coordinates: str = "pixels",
    cache: EmbeddingCache | None = None,
    progress: Progress | bool = False,
) -> SceneObjects:
    """The objects of prompts in a scene (`SamFast.predict_large`)."""
    source = open_scene(scene, options.nodata)
    with closing(source):
        info = source.info
        if isinstance(prompts, Prompts):
            asked = scene_prompts(prompts, coordinates, info.georeference, info.size)
        else:
            asked = read_geometries(prompts, info.georeference, info.size)
        grid, scaling = options.grid(source, engine.image_size), options.scaling(source)
        store, folder = open_store(None, {"prompts": len(asked)})
        windows = PromptWindows(engine, source, grid, scaling, cache)
        with reporting(progress, len(asked), "prompt") as advance:
            answers = windows.answer(asked)

            def counted() -> Iterator[tuple[SceneObject, list[Piece]]]:
                for answer in answers:
                    yield answer
                    advance(1)

            with closed_on_error(store, folder):
                store.replace_objects(counted())
    warn_of_failures(windows.failures)
    notes = (*info.notes, *scaling.notes)
    return SceneObjects(info, grid, notes, tuple(windows.failures), store, folder)


class PromptWindows:
    """The windows of a scene in which prompts are answered."""

    def __init__(
        self,
        engine: SceneEngine,
        source: Source,
        grid: TileGrid,
        scaling: BandScaling,
        cache: EmbeddingCache | None,
    ) -> None:
        """cache: of embeddings, or None."""
        self._engine, self._source, self._grid = engine, source, grid
        self._scaling, self._cache = scaling, cache
        self.failures: list[str] = []

    def answer(self, prompts: Sequence[ScenePrompt]) -> Iterator[tuple[SceneObject, list[Piece]]]:
        """The object of each prompt, window by window; its id is the prompt's number, from 1."""
        again: list[int] = []
        for made, pieces in self._round(prompts, range(len(prompts)), COARSE):
            prompt = prompts[made.id - 1]
            if made.cut and window_of(prompt, self._grid) != centred_window(prompt, self._grid):
                again.append(made.id - 1)
            else:
                yield made, pieces
        yield from self._round(prompts, again, FINE)

    def _round(
        self, prompts: Sequence[ScenePrompt], numbers: Sequence[int], lattice: int
    ) -> Iterator[tuple[SceneObject, list[Piece]]]:
        """The answers to these prompts, in windows on a lattice."""
        windows: defaultdict[PromptWindow, list[int]] = defaultdict(list)
        for number in numbers:
            windows[window_of(prompts[number], self._grid, 1, lattice)].append(number)
        order = sorted(windows)
        for start in range(0, len(order), self._engine.batch_size):
            batch = []
            for window in order[start : start + self._engine.batch_size]:
                try:
                    image = read_prompt_window(self._source, self._scaling, self._grid, window)
                    batch.append((window, image))
                except SceneReadError as error:
                    lost = ", ".join(str(number + 1) for number in windows[window])
                    self.failures.append(f"{error}; prompts {lost} are not answered")
            if batch:
                yield from self._answer_batch(batch, windows, prompts)

    def _answer_batch(
        self,
        batch: Sequence[tuple[PromptWindow, TileImage]],
        windows: dict[PromptWindow, list[int]],
        prompts: Sequence[ScenePrompt],
    ) -> Iterator[tuple[SceneObject, list[Piece]]]:
        embeddings = self._embed([image for _, image in batch])
        jobs = [
            (place, number, prompts[number])
            for place, (window, _) in enumerate(batch)
            for number in windows[window]
        ]
        for members in _calls(jobs, self._engine.image_size):
            by_window = [list(group) for _, group in groupby(members, lambda job: job[0])]
            places = [group[0][0] for group in by_window]
            asked = [
                prompts_in_window([job[2] for job in group], batch[place][0], self._grid)
                for place, group in zip(places, by_window, strict=True)
            ]
            multimask = members[0][2].ambiguous
            answers = self._engine.predict(
                _join([embeddings[place] for place in places]), asked, multimask=multimask
            )
            for place, group, masks in zip(places, by_window, answers, strict=True):
                window, image = batch[place]
                for index, (_, number, prompt) in enumerate(group):
                    yield self._object(number + 1, masks, index, window, image, prompt)

    def _embed(self, images: Sequence[TileImage]) -> list[Embeddings]:
        """Those of each window, from the cache where it has them."""
        engine, cache = self._engine, self._cache
        shown = [image.rgb for image in images]
        keys = [content_key(engine.fingerprint, rgb) for rgb in shown] if cache is not None else []
        cached: list[Embeddings | None] = [None] * len(shown)
        if cache is not None:
            cached = [cache.get(key) for key in keys]
        missing = [place for place, embeddings in enumerate(cached) if embeddings is None]
        if missing:
            name = self._source.info.name
            new = engine.embed([LoadedImage(shown[place], name) for place in missing])
            for index, place in enumerate(missing):
                cached[place] = new[index]
            if cache is not None:
                for place, each in zip(missing, one_by_one(new), strict=True):
                    cache.put(keys[place], each)
        return [each for each in cached if each is not None]

    def _object(
        self,
        number: int,
        masks: Masks,
        index: int,
        window: PromptWindow,
        image: TileImage,
        prompt: ScenePrompt,
    ) -> tuple[SceneObject, list[Piece]]:
        iou = masks.iou[index].float().cpu().numpy()
        best = int(iou.argmax())
        side = self._grid.side
        pixels = masks.masks[index, best, :side, :side].cpu().numpy() & image.valid
        logits = masks.low_res[index, best].float().cpu()
        pieces = _cut_into_cells(number, pixels, window, self._grid)
        box = _hull([piece.box for piece in pieces])
        x0, y0, x1, y1 = prompt.extent
        offset, scale = self._grid.offset, self._grid.scale
        middle = ((x0 + x1) / 2 / scale[0] + offset[0], (y0 + y1) / 2 / scale[1] + offset[1])
        made = SceneObject(
            id=number,
            box=box,
            area=int(np.count_nonzero(pixels)) * window.zoom**2,
            predicted_iou=float(iou[best]),
            stability=_stability(logits),
            point=middle,
            tiles=1,
            cut=reaches_border(pixels, image.valid),
        )
        return made, pieces


Job = tuple[int, int, ScenePrompt]
"""The place of the window in the batch, the prompt's number, and the prompt."""


def _calls(jobs: Sequence[Job], side: int) -> Iterator[list[Job]]:
    """What `predict` takes together: prompts of one kind, in the order of their windows."""
    kinds: defaultdict[tuple[bool, bool, bool], list[Job]] = defaultdict(list)
    for job in jobs:
        prompt = job[2]
        kinds[len(prompt.points) > 0, prompt.box is not None, prompt.ambiguous].append(job)
    step = max(1, MAX_MASK_BYTES // (3 * side * side))
    for members in kinds.values():
        for start in range(0, len(members), step):
            yield members[start : start + step]


def prompts_in_window(
    prompts: Sequence[ScenePrompt], window: PromptWindow, grid: TileGrid
) -> Prompts:
    """Prompts of one kind in pixels of their window; boxes end where the window ends."""
    corner = np.array([window.left, window.top])

    def inside(xy: NDArray[np.float64]) -> NDArray[np.float64]:
        working = xy / np.array(grid.scale) + np.array(grid.offset)
        clipped: NDArray[np.float64] = np.clip((working - corner) / window.zoom, 0, grid.side)
        return clipped

    points = [inside(each.points) for each in prompts if len(each.points)]
    boxes = [inside(each.box.reshape(2, 2)).reshape(4) for each in prompts if each.box is not None]
    return Prompts(
        points=points or None,
        labels=[each.labels for each in prompts if len(each.points)] or None,
        boxes=np.stack(boxes) if boxes else None,
    )


def _join(parts: Sequence[Embeddings]) -> Embeddings:
    if len(parts) == 1:
        return parts[0]
    device = parts[0].features.device
    return Embeddings(
        torch.cat([part.features.to(device) for part in parts]),
        tuple(size for part in parts for size in part.original_sizes),
        tuple(size for part in parts for size in part.input_sizes),
        parts[0].fingerprint,
    )


def one_by_one(embeddings: Embeddings) -> Iterator[Embeddings]:
    """The embeddings of each image on the host, as copies: a slice would keep the whole batch."""
    host = embeddings.cpu()
    for index in range(len(host)):
        each = host[index]
        yield Embeddings(
            each.features.clone(), each.original_sizes, each.input_sizes, each.fingerprint
        )


def _cut_into_cells(
    number: int, pixels: NDArray[np.bool_], window: PromptWindow, grid: TileGrid
) -> list[Piece]:
    """The part of a window's mask in each cell."""
    y, x = np.flatnonzero(pixels.any(1)), np.flatnonzero(pixels.any(0))
    if y.size == 0:
        return []
    zoom = window.zoom
    low = (window.left + int(x[0]) * zoom, window.top + int(y[0]) * zoom)
    high = (window.left + (int(x[-1]) + 1) * zoom, window.top + (int(y[-1]) + 1) * zoom)
    pieces = []
    for cell in grid.cells_of((*low, *high)):
        part = shared((*low, *high), grid.cell(cell))
        if part is None:
            continue
        rows = (np.arange(part[1], part[3]) - window.top) // zoom
        columns = (np.arange(part[0], part[2]) - window.left) // zoom
        inside = pixels[rows[:, None], columns[None, :]]
        if inside.any():
            pieces.append(Piece(cell, number, part, coco_rle.encode(inside)["counts"]))
    return pieces


def _stability(logits: torch.Tensor) -> float:
    """IoU of the low-resolution masks at the logits 1 and -1; 0 for an empty mask."""
    outer = int((logits > -1.0).sum())
    return int((logits > 1.0).sum()) / outer if outer else 0.0


def reaches_border(pixels: NDArray[np.bool_], valid: NDArray[np.bool_]) -> bool:
    """Whether a mask reaches a border of its window where the scene continues."""
    edges = (np.s_[0, :], np.s_[-1, :], np.s_[:, 0], np.s_[:, -1])
    return any(bool((pixels[edge] & valid[edge]).any()) for edge in edges)


def _hull(boxes: Sequence[Box]) -> Box:
    if not boxes:
        return 0, 0, 0, 0
    x0, y0, x1, y1 = zip(*boxes, strict=True)
    return min(x0), min(y0), max(x1), max(y1)
