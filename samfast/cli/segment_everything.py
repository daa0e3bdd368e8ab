"""Automatic masks of many files: one stream through the engine, in which a bad file stops none."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from samfast.cli.console import printable
from samfast.cli.image_files import ImageFile
from samfast.errors import SamfastError

if TYPE_CHECKING:
    from samfast.engine import SamFast
    from samfast.images import LoadedImage

Records = list[dict[str, Any]]

Answer = Records | Exception
"""The records of an image, or the error that it failed with."""


@dataclass(frozen=True, eq=False)
class ReadFile:
    """A file that was read: its image, or the error that reading it raised."""

    file: ImageFile
    image: LoadedImage | None
    error: Exception | None


def read(file: ImageFile) -> ReadFile:
    """Read an image file."""
    from samfast.images import load_image

    try:
        return ReadFile(file, load_image(file.path, printable(str(file.path))), None)
    except SamfastError as error:
        return ReadFile(file, None, error)


def segment_everything(
    sam: SamFast, files: Sequence[ImageFile], options: dict[str, Any]
) -> Iterator[tuple[ReadFile, Answer]]:
    """The records of each file, in order, or the error that it failed with.

    options  of `SamFast.segment_each`
    """
    from samfast.automatic_masks.segment_stream import segment_stream

    return segment_stream(partial(sam.segment_each, **options), map(read, files))
