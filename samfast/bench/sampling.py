"""The points that ask for a data set's masks: found on threads, and kept in the user's cache.

A mask needs a distance transform, COCO val2017 has 36 thousand masks, and every recipe of a ladder
asks the same points. What was found lies in a file of JSON for each annotation file, by its
content, and rule.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from pathlib import Path
from typing import Any

from samfast.atomic_files import atomic_write
from samfast.bench.dataset import Annotation, Dataset
from samfast.bench.points import RULES, Point
from samfast.errors import SamfastError
from samfast.user_cache import cache_dir

VERSION = 1
"""Of the rules and the file; files of another are dropped."""

AHEAD = 8
"""Masks a thread that wait for it, at most: a mask of a large photo is megabytes."""

Points = dict[int, Point]
"""XY by `Annotation.number`."""

_LOG = logging.getLogger("samfast")


def points_dir() -> Path:
    """Where points are kept unless another folder is named."""
    return cache_dir() / "points"


def sample(
    dataset: Dataset,
    rule: str,
    *,
    limit: int | None = None,
    folder: str | os.PathLike[str] | None = None,
    threads: int | None = None,
    progress: Callable[[int], object] | None = None,
) -> Points:
    """The point of each mask of the first `limit` images, by the rule of that name in
    `samfast.bench.points.RULES`.

    folder    where they are kept; None: the user's cache
    threads   None: as many as there are processors for this process
    progress  called with the number of masks sampled since it was last called; not for those that
              were kept
    returns   points; none of a mask that is empty or damaged, of which scoring says so itself

    An interrupt keeps what was found so far. A file that is damaged or of another version is
    dropped with a logged line; a cache that cannot be written is said likewise, and merely slower.
    """
    if not dataset.digest:  # part of a set, or made by hand: nothing tells it from others
        return _find(_wanted(dataset, limit), rule, {}, threads, progress)
    path = Path(folder or points_dir()) / f"{dataset.digest[:32]}-{rule}.json"
    kept = _load(path, dataset.digest, rule)
    missing = [each for each in _wanted(dataset, limit) if each.number not in kept]
    found = dict(kept)
    try:
        _find(missing, rule, found, threads, progress)
    finally:
        if len(found) > len(kept):
            _save(path, dataset.digest, rule, found)
    return found


def _wanted(dataset: Dataset, limit: int | None) -> list[Annotation]:
    return [annotation for image in dataset.images[:limit] for annotation in image.annotations]


def _find(
    wanted: Sequence[Annotation],
    rule: str,
    found: Points,
    threads: int | None,
    progress: Callable[[int], object] | None,
) -> Points:
    """Add the points to `found`. scipy lets go of the interpreter in its transform, so threads
    suffice.
    """

    def point(annotation: Annotation) -> Point | None:
        try:
            mask = annotation.mask()
        except SamfastError:
            return None
        return RULES[rule](mask) if mask.any() else None

    if not wanted:
        return found
    count = threads or _processors()
    pool = ThreadPoolExecutor(min(count, len(wanted)), thread_name_prefix="samfast-points")
    try:
        rest = iter(wanted)
        waiting: list[tuple[Annotation, Future[Point | None]]] = [
            (each, pool.submit(point, each)) for each in islice(rest, AHEAD * count)
        ]
        while waiting:
            annotation, answer = waiting.pop(0)
            own = answer.result()
            if own is not None:
                found[annotation.number] = own
            waiting += [(each, pool.submit(point, each)) for each in islice(rest, 1)]
            if progress is not None:
                progress(1)
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
    return found


def _processors() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _load(path: Path, digest: str, rule: str) -> Points:
    """The points that are kept there; none of a file that is absent, damaged or of another
    version.
    """
    try:
        about = json.loads(path.read_bytes())
        if about["version"] != VERSION:
            raise ValueError("it is of another version")
        if about["annotations"] != digest or about["rule"] != rule:
            raise ValueError("it is of other annotations")
        if about["check"] != _check(about["points"]):
            raise ValueError("it is damaged")
        return {int(number): (x, y) for number, (x, y) in about["points"].items()}
    except (FileNotFoundError, NotADirectoryError):
        return {}
    except (OSError, LookupError, TypeError, AttributeError, ValueError, RecursionError) as error:
        reason = str(error) if type(error) is ValueError else "it is damaged"
        try:
            path.unlink(missing_ok=True)
        except OSError as other:
            reason += f" (and it cannot be deleted: {other.strerror})"
        _LOG.warning("dropped the sampled points %s: %s; they are sampled again", path, reason)
        return {}


def _save(path: Path, digest: str, rule: str, points: Points) -> None:
    values = {str(number): list(point) for number, point in sorted(points.items())}
    about = {
        "version": VERSION,
        "annotations": digest,
        "rule": rule,
        "check": _check(values),
        "points": values,
    }
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        atomic_write(path, json.dumps(about).encode())
    except OSError as error:  # OutputError is one
        _LOG.warning("the sampled points are not kept: %s", " ".join(str(error).split()))


def _check(points: dict[str, Any]) -> str:
    """What tells a changed digit, which would change scores without a word."""
    return hashlib.sha256(json.dumps(points, sort_keys=True).encode()).hexdigest()
