"""`samfast bench`: recipes and rivals one after the other, each in a process of its own."""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from samfast.bench import process
from samfast.bench.ceilings import FORMATS, formats_of, least_seconds
from samfast.bench.environment import stamp
from samfast.bench.job import REFERENCE, Job, blank
from samfast.bench.points import RULES
from samfast.bench.prepare import Preparation, half_dtypes, prepare
from samfast.bench.process import WorkerError
from samfast.bench.results import finished, is_finished
from samfast.bench.rivals import RIVALS
from samfast.bench.row import measure_rows
from samfast.bench.sampling import points_dir
from samfast.bench.scoring import Scoring
from samfast.checkpoints import resolve
from samfast.checkpoints.known_checkpoints import KNOWN
from samfast.checkpoints.lookup import place
from samfast.errors import DatasetError, InputError, RecipeError
from samfast.model.config import CONFIGS
from samfast.recipes import RECIPES, choose, get, refusal

Row = dict[str, Any]
Ask = Callable[..., Iterator[Row]]
"""As `samfast.bench.process.ask`."""

INTERRUPTED = "interrupted"
"""The status of the row during which Ctrl-C came; there are none after it."""

SKIPPED = "skipped: the time was up"
"""The status of rows for which `seconds` did not suffice."""


def run(
    recipes: Sequence[str] | None = None,
    *,
    model: str = "vit_xs",
    checkpoint: str | None = None,
    device: str | None = None,
    batch_size: int | Sequence[int] | None = None,
    repeats: int = 5,
    data: str | os.PathLike[str] | None = None,
    images: str | os.PathLike[str] | None = None,
    annotations: str | os.PathLike[str] | None = None,
    point_rule: str = "seed",
    min_area: int = 0,
    limit: int | None = None,
    rivals_path: str | None = None,
    kernels: bool = False,
    cold: bool = False,
    restart: bool = False,
    resume: str | os.PathLike[str] | Sequence[Row] = (),
    timeout: float | None = None,
    seconds: float | None = None,
    in_process: bool = False,
    progress: Callable[[int], object] | None = None,
    on_rows: Callable[[list[Row]], object] | None = None,
    on_failure: Callable[[str, str], object] | None = None,
    ask: Ask | None = None,
) -> list[Row]:
    """Measure recipes (None: all there are) and rivals (`rival:<name>`, only when named), a row a
    batch size.

    checkpoint   as `samfast.load` takes it; None: the packaged weights of vit_xs, a known
                 checkpoint that is already in the user's cache, else random ones; each row's
                 `weights` says which
    batch_size   one or several, which a recipe's process measures one after the other; None: 1 on a
                 CPU, 8 on a GPU
    repeats      timed runs, at least; on a GPU as many as fit in two seconds, if those are more
    data         a data set to score on, as `samfast.bench.dataset.open_dataset` takes it; or images
                 and annotations
    point_rule, min_area, limit
                 how it is asked, see `samfast.bench.scoring.Scoring`
    rivals_path  a folder with checkouts of rivals that are not installed
    kernels      list the time of an encoder call by kernel in each row
    cold         give each recipe empty caches of its own, so that its first call compiles
                 everything
    restart      measure the first call in a second process too
    resume       rows, or a file of rows, of which the finished ones are kept if machine, versions,
                 settings and commit are the same; those that are not of this run are returned first
    timeout      seconds a row may take, and what is prepared for all, fp32's answers on a data set
                 included; one that takes longer has failed
    seconds      no row is started after so many, and none goes on
    in_process   measure in this process: quicker to start, but memory and first calls then mean
                 little
    progress     called with 1 after each row
    on_rows      called with all rows so far after each row
    on_failure   called with a recipe's name and the end of its process's stderr when it has failed
    ask          how a task is answered; None: in a process of its own
    returns      rows, whose keys `samfast.bench.job.blank` lists. A row whose status is not "ok"
                 has no figures: the recipe was refused, wrong, failed, skipped, or interrupted by
                 Ctrl-C, which keeps the rows before it

    Raises RecipeError for unknown names, InputError for an unknown model or values out of range,
    DatasetError for a data set that cannot be read: before anything is measured.
    """
    if model not in CONFIGS:
        raise InputError(f"unknown model {model!r}; there are {', '.join(CONFIGS)}")
    where = device or ("cuda" if torch.cuda.is_available() else "cpu")
    sizes = _batch_sizes(batch_size, where)
    if repeats < 1 or min(sizes) < 1:
        raise InputError(f"repeats={repeats}, batch_size={batch_size}; both must be at least 1")
    names, auto = (list(RECIPES), None) if recipes is None else _named(recipes, model, where, sizes)
    if any(limit is not None and limit <= 0 for limit in (timeout, seconds)):
        raise InputError(f"timeout={timeout}, seconds={seconds}; both must be more than 0")
    scoring, scored = _scoring((data, images, annotations), point_rule, min_area, limit)
    source, words = _weights(model, checkpoint)
    with tempfile.TemporaryDirectory(prefix="samfast-bench-") as folder:
        base = Job(
            recipe=REFERENCE,
            model=model,
            checkpoint=source,
            weights=words,
            device=where,
            batch_sizes=sizes,
            folder=folder,
            repeats=repeats,
            scoring=scoring,
            rivals_path=None if rivals_path is None else str(Path(rivals_path).absolute()),
            kernels=kernels,
            auto=auto,
        )
        ladder = _Ladder(
            base=base,
            names=names,
            clock=_Clock(timeout, seconds),
            scored=scored,
            ask=ask or (_ask_here if in_process else process.ask),
            cold=cold,
            restart=restart,
            on_row=progress or (lambda steps: None),
            on_rows=on_rows or (lambda rows: None),
            on_failure=on_failure,
        )
        kept = (
            finished(resume, stamp(where))
            if isinstance(resume, str | os.PathLike)
            else [dict(row) for row in resume]
        )
        return ladder.climb(kept)


@dataclass
class _Clock:
    """What time is left: for a row, and for all of them."""

    timeout: float | None
    seconds: float | None

    def __post_init__(self) -> None:
        self._end = None if self.seconds is None else time.monotonic() + self.seconds

    @property
    def up(self) -> bool:
        return self._end is not None and time.monotonic() >= self._end

    def for_a_row(self) -> float | None:
        left = [] if self._end is None else [max(0.0, self._end - time.monotonic())]
        return min([*left, *([] if self.timeout is None else [self.timeout])], default=None)


@dataclass
class _Prepared:
    """What the rows of the run share; failure says why there is nothing."""

    failure: str | None = None
    image_size: int = 0
    ceilings: Mapping[str, Any] | None = None


@dataclass
class _Ladder:
    """The rows of one run, in the order of names and batch sizes."""

    base: Job
    names: list[str]
    clock: _Clock
    scored: dict[str, Any] | None
    ask: Ask
    cold: bool
    restart: bool
    on_row: Callable[[int], object]
    on_rows: Callable[[list[Row]], object]
    on_failure: Callable[[str, str], object] | None

    def __post_init__(self) -> None:
        self._rows: dict[tuple[str, int], Row] = {}
        self._others: list[Row] = []
        self._prepared: _Prepared | None = None

    def climb(self, kept: list[Row]) -> list[Row]:
        """Measure what is not among the rows kept of an earlier run."""
        self._keep(kept)
        for name in self.names:
            missing = tuple(n for n in self.base.batch_sizes if (name, n) not in self._rows)
            try:
                if missing:
                    self._measure(replace(self.base, recipe=name, batch_sizes=missing))
            except KeyboardInterrupt:
                stopped = next((n for n in missing if (name, n) not in self._rows), missing[-1])
                self._rows.setdefault(
                    (name, stopped), blank(replace(self.base, recipe=name), stopped, INTERRUPTED)
                )
                break
        return self.rows()

    def rows(self) -> list[Row]:
        """All rows so far, with their ratios to rivals."""
        order = [(name, n) for name in self.names for n in self.base.batch_sizes]
        found = [*self._others, *(self._rows[key] for key in order if key in self._rows)]
        for row in found:
            row["ratio_to"] = _ratios(row, found, "encoder_images_per_second")
            row["whole_ratio_to"] = _ratios(row, found, "images_per_second")
        return found

    def _keep(self, kept: list[Row]) -> None:
        for row in kept:
            ours = row["model"] == self.base.model and row["weights"] == self.base.weights
            key = (row["recipe"], row["batch_size"])
            if (
                not ours
                or row["recipe"] not in self.names
                or row["batch_size"] not in self.base.batch_sizes
            ):
                self._others.append(row)
            elif is_finished(row) and not self._lacks(row):
                self._rows[key] = row

    def _lacks(self, row: Row) -> bool:
        """Whether a row of an earlier run has not got all that is asked for now."""
        if row["status"] != "ok":
            return False
        rival = row["recipe"] in RIVALS
        first = row.get("first_call_seconds") is not None
        return (
            (self.base.kernels and row.get("kernels") is None)
            or (not rival and not self._scored_alike(row))
            or (self.restart and first and row.get("second_process") is None)
        )

    def _scored_alike(self, row: Row) -> bool:
        """Whether a row of an earlier run is scored on the same data set, if any, by the same
        rule.
        """
        accuracy = row.get("accuracy")
        if self.scored is None or accuracy is None:
            return self.scored is None
        return all(accuracy.get(key) == value for key, value in self.scored.items())

    def _measure(self, job: Job) -> None:
        """The rows of one recipe; a process that fails at one batch size is followed by one for the
        others.
        """
        reason = None
        if job.recipe not in RIVALS:
            reason = refusal(get(job.recipe), torch.device(job.device))
        if reason is not None:
            self._all(job, f"refused: {reason}")
            return
        if self.clock.up:
            self._all(job, SKIPPED)
            return
        prepared = self._prepare()
        if prepared.failure is not None:
            self._all(job, SKIPPED if self.clock.up else prepared.failure)
            return
        with tempfile.TemporaryDirectory(dir=job.folder) as own:
            environment = _caches(Path(own)) if self.cold else {}
            left = job.batch_sizes
            while left and not self.clock.up:
                task = replace(job, batch_sizes=left)
                try:
                    for row in self.ask(
                        task, timeout=self.clock.for_a_row(), environment=environment
                    ):
                        self._add(_against(row, prepared, job.model))
                        left = left[1:]
                    self._all(
                        replace(job, batch_sizes=left),
                        "failed: its process ended without an answer",
                    )
                    left = ()
                except WorkerError as error:
                    if self.on_failure is not None:
                        self.on_failure(job.recipe, error.log)
                    status = SKIPPED if self.clock.up else f"failed: {error}"
                    self._all(replace(job, batch_sizes=left[:1]), status)
                    left = left[1:]
            self._all(replace(job, batch_sizes=left), SKIPPED)
            if self.restart:
                self._again(job, environment)

    def _prepare(self) -> _Prepared:
        """Weights, answers to compare with and ceilings, when first needed."""
        if self._prepared is None:
            try:
                (told,) = self.ask(
                    _preparation(self.base, self.names),
                    timeout=self.clock.for_a_row(),
                    environment={},
                )
                self._prepared = _Prepared(None, told["image_size"], told["ceilings"])
            except (WorkerError, ValueError) as error:
                self._prepared = _Prepared(
                    f"failed: no {REFERENCE} answers to compare with: {error}"
                )
                if self.on_failure is not None:
                    self.on_failure(REFERENCE, getattr(error, "log", ""))
        return self._prepared

    def _again(self, job: Job, environment: Mapping[str, str]) -> None:
        """The first call once more, in a second process."""
        row = self._rows[job.recipe, job.batch_sizes[0]]
        if row["status"] != "ok" or row["first_call_seconds"] is None or self.clock.up:
            return
        task = replace(job, batch_sizes=job.batch_sizes[:1], first_only=True)
        try:
            (second,) = self.ask(task, timeout=self.clock.for_a_row(), environment=environment)
        except (WorkerError, ValueError) as error:
            if self.on_failure is not None:
                self.on_failure(job.recipe, getattr(error, "log", str(error)))
            return
        row["second_process"] = {key: second[key] for key in ("first_call_seconds", "cache")}
        self.on_rows(self.rows())

    def _all(self, job: Job, status: str) -> None:
        for batch_size in job.batch_sizes:
            self._add(blank(job, batch_size, status))

    def _add(self, row: Row) -> None:
        self._rows[row["recipe"], row["batch_size"]] = row
        self.on_row(1)
        self.on_rows(self.rows())


def _against(row: Row, prepared: _Prepared, model: str) -> Row:
    """The row with the ceilings of its batch size, and its share of them."""
    assert prepared.ceilings is not None
    row["ceilings"] = ceilings = prepared.ceilings[str(row["batch_size"])]
    rate = row["encoder_images_per_second"]
    if rate is not None:
        config = replace(CONFIGS[model], image_size=prepared.image_size)
        rival = RIVALS.get(row["recipe"])
        recipe = None if rival is not None else get(row["recipe"])
        dtype = rival.dtype if rival is not None else get(row["recipe"]).dtype
        least = least_seconds(config, ceilings, dtype, recipe)
        row["share_of_ceiling"] = None if least is None else least * rate
    return row


def _ratios(row: Row, rows: list[Row], speed: str) -> dict[str, float]:
    """This row's speed relative to each rival's for the same model, weights and batch size."""
    own = row.get(speed)
    same = ("model", "weights", "batch_size")
    return {
        rival["recipe"].removeprefix("rival:"): own / rival[speed]
        for rival in rows
        if own is not None
        and rival["recipe"] in RIVALS
        and rival.get(speed) is not None
        and all(rival[key] == row[key] for key in same)
    }


def _preparation(base: Job, names: list[str]) -> Preparation:
    recipes = [name for name in names if name not in RIVALS]
    dtypes = [RIVALS[name].dtype for name in names if name in RIVALS]
    formats = {"bf16", "fp8", "int8"} if base.device.startswith("cuda") else set()
    for name in recipes:
        formats |= formats_of(get(name))
    formats |= {FORMATS[dtype] for dtype in dtypes}
    return Preparation(
        model=base.model,
        checkpoint=base.checkpoint,
        device=base.device,
        batch_sizes=base.batch_sizes,
        folder=base.folder,
        dtypes=half_dtypes(recipes, dtypes),
        formats=tuple(sorted(formats)),
        scoring=base.scoring if recipes else None,  # rivals are not scored
    )


def _ask_here(
    task: Job | Preparation,
    *,
    timeout: float | None = None,
    environment: Mapping[str, str] | None = None,
) -> Iterator[Row]:
    """As `process.ask`, in this process: it cannot be stopped, and its caches are its own."""
    if environment:
        raise InputError("cold caches need processes of their own; leave in_process out")
    try:
        yield from [prepare(task)] if isinstance(task, Preparation) else measure_rows(task)
    except Exception as error:
        raise WorkerError(f"{type(error).__name__}: {error}".splitlines()[0], str(error)) from error


def _caches(folder: Path) -> dict[str, str]:
    """Empty places for all that torch, Triton and samfast keep of what was compiled."""
    names = {
        "SAMFAST_CACHE": "samfast",
        "TORCHINDUCTOR_CACHE_DIR": "inductor",
        "TRITON_CACHE_DIR": "triton",
    }
    return {variable: str(folder / name) for variable, name in names.items()}


def _batch_sizes(batch_size: int | Sequence[int] | None, device: str) -> tuple[int, ...]:
    if batch_size is None:
        return (8 if device.startswith("cuda") else 1,)
    if isinstance(batch_size, int):
        return (batch_size,)
    if not batch_size:
        raise InputError("batch_size is empty; give at least one")
    return tuple(dict.fromkeys(batch_size))


def _named(
    recipes: Sequence[str], model: str, device: str, sizes: Sequence[int]
) -> tuple[list[str], str | None]:
    """The names, each once, and the one that "auto" among them stands for."""
    unknown = [
        name for name in recipes if name not in RECIPES and name not in RIVALS and name != "auto"
    ]
    if unknown or not recipes:
        what = f"unknown recipe {unknown[0]!r}" if unknown else "no recipe named"
        raise RecipeError(f"{what}; there are auto, {', '.join((*RECIPES, *RIVALS))}")
    chosen = None
    if "auto" in recipes:
        chosen = choose(torch.device(device), model=model, batch_size=max(sizes)).name
    return list(
        dict.fromkeys(chosen if name == "auto" and chosen else name for name in recipes)
    ), chosen


def _scoring(
    places: tuple[str | os.PathLike[str] | None, ...],
    point_rule: str,
    min_area: int,
    limit: int | None,
) -> tuple[Scoring | None, Row | None]:
    """What to score on, with places that other processes find too, and its identity; None without a
    data set.
    """
    if point_rule not in RULES:
        raise InputError(f"point_rule={point_rule!r}; there are {', '.join(RULES)}")
    if min_area < 0 or (limit is not None and limit < 1):
        raise InputError(f"limit={limit}, min_area={min_area}; they must be at least 1 and 0")
    if all(place is None for place in places):
        return None, None
    data, images, annotations = (
        None if place is None else str(Path(place).absolute()) for place in places
    )
    # The points are no recipe's own: where caches are cold they are the user's all the same.
    scoring = Scoring(data, images, annotations, point_rule, min_area, limit, str(points_dir()))
    found = scoring.open()
    if not any(image.annotations for image in found.images[:limit]):
        raise DatasetError(
            f"{found.name}: the first {limit} images have no annotations to score; raise the limit"
        )
    return scoring, scoring.identity(found)


def _weights(model: str, checkpoint: str | None) -> tuple[str, str]:
    """The checkpoint to load, and what a row says of it. Nothing is downloaded to measure a
    speed.
    """
    if checkpoint == "random":
        return "random", "random"
    if checkpoint is not None:
        path = Path(checkpoint)
        return str(path.absolute()) if path.exists() else checkpoint, f"checkpoint {path.name}"
    known = KNOWN.get(model)
    if known is None or not place(known).is_file():
        return "random", "random"
    return str(resolve(model)), "packaged" if known.url is None else f"cached {known.file}"
