"""Automatic masks of many files: one stream through the engine, in which a bad file stops none."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from samfast.automatic_masks.segment_stream import Answer, segment_stream
from samfast.cli.image_files import ImageFile
from samfast.cli.image_reader import ImageReader, ReadFile

if TYPE_CHECKING:
    from samfast.engine import SamFast


def segment_everything(
    sam: SamFast, files: Sequence[ImageFile], options: dict[str, Any], reader: ImageReader
) -> Iterator[tuple[ReadFile, Answer]]:
    """The records of each file, in order, or the error that it failed with.

    options  of `SamFast.segment_each`
    """
    images = reader.each(files, beside_gpu=sam.device.type == "cuda")
    return segment_stream(partial(sam.segment_each, **options), images)
