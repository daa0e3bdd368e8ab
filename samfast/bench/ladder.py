"""`samfast bench`: recipes and rivals one after the other, a process for each row."""

from __future__ import annotations

import logging
import os
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from itertools import product
from pathlib import Path
from typing import Any

import torch

from samfast.bench import worker
from samfast.bench.bench_job import REFERENCE, Job, blank
from samfast.bench.ceilings import least_seconds
from samfast.bench.environment import stamp
from samfast.bench.results import finished, is_finished
from samfast.bench.rivals import RIVALS
from samfast.bench.scoring import Scoring
from samfast.bench.worker import WorkerError
from samfast.checkpoints import resolve
from samfast.checkpoints.known_checkpoints import KNOWN
from samfast.checkpoints.lookup import place
from samfast.errors import InputError, RecipeError
from samfast.model.config import CONFIGS
from samfast.recipes import RECIPES, Recipe, choose, get, refusal

Row = dict[str, Any]
RunTask = Callable[..., Row]
"""As `samfast.bench.worker.run_task`."""

INTERRUPTED = "interrupted"
"""The status of the row during which Ctrl-C came; it is the last one."""

CACHES = ("SAMFAST_CACHE", "TORCHINDUCTOR_CACHE_DIR", "TRITON_CACHE_DIR")
"""Environment variables that name the caches of compiled code, empty for each row with `cold`."""

_LOG = logging.getLogger("samfast")


def run(
    recipes: Sequence[str] | None = None,
    *,
    model: str = "vit_xs",
    checkpoint: str | None = None,
    device: str | None = None,
    batch_size: int | Sequence[int] | None = None,
    repeats: int = 5,
    scoring: Scoring | None = None,
    rivals_path: str | None = None,
    kernels: bool = False,
    cold: bool = False,
    resume: str | os.PathLike[str] | Sequence[Row] = (),
    on_rows: Callable[[list[Row], Row], object] = lambda rows, latest: None,
    on_stage: Callable[[str], object] = lambda stage: None,
    run_task: RunTask = worker.run_task,
) -> list[Row]:
    """Measure recipes (None: all) and rivals (`rival:<name>`, if named) at each batch size.

    checkpoint   as `samfast.load` takes it; None: the packaged weights of vit_xs, a known
                 checkpoint in the user's cache, else random ones; each row's `weights` says which
    batch_size   one or several; None: 1 on a CPU, 8 on a GPU
    resume       rows, or a file of them. Finished rows of the same stamp and settings are kept;
                 those of another model or recipe are returned first
    on_rows      called after each row with all rows so far, and with that row
    on_stage     called with what comes next, as "fp32, batch 8: encoder"
    returns      rows with the keys of `bench_job.blank`. A row whose status is not "ok" has no
                 figures: refused, wrong, failed, or interrupted by Ctrl-C, after which come no more

    The other options are those of `Job`.
    Raises RecipeError for unknown names, InputError for an unknown model or batch size,
    DatasetError for a data set that cannot be read: before anything is measured.
    """
    if model not in CONFIGS:
        raise InputError(f"unknown model {model!r}; there are {', '.join(CONFIGS)}")
    where = device or ("cuda" if torch.cuda.is_available() else "cpu")
    sizes = _batch_sizes(batch_size, where)
    names, auto = _names(recipes, model, where, max(sizes))
    scored = None if scoring is None else scoring.identity(scoring.open())
    source, weights = _weights(model, checkpoint)
    with tempfile.TemporaryDirectory(prefix="samfast-bench-") as folder:
        base = Job(
            recipe=REFERENCE,
            batch_size=max(sizes),
            model=model,
            checkpoint=source,
            weights=weights,
            device=where,
            folder=folder,
            names=tuple(names),
            batch_sizes=sizes,
            repeats=repeats,
            scoring=scoring,
            rivals_path=None if rivals_path is None else str(Path(rivals_path).absolute()),
            kernels=kernels,
            cold=cold,
            auto=auto,
        )
        kept = finished(resume, stamp(where)) if isinstance(resume, str | os.PathLike) else resume
        ladder = _Ladder(base, run_task, on_stage)
        ladder.keep(kept, scored)
        return ladder.climb(on_rows)


@dataclass
class _Ladder:
    """The rows of one run, by recipe and batch size."""

    base: Job
    run_task: RunTask
    on_stage: Callable[[str], object]
    _rows: dict[tuple[str, int], Row] = field(default_factory=dict)
    _others: list[Row] = field(default_factory=list)
    _prepared: Row | str | None = None
    """What `prepare` answered, or why it failed."""

    def keep(self, rows: Sequence[Row], scored: Row | None) -> None:
        """Take over what an earlier run measured; scored: the identity of the data set, if any."""
        keys = set(product(self.base.names, self.base.batch_sizes))
        for row in map(dict, rows):
            key = (row["recipe"], row["batch_size"])
            ours = (row["model"], row["weights"]) == (self.base.model, self.base.weights)
            if not ours or key not in keys:
                self._others.append(row)
            elif is_finished(row) and self._has_all(row, scored):
                self._rows[key] = row

    def climb(self, on_rows: Callable[[list[Row], Row], object]) -> list[Row]:
        """Measure what is missing; all rows."""
        for name, size in product(self.base.names, self.base.batch_sizes):
            if (name, size) in self._rows:
                continue
            job = replace(self.base, recipe=name, batch_size=size)
            try:
                self._rows[name, size] = self._measure(job)
            except KeyboardInterrupt:
                self._rows[name, size] = blank(job, INTERRUPTED)
                break
            on_rows(self._all(), self._rows[name, size])
        return self._all()

    def _all(self) -> list[Row]:
        """All rows in order, with their ratios to rivals."""
        order = product(self.base.names, self.base.batch_sizes)
        rows = [*self._others, *(self._rows[key] for key in order if key in self._rows)]
        for row in rows:
            row["ratio_to"] = _ratios(row, rows)
        return rows

    def _has_all(self, row: Row, scored: Row | None) -> bool:
        """Whether an earlier row has all figures that are wanted now."""
        accuracy = row.get("accuracy")
        alike = (
            scored == accuracy  # both None
            if scored is None or accuracy is None
            else all(accuracy.get(key) == value for key, value in scored.items())
        )
        has_kernels = not self.base.kernels or row.get("kernels") is not None
        return row["status"] != "ok" or (has_kernels and (alike or row["recipe"] in RIVALS))

    def _measure(self, job: Job) -> Row:
        if job.recipe not in RIVALS:
            reason = refusal(get(job.recipe), torch.device(job.device))
            if reason is not None:
                return blank(job, f"refused: {reason}")
        if self._prepared is None:
            self._prepared = self._prepare()
        if isinstance(self._prepared, str):
            return blank(job, self._prepared)
        with tempfile.TemporaryDirectory(dir=job.folder) as caches:
            environment = {name: str(Path(caches) / name) for name in CACHES if job.cold}
            try:
                row = self.run_task(
                    "measure",
                    job,
                    environment=environment,
                    on_stage=lambda stage: self.on_stage(
                        f"{job.recipe}, batch {job.batch_size}: {stage}"
                    ),
                )
            except WorkerError as error:
                _LOG.info("%s: %s", job.recipe, error.log)
                return blank(job, f"failed: {error}")
        return _with_ceilings(row, self._prepared, job.model)

    def _prepare(self) -> Row | str:
        self.on_stage(f"{REFERENCE}'s answers, to compare with")
        try:
            return self.run_task("prepare", self.base)
        except WorkerError as error:
            _LOG.info("%s: %s", REFERENCE, error.log)
            return f"failed: no {REFERENCE} answers to compare with: {error}"


def _with_ceilings(row: Row, prepared: Row, model: str) -> Row:
    """The row with the ceilings of its batch size, and its share of them."""
    row["ceilings"] = prepared["ceilings"][str(row["batch_size"])]
    rate = row["encoder_images_per_second"]
    if rate is not None:
        config = replace(CONFIGS[model], image_size=prepared["image_size"])
        rival = RIVALS.get(row["recipe"])
        recipe = Recipe(dtype=rival.dtype) if rival is not None else get(row["recipe"])
        least = least_seconds(config, row["ceilings"], recipe)
        row["share_of_ceiling"] = None if least is None else least * rate
    return row


def _ratios(row: Row, rows: list[Row]) -> dict[str, float]:
    """The encoder's speed over each rival's at the same model, weights and batch size."""
    speed = "encoder_images_per_second"
    return {
        rival["recipe"].removeprefix("rival:"): row[speed] / rival[speed]
        for rival in rows
        if row.get(speed) is not None
        and rival["recipe"] in RIVALS
        and rival.get(speed) is not None
        and all(rival[key] == row[key] for key in ("model", "weights", "batch_size"))
    }


def _batch_sizes(batch_size: int | Sequence[int] | None, device: str) -> tuple[int, ...]:
    if batch_size is None:
        return (8 if device.startswith("cuda") else 1,)
    sizes = (batch_size,) if isinstance(batch_size, int) else tuple(dict.fromkeys(batch_size))
    if not sizes or min(sizes) < 1:
        raise InputError(f"batch_size={batch_size}; give one or several of at least 1")
    return sizes


def _names(
    recipes: Sequence[str] | None, model: str, device: str, batch_size: int
) -> tuple[list[str], str | None]:
    """The names, each once, and the recipe that "auto" among them chose."""
    if recipes is None:
        return list(RECIPES), None
    known = ("auto", *RECIPES, *RIVALS)
    unknown = [name for name in recipes if name not in known]
    if unknown or not recipes:
        what = f"unknown recipe {unknown[0]!r}" if unknown else "no recipe named"
        raise RecipeError(f"{what}; there are {', '.join(known)}")
    if "auto" not in recipes:
        return list(dict.fromkeys(recipes)), None
    auto = choose(torch.device(device), model=model, batch_size=batch_size).name
    return list(dict.fromkeys(auto if name == "auto" else name for name in recipes)), auto


def _weights(model: str, checkpoint: str | None) -> tuple[str, str]:
    """The checkpoint to load, and the row's words for it; nothing is downloaded for a benchmark."""
    if checkpoint == "random":
        return "random", "random"
    if checkpoint is not None:
        path = Path(checkpoint)
        return str(path.absolute()) if path.exists() else checkpoint, f"checkpoint {path.name}"
    known = KNOWN.get(model)
    if known is None or not place(known).is_file():
        return "random", "random"
    return str(resolve(model)), "packaged" if known.url is None else f"cached {known.file}"
