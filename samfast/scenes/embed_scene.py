"""A scene -> the embeddings of the windows in which small prompts are answered, ahead of these."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from samfast.images import LoadedImage
from samfast.progress import reporting
from samfast.scenes.open_scene import SceneLike, open_scene
from samfast.scenes.predict_scene import coarse_windows, one_by_one, read_prompt_window
from samfast.scenes.scene_engine import SceneEngine
from samfast.scenes.segment_scene import SceneOptions, warn_of_failures
from samfast.scenes.source import SceneReadError
from samfast.scenes.window_embeddings import EmbeddingCache, content_key
from samfast.types import Progress


@dataclass(frozen=True)
class EmbeddedScene:
    """What became of the windows of a scene.

    embedded, known, empty  how many were embedded, were in the cache already, have no data
    failures                a line for each that could not be read
    notes                   what was chosen on the way, one sentence each
    """

    embedded: int
    known: int
    empty: int
    failures: tuple[str, ...]
    notes: tuple[str, ...]


def embed_scene(
    engine: SceneEngine,
    scene: SceneLike,
    options: SceneOptions,
    cache: EmbeddingCache,
    progress: Progress | bool = False,
) -> EmbeddedScene:
    """Embed the windows of a scene into a cache (`SamFast.embed_large`)."""
    source = open_scene(scene, options.nodata)
    embedded = known = empty = 0
    failures: list[str] = []
    with closing(source):
        grid, scaling = options.grid(source, engine.image_size), options.scaling(source)
        windows = coarse_windows(grid)
        with reporting(progress, len(windows), "window") as advance:
            for start in range(0, len(windows), engine.batch_size):
                new: dict[str, NDArray[np.uint8]] = {}
                batch = windows[start : start + engine.batch_size]
                for window in batch:
                    try:
                        image = read_prompt_window(source, scaling, grid, window)
                    except SceneReadError as error:
                        failures.append(str(error))
                        continue
                    key = content_key(engine.fingerprint, image.rgb)
                    if not image.valid.any():
                        empty += 1
                    elif key in new or cache.get(key) is not None:
                        known += 1
                    else:
                        new[key] = image.rgb
                _embed(engine, new, source.info.name, cache)
                embedded += len(new)
                advance(len(batch))
    warn_of_failures(failures)
    notes = (*source.info.notes, *scaling.notes)
    return EmbeddedScene(embedded, known, empty, tuple(failures), notes)


def _embed(
    engine: SceneEngine, images: dict[str, NDArray[np.uint8]], name: str, cache: EmbeddingCache
) -> None:
    if not images:
        return
    shown: Sequence[LoadedImage] = [LoadedImage(rgb, name) for rgb in images.values()]
    for key, embeddings in zip(images, one_by_one(engine.embed(shown)), strict=True):
        cache.put(key, embeddings)
