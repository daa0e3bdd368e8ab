"""The image files that a command line names, and the names of their results."""

from __future__ import annotations

import glob
import os
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain, count
from pathlib import Path

from samfast.cli.console import CommandLineError, Console, printable

_ENDINGS = "avif bmp dib gif j2k jp2 jpeg jpg pbm pgm png pnm ppm tga tif tiff webp"
SUFFIXES = frozenset(f".{ending}" for ending in _ENDINGS.split())
"""Endings of images in a directory. A file named on the command line may have any ending."""


@dataclass(frozen=True)
class ImageFile:
    """An image file, and the stem of its results' file names."""

    path: Path
    stem: str


def plan(
    arguments: Sequence[str], out: Path, endings: Sequence[str], console: Console
) -> tuple[list[ImageFile], int]:
    """The distinct images that arguments name, and the number of arguments that name none.

    endings are appended to a stem, for example (".json", ".overlay.png"). Images of the same stem
    (from two directories, or a.jpg beside a.png) get numbers: a, a-2. Prints a message for each of
    them and for each argument that names no image.

    CommandLineError if a result would overwrite an input.
    """
    paths, failed = _expand(arguments, console)
    inputs = {os.path.realpath(path): path for path in paths}
    files = _with_stems(paths, endings, console)
    for file in files:
        for target in (out / (file.stem + ending) for ending in endings):
            overwritten = inputs.get(os.path.realpath(target))
            if overwritten is not None:
                raise CommandLineError(
                    f"{target} would overwrite the input {overwritten} (choose another directory "
                    "with --out)"
                )
    return files, failed


def photos(arguments: Sequence[str], console: Console, if_none: str) -> tuple[list[Path], int]:
    """The distinct image files that arguments name, and the number of arguments that name none.

    Prints a message for each of the latter; CommandLineError, with `if_none`, without any file.
    """
    paths, failed = _expand(arguments, console)
    if not paths:
        raise CommandLineError(f"{if_none} (give files, directories or globs of images)")
    return paths, failed


def _expand(arguments: Sequence[str], console: Console) -> tuple[list[Path], int]:
    paths: dict[str, Path] = {}
    failed = 0
    for argument in arguments:
        try:
            for path in _matches(argument):
                paths.setdefault(os.path.realpath(path), path)
        except FileNotFoundError as error:
            failed += 1
            console.warn(f"{printable(argument)}: {error}")
    return list(paths.values()), failed


def _matches(argument: str) -> list[Path]:
    """The files that an argument names; FileNotFoundError, with the reason, if it names none."""
    path = Path(argument)
    if path.is_dir():
        try:
            entries = sorted(path.iterdir())
        except OSError as error:
            raise FileNotFoundError(
                f"the directory cannot be read: {error.strerror} (check its permissions)"
            ) from error
        files = [e for e in entries if e.suffix.lower() in SUFFIXES and not e.name.startswith(".")]
        reason = "no image in this directory (subdirectories are not searched; use a glob for that)"
    elif os.path.lexists(path):
        return [path]
    elif glob.has_magic(argument):
        matches = map(Path, sorted(glob.glob(argument, recursive=True)))
        files = [match for match in matches if not match.is_dir()]
        reason = "no file matches (check the pattern)"
    else:
        files, reason = [], "no such file or directory (check the path)"
    if not files:
        raise FileNotFoundError(reason)
    return files


def _with_stems(paths: Sequence[Path], endings: Sequence[str], console: Console) -> list[ImageFile]:
    """Each path with a stem such that no two results have one name; prints changed stems."""
    # Names are compared without case: on some file systems A.json and a.json are one file.
    plain = {key for path in paths for key in _keys(path.stem, endings)}
    taken: dict[str, Path] = {}
    files: list[ImageFile] = []
    for path in paths:
        stem = next(
            stem
            for stem in chain([path.stem], (f"{path.stem}-{number}" for number in count(2)))
            # A numbered stem must not take the plain stem of a later image either.
            if not any(
                key in taken or (stem != path.stem and key in plain) for key in _keys(stem, endings)
            )
        )
        if stem != path.stem:
            first = next(taken[key] for key in _keys(path.stem, endings) if key in taken)
            console.warn(
                printable(
                    f"{path}: its results are named {stem}.*, because {first} has {path.stem}.*"
                )
            )
        taken.update(dict.fromkeys(_keys(stem, endings), path))
        files.append(ImageFile(path, stem))
    return files


def _keys(stem: str, endings: Sequence[str]) -> list[str]:
    return [(stem + ending).casefold() for ending in endings]
