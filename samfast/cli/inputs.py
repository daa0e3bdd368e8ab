"""Which files `samfast segment` reads, and what each one's results are called."""

from __future__ import annotations

import glob
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from samfast.cli.console import CommandLineError

SUFFIXES = frozenset(
    (
        *(
            ".avif",
            ".bmp",
            ".dib",
            ".gif",
            ".j2k",
            ".jp2",
            ".jpeg",
            ".jpg",
            ".pbm",
            ".pgm",
            ".png",
            ".pnm",
        ),
        *(".ppm", ".tga", ".tif", ".tiff", ".webp"),
    )
)
"""What counts as an image in a directory; a file named on the command line is tried whatever its
name."""


@dataclass(frozen=True)
class Job:
    """One image and the stem of its results' file names."""

    source: Path
    stem: str


@dataclass(frozen=True)
class Plan:
    """What there is to do, settled before any work starts.

    jobs       one for each distinct image, in the order given
    failures   one message for each argument that names nothing to read
    renamings  one message for each image whose results could not take the plain stem
    """

    jobs: tuple[Job, ...]
    failures: tuple[str, ...]
    renamings: tuple[str, ...]


def plan(arguments: Sequence[str], out: Path, endings: Sequence[str]) -> Plan:
    """The images that files, directories and globs name, each with a stem of its own.

    endings are what a stem gets, for example (".json", ".overlay.png"). Images of the same stem
    (from two directories, or a.jpg beside a.png) get numbers: a, a-2.

    CommandLineError if a result would overwrite an input.
    """
    sources: list[Path] = []
    failures: list[str] = []
    for argument in arguments:
        found, failure = _expand(argument)
        sources += found
        failures += failure
    distinct = {os.path.realpath(source): source for source in reversed(sources)}
    sources = [
        source for source in dict.fromkeys(sources) if distinct[os.path.realpath(source)] is source
    ]

    jobs, renamings = _name(sources, endings)
    for job in jobs:
        for ending in endings:
            target = os.path.realpath(out / (job.stem + ending))
            if target in distinct:
                raise CommandLineError(
                    f"{out / (job.stem + ending)} would overwrite the input {distinct[target]} "
                    "(choose another directory with --out)"
                )
    return Plan(tuple(jobs), tuple(failures), tuple(renamings))


def _expand(argument: str) -> tuple[list[Path], list[str]]:
    path = Path(argument)
    if path.is_dir():
        try:
            entries = sorted(path.iterdir())
        except OSError as error:
            return [], [
                f"{argument}: the directory cannot be read: {error.strerror} (check its "
                "permissions)"
            ]
        files = [e for e in entries if e.suffix.lower() in SUFFIXES and not e.name.startswith(".")]
        if not files:
            return [], [
                f"{argument}: no image in this directory (it is not searched any deeper; use a "
                "glob for that)"
            ]
        return files, []
    if os.path.lexists(path):
        return [path], []
    if glob.has_magic(argument):
        matches = [Path(m) for m in sorted(glob.glob(argument, recursive=True))]
        files = [m for m in matches if not m.is_dir()]
        if files:
            return files, []
        return [], [f"{argument}: no file matches (check the pattern)"]
    return [], [f"{argument}: no such file or directory (check the path)"]


def _name(sources: Sequence[Path], endings: Sequence[str]) -> tuple[list[Job], list[str]]:
    # Case is ignored: on some file systems A.json and a.json are one file.
    plain = {(source.stem + ending).casefold() for source in sources for ending in endings}
    owner: dict[str, Path] = {}
    jobs: list[Job] = []
    renamings: list[str] = []
    for source in sources:
        stem, number = source.stem, 1
        while _clash(stem, number, endings, owner, plain):
            number += 1
            stem = f"{source.stem}-{number}"
        names = [(stem + ending).casefold() for ending in endings]
        if number > 1:
            first = next(
                owner[key]
                for key in ((source.stem + ending).casefold() for ending in endings)
                if key in owner
            )
            renamings.append(
                f"{source}: its results are named {stem}.*, because {first} has {source.stem}.*"
            )
        owner.update(dict.fromkeys(names, source))
        jobs.append(Job(source, stem))
    return jobs, renamings


def _clash(
    stem: str, number: int, endings: Sequence[str], owner: dict[str, Path], plain: set[str]
) -> bool:
    names = [(stem + ending).casefold() for ending in endings]
    # A numbered name must not take the plain name of a later image either.
    return any(name in owner or (number > 1 and name in plain) for name in names)
