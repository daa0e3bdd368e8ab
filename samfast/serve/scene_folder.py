"""The scenes below a server's root: images larger than the model's window, read part by part."""

from __future__ import annotations

import io
import os
import threading
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from PIL import Image

from samfast.errors import ImageError, MissingExtraError, PromptError
from samfast.images import LoadedImage
from samfast.scenes.band_scaling import BandScaling
from samfast.scenes.open_scene import open_scene
from samfast.scenes.predict_scene import (
    PromptWindow,
    centred_window,
    read_prompt_window,
    window_of,
    working_extent,
)
from samfast.scenes.scene_prompts import ScenePrompt, scene_prompts
from samfast.scenes.segment_scene import SceneOptions
from samfast.scenes.source import SceneReadError, Source
from samfast.scenes.tile_grid import TileGrid
from samfast.scenes.tile_reader import TileImage, read_window
from samfast.scenes.window_embeddings import content_key
from samfast.serve.image_store import resolve_below
from samfast.serve.problems import ProblemError, not_found
from samfast.types import Prompts

T = TypeVar("T")

TIFF_ENDINGS = frozenset({".tif", ".tiff", ".btf", ".tf8"})
OTHER_ENDINGS = frozenset({".jpg", ".jpeg", ".png", ".jp2", ".j2k"})
"""Formats whose files may be scenes. Others, such as VRT, may name files that lie elsewhere."""

LEAST_BYTES = 4 << 20
"""Of a JPEG or PNG whose size is looked at: smaller ones are photos."""

MAX_LISTED = 1000

TILE = 512
"""Side of the tiles of pixels."""

MAX_OPEN = 8
"""Scenes that are kept open; those used last."""

MAX_WINDOWS = 16
"""Windows whose pixels are kept, of a few MiB each, so that a second click in one reads nothing."""

TILE_BYTES = 64 << 20
"""Of encoded tiles that are kept."""


@dataclass(eq=False)
class OpenScene:
    """A scene that is open; `lock` is held while it is read."""

    name: str
    source: Source
    scaling: BandScaling
    grid: TileGrid
    lock: threading.Lock = field(default_factory=threading.Lock)
    closed: bool = False

    def close(self) -> None:
        """Wait until nobody reads it, and close its file."""
        with self.lock:
            self.closed = True
            self.source.close()

    @property
    def levels(self) -> int:
        """Of tiles: each is half as large as the one before, and the last one is a single tile."""
        longest = max(self.source.info.size)
        return max(0, (longest - 1) // TILE).bit_length() + 1


@dataclass(frozen=True, eq=False)
class SceneWindow:
    """Where a prompt is answered.

    key    of the window's embedding
    image  what the model is shown, and where there are data
    """

    window: PromptWindow
    key: str
    image: TileImage

    def loaded(self) -> LoadedImage:
        """As the encoder takes it."""
        return LoadedImage(self.image.rgb, "the window")


class SceneFolder:
    """The scenes below a folder. Safe to call from several threads; every method may read a disk.

    root         the folder, or None: every name is refused
    max_pixels   JPEG and PNG files of more pixels are listed as scenes; any may be opened
    input_side   of the model
    fingerprint  of the model, for the windows' keys

    Methods raise ProblemError: 403 without root, 404 for what is not below it, 422 for what is no
    scene, 501 without the packages of the extra `large`.
    """

    def __init__(
        self, root: Path | None, *, max_pixels: int, input_side: int, fingerprint: str
    ) -> None:
        self._root, self._max_pixels = root, max_pixels
        self._input_side, self._fingerprint = input_side, fingerprint
        self._lock = threading.Lock()
        self._open: OrderedDict[tuple[str, int, int], OpenScene] = OrderedDict()
        self._sizes: dict[tuple[str, int, int], tuple[int, int] | None] = {}
        self._windows: OrderedDict[tuple[Any, ...], SceneWindow] = OrderedDict()
        self._tiles: OrderedDict[tuple[Any, ...], bytes] = OrderedDict()
        self._tile_bytes = 0

    def listed(self) -> list[dict[str, Any]]:
        """{"path", "width", "height"} of TIFF files larger than the model's input, and of other
        images that are too large to be taken whole.
        """
        scenes: list[dict[str, Any]] = []
        if self._root is None:
            return scenes
        for parent, folders, files in os.walk(self._root):
            folders[:] = sorted(each for each in folders if not each.startswith("."))
            for name in sorted(files):
                path = Path(parent) / name
                size = None if name.startswith(".") else self._size_if_scene(path)
                if size is not None:
                    relative = path.relative_to(self._root).as_posix()
                    scenes.append({"path": relative, "width": size[0], "height": size[1]})
                    if len(scenes) == MAX_LISTED:
                        return scenes
        return scenes

    def describe(self, name: str) -> dict[str, Any]:
        """What a client needs to show a scene."""

        def work(scene: OpenScene) -> dict[str, Any]:
            info = scene.source.info
            height, width = info.size
            reference = info.georeference
            return {
                "path": name,
                "width": width,
                "height": height,
                "tile": TILE,
                "levels": scene.levels,
                "crs": reference.crs,
                "transform": None if reference.in_pixels else list(reference.transform),
                "notes": [*info.notes, *scene.scaling.notes],
            }

        return self._with(name, work)

    def tile(self, name: str, level: int, column: int, row: int, kind: str) -> tuple[bytes, str]:
        """A tile of pixels as a file, and an ETag.

        level  0 is the scene's own resolution, each further one half as fine
        kind   "jpeg", or "png" with no data transparent

        404 outside the scene.
        """
        key = (*self._key(name), level, column, row, kind)
        etag = "-".join(str(part) for part in key[1:])
        with self._lock:
            if key in self._tiles:
                self._tiles.move_to_end(key)
                return self._tiles[key], etag

        def work(scene: OpenScene) -> bytes:
            height, width = scene.source.info.size
            scale = 1 << level if level < scene.levels else 0
            x, y = column * TILE * scale, row * TILE * scale
            if not scale or x >= width or y >= height:
                raise not_found(f"there is no tile {level}/{column}/{row} in {name!r}")
            image = read_window(
                scene.source, scene.scaling, (x, y), TILE, (float(scale), float(scale))
            )
            return _encoded(image, kind)

        data = self._with(name, work)
        with self._lock:
            if key not in self._tiles:
                self._tiles[key] = data
                self._tile_bytes += len(data)
            while self._tile_bytes > TILE_BYTES:
                self._tile_bytes -= len(self._tiles.popitem(last=False)[1])
        return data, etag

    def prompt(self, name: str, prompts: Prompts, coordinates: str) -> ScenePrompt:
        """One object's prompts in pixels of the scene; ProblemError 422 if they do not fit it."""

        def work(scene: OpenScene) -> ScenePrompt:
            info = scene.source.info
            try:
                (one,) = scene_prompts(prompts, coordinates, info.georeference, info.size)
            except PromptError as error:
                raise ProblemError(422, "bad_prompt", str(error)) from None
            return one

        return self._with(name, work)

    def grid(self, name: str) -> TileGrid:
        """The grid of the scene's windows, whose working pixels are the scene's."""
        return self._with(name, lambda scene: scene.grid)

    def window(
        self,
        name: str,
        prompt: ScenePrompt,
        zoom: int,
        before: PromptWindow | None = None,
        *,
        centred: bool = False,
    ) -> SceneWindow:
        """The window in which a prompt is answered.

        zoom     scene pixels along the side of a pixel of the window, at least
        before   the window of the object's earlier answer, which is kept while the prompt lies in
                 it: its logits belong to it
        centred  see `centred_window`
        """
        file = self._key(name)

        def work(scene: OpenScene) -> SceneWindow:
            chosen = window_of(prompt, scene.grid, zoom)
            if centred:
                chosen = centred_window(prompt, scene.grid, zoom)
            elif before is not None and _holds(before, prompt, scene.grid):
                chosen = before
            key = (*file, chosen)
            with self._lock:
                if key in self._windows:
                    self._windows.move_to_end(key)
                    return self._windows[key]
            image = read_prompt_window(scene.source, scene.scaling, scene.grid, chosen)
            made = SceneWindow(chosen, content_key(self._fingerprint, image.rgb), image)
            with self._lock:
                self._windows[key] = made
                if len(self._windows) > MAX_WINDOWS:
                    self._windows.popitem(last=False)
            return made

        return self._with(name, work)

    def close(self) -> None:
        """Close all files."""
        with self._lock:
            scenes = list(self._open.values())
            self._open.clear()
        for scene in scenes:
            scene.close()

    def _key(self, name: str) -> tuple[str, int, int]:
        path = self._path(name)
        status = path.stat()
        return str(path), status.st_mtime_ns, status.st_size

    def _path(self, name: str) -> Path:
        path = resolve_below(self._root, name)
        hidden = any(part.startswith(".") for part in name.split("/"))
        if hidden or path.suffix.lower() not in TIFF_ENDINGS | OTHER_ENDINGS:
            raise not_found(f"there is no scene {name[:200]!r} below the root")
        return path

    def _with(self, name: str, work: Callable[[OpenScene], T]) -> T:
        """The result of the work on an open scene, which nobody else reads meanwhile."""
        while True:
            scene = self._opened(name)
            with scene.lock:
                if scene.closed:  # others were opened meanwhile
                    continue
                try:
                    return work(scene)
                except SceneReadError as error:
                    raise ProblemError(422, "bad_image", self._said(error, name)) from None

    def _opened(self, name: str) -> OpenScene:
        key = self._key(name)
        with self._lock:
            if key in self._open:
                self._open.move_to_end(key)
                return self._open[key]
        try:
            source = open_scene(key[0])
        except MissingExtraError as error:
            raise ProblemError(501, "no_scenes", str(error)) from None
        except ImageError as error:
            raise ProblemError(422, "bad_image", self._said(error, name)) from None
        options = SceneOptions(tile=self._input_side, overlap=0)
        try:
            made = OpenScene(
                name, source, options.scaling(source), options.grid(source, self._input_side)
            )
        except (ImageError, SceneReadError) as error:
            source.close()
            raise ProblemError(422, "bad_image", self._said(error, name)) from None
        closing: list[OpenScene] = []
        with self._lock:
            scene = self._open.setdefault(key, made)
            if scene is not made:
                closing.append(made)
            while len(self._open) > MAX_OPEN:
                closing.append(self._open.popitem(last=False)[1])
        for each in closing:
            each.close()
        return scene

    def _said(self, error: Exception, name: str) -> str:
        """A message about the file, which does not tell where on this machine it lies."""
        return str(error).replace(str(self._path(name)), name)

    def _size_if_scene(self, path: Path) -> tuple[int, int] | None:
        ending = path.suffix.lower()
        if ending not in TIFF_ENDINGS | OTHER_ENDINGS:
            return None
        try:
            status = path.stat()
        except OSError:
            return None
        if ending in OTHER_ENDINGS and status.st_size < LEAST_BYTES:
            return None
        key = (str(path), status.st_mtime_ns, status.st_size)
        if key not in self._sizes:
            size = _size(path)
            if size is not None:
                small = size[0] * size[1] <= self._max_pixels
                inside = max(size) <= self._input_side
                if (small and ending in OTHER_ENDINGS) or inside:
                    size = None
            self._sizes[key] = size
        return self._sizes[key]


def _size(path: Path) -> tuple[int, int] | None:
    """(width, height) of an image file by its header, or None."""
    try:
        source = open_scene(path)
    except (ImageError, MissingExtraError):
        return None
    height, width = source.info.size
    source.close()
    return width, height


def _holds(window: PromptWindow, prompt: ScenePrompt, grid: TileGrid) -> bool:
    """Whether all of a prompt lies in a window, not at its very border."""
    low, high = working_extent(prompt, grid)
    margin = grid.side * window.zoom / 32
    x0, y0, x1, y1 = window.box(grid.side)
    scene = grid.scene_box
    least = [x0 + margin if x0 > scene[0] else x0, y0 + margin if y0 > scene[1] else y0]
    most = [x1 - margin if x1 < scene[2] else x1, y1 - margin if y1 < scene[3] else y1]
    return bool((low >= least).all() and (high <= most).all())


def _encoded(image: TileImage, kind: str) -> bytes:
    buffer = io.BytesIO()
    if kind == "png":
        alpha = image.valid.astype(np.uint8) * 255
        Image.fromarray(np.dstack([image.rgb, alpha])).save(buffer, "PNG", compress_level=3)
    else:
        Image.fromarray(image.rgb).save(buffer, "JPEG", quality=88)
    return buffer.getvalue()
