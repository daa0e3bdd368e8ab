"""A server with all wires on a port of its own, a photo, and the engine's own masks of it."""

from __future__ import annotations

import base64
import contextlib
import io
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from scipy import ndimage

import samfast
from samfast.engine import SamFast
from samfast.serve.wires import WIRES
from samfast.types import Masks
from tests.serve import running

TOKEN = "a-token-of-the-tests"

CLICK = (300.0, 150.0)
BOX = (160.0, 60.0, 470.0, 330.0)


@dataclass(frozen=True)
class Photo:
    """A photo as bytes and as tools send it; 600 x 400 pixels."""

    data: bytes
    width: int
    height: int

    @property
    def base64(self) -> str:
        return base64.b64encode(self.data).decode()


@contextlib.contextmanager
def serving(engine: SamFast, **options: Any) -> Iterator[httpx.Client]:
    """A client of a server with all wires, which listens on a free port of this machine."""
    settings = {"wires": WIRES, **options}
    with (
        running.serving(engine, **settings) as (address, _),
        httpx.Client(base_url=address, timeout=120) as client,
    ):
        yield client


@pytest.fixture(scope="session")
def photo() -> Photo:
    """A cup of coffee, by Rachel Michetti (CC0)."""
    data = pytest.importorskip("skimage.data")
    image = Image.fromarray(np.asarray(data.coffee()))
    file = io.BytesIO()
    image.save(file, "png")
    return Photo(file.getvalue(), image.width, image.height)


@pytest.fixture(scope="session")
def engine() -> SamFast:
    return samfast.load("vit_xs", device="cpu", recipe="fp32")


@pytest.fixture(scope="session")
def root(photo, tmp_path_factory) -> Path:
    """The folder whose photos the server takes by their path."""
    folder = tmp_path_factory.mktemp("root")
    for name in ("trip/a cup.png", "upload/7/cup.png"):
        path = folder / name
        path.parent.mkdir(parents=True)
        path.write_bytes(photo.data)
    return folder


@pytest.fixture(scope="session")
def tool(engine, root) -> Iterator[httpx.Client]:
    """A client of a server that needs no token."""
    with serving(engine, root=root) as client:
        yield client


@pytest.fixture(scope="session")
def guarded(engine) -> Iterator[httpx.Client]:
    """A client of a server that needs a token."""
    with serving(engine, token=TOKEN) as client:
        yield client


@pytest.fixture(scope="session")
def everything(photo) -> list[dict[str, Any]]:
    """The engine's records of everything in the photo, from a small grid of points."""
    engine = samfast.load("vit_xs", device="cpu", recipe="fp32")
    image = np.asarray(Image.open(io.BytesIO(photo.data)))
    return list(engine.segment([image], points_per_side=6)[0])


Predict = Callable[..., Masks]


@pytest.fixture(scope="session")
def predict(photo) -> Predict:
    """The engine's own answer for one object in the photo, from an engine of its own."""
    engine = samfast.load("vit_xs", device="cpu", recipe="fp32")
    embeddings = engine.embed([np.asarray(Image.open(io.BytesIO(photo.data)))])

    def masks(*, multimask: bool, points: Any = None, labels: Any = None, box: Any = None) -> Masks:
        prompts = samfast.Prompts(
            points=None if points is None else [points],
            labels=None if labels is None else [labels],
            boxes=None if box is None else [box],
        )
        return engine.predict(embeddings, [prompts], multimask=multimask)[0]

    return masks


def best(masks: Masks) -> NDArray[np.bool_]:
    """The mask of highest predicted IoU of the first object."""
    chosen: NDArray[np.bool_] = masks.masks[0, int(masks.iou[0].argmax())].numpy()
    assert chosen.any(), "the test needs a mask that is not empty"
    return chosen


def large_pieces(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """The mask that polygons without holes can tell: its large pieces, filled."""
    labels, count = ndimage.label(mask, structure=np.ones((3, 3)))  # as OpenCV joins pixels
    pieces = [ndimage.binary_fill_holes(labels == i + 1) for i in range(count)]
    # The area within an outline through the centres of pixels is by Pick's theorem that of the
    # pixels inside plus half of those on it, less one.
    inside = [int(ndimage.binary_erosion(piece).sum()) for piece in pieces]
    areas = [i + (int(piece.sum()) - i) / 2 - 1 for i, piece in zip(inside, pieces, strict=True)]
    least = 0.2 * np.mean(areas)
    kept = [piece for piece, area in zip(pieces, areas, strict=True) if area >= least]
    union: NDArray[np.bool_] = np.any(kept, axis=0)
    return union
