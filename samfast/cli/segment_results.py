"""What becomes of each image of `samfast segment`: its files, or the reason for having none."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from samfast.automatic_masks.segment_stream import Answer, Records
from samfast.cli.console import Console, printable
from samfast.cli.image_files import ImageFile
from samfast.cli.image_reader import ReadFile, read
from samfast.cli.prompt_files import OBJECT, Prompting
from samfast.cli.segment_formats import RECORDS, Format, ImageResult
from samfast.errors import OutputError, SamfastError

if TYPE_CHECKING:
    from samfast.types import Size

PACKERS = 4
"""Threads that write files of formats that compress, beside a GPU."""


@dataclass(frozen=True, eq=False)
class Outcome:
    """What became of an image.

    records  None if it failed, or was skipped and nobody needs them
    size     (H, W), where there are records
    paths    of its files
    error    why it failed
    skipped  an earlier run has done it
    """

    file: ImageFile
    records: Records | None = None
    size: Size | None = None
    paths: tuple[Path, ...] = ()
    notes: tuple[str, ...] = ()
    error: str | None = None
    skipped: bool = False


@dataclass(frozen=True)
class ResultWriter:
    """Writes the files of images, in any thread.

    formats    by name
    prompting  what the images were prompted with; None: they were not
    """

    out: Path
    formats: Mapping[str, Format]
    prompting: Prompting | None = None

    def threads(self, *, beside_gpu: bool) -> int:
        """How many should write while masks of the next images are found.

        Beside a CPU, which works on all cores, one. Beside a GPU one too for formats that are text:
        Python makes it, on one thread at a time, and several take as much time again from each
        other and from the thread that feeds the GPU.
        """
        packs = any(each.packs for each in self.formats.values())
        return PACKERS if beside_gpu and packs else 1

    @property
    def class_names(self) -> list[str]:
        """The names of YOLO's classes, in the order of the categories."""
        categories = self.prompting.categories if self.prompting else ()
        return [str(each["name"]) for each in categories] or [OBJECT]

    def image_id(self, file: ImageFile) -> Any:
        """That of the prompts' file if it has ids, else the image's number."""
        return self.prompting.image_ids.get(file, file.number) if self.prompting else file.number

    def is_written(self, file: ImageFile) -> bool:
        """Whether an earlier run has written all files of an image."""
        return all(each.is_written(self.out, file.stem) for each in self.formats.values())

    def write(self, read: ReadFile, answer: Answer) -> Outcome:
        """Write an image's files, unless it failed."""
        if read.image is None:
            return Outcome(read.file, error=_reason(read.file, answer))
        notes = read.image.notes
        if not isinstance(answer, Exception):
            try:
                paths = self._write(read, answer)
                return Outcome(read.file, answer, read.image.size, paths, notes)
            except SamfastError as error:
                answer = error
        return Outcome(read.file, notes=notes, error=_reason(read.file, answer))

    def read_back(self, file: ImageFile, *, records: bool) -> Outcome:
        """An image that an earlier run has done; with its records, if they are asked for."""
        paths = tuple(self.out / each.target.format(file.stem) for each in self.formats.values())
        if not records:
            return Outcome(file, paths=paths, skipped=True)
        from samfast.outputs import read_records

        try:
            kept = read_records(self.out / self.formats[RECORDS].target.format(file.stem))
        except SamfastError as error:
            return Outcome(file, error=f"{error} (remove the file and run again)")
        if kept:
            height, width = kept[0]["segmentation"]["size"]
            return Outcome(file, kept, (height, width), paths, skipped=True)
        again = read(file)  # records of no mask do not say the size
        if again.image is None:
            return Outcome(file, error=_reason(file, again.error))
        return Outcome(file, kept, again.image.size, paths, skipped=True)

    def _write(self, read: ReadFile, records: Records) -> tuple[Path, ...]:
        assert read.image is not None
        file, prompting = read.file, self.prompting
        result = ImageResult(
            file,
            read.image,
            records,
            image_id=self.image_id(file),
            classes={c["id"]: i for i, c in enumerate(prompting.categories if prompting else ())},
            objects=prompting.objects[file] if prompting else (),
        )
        paths = []
        for each in self.formats.values():
            path = self.out / each.target.format(file.stem)
            _make_folder(path.parent)
            each.write(path, result)
            paths.append(path)
        return tuple(paths)


def _make_folder(folder: Path) -> None:
    if os.path.isdir(folder):
        return
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(
            f"{folder}: this directory cannot be made: {error.strerror}; choose another --out"
        ) from error


def _reason(file: ImageFile, error: Any) -> str:
    """Why an image failed, without its name and its number."""
    if not isinstance(error, SamfastError):
        return "the device's memory ran out (use a smaller --batch-size or --points-per-batch)"
    path = printable(str(file.path))
    # The engine numbers images; on the command line they have names.
    return re.sub(r"^image \d+(, |: )", "", str(error).removeprefix(f"{path}: "))


@contextmanager
def json_lines(destination: str | None, console: Console) -> Iterator[Callable[[Outcome], None]]:
    """Yields a function that writes a line of JSON for each image, to a file or, for "-", stdout.

    Raises OutputError if the file cannot be written.
    """
    if destination is None:
        yield lambda outcome: None
    elif destination == "-":
        yield lambda outcome: console.result(_line(outcome))
    else:
        try:
            with open(destination, "w", encoding="utf-8") as file:
                yield lambda outcome: print(_line(outcome), file=file, flush=True)
        except OSError as error:
            raise OutputError(f"{destination}: cannot be written: {error.strerror}") from error


def _line(outcome: Outcome) -> str:
    line: dict[str, Any] = {"image": str(outcome.file.path), "name": outcome.file.name}
    if outcome.size is not None:
        line |= {"height": outcome.size[0], "width": outcome.size[1]}
    if outcome.error is not None:
        line["error"] = outcome.error
    else:
        line |= {"skipped": outcome.skipped, "files": [str(path) for path in outcome.paths]}
    if outcome.records is not None:
        line["records"] = outcome.records
    return json.dumps(line, allow_nan=False)
