"""`samfast bench`: the recipes one after the other, each in a process of its own."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch

from samfast.bench.rivals import RIVALS
from samfast.bench.row import REFERENCE, Job, blank, measure_row
from samfast.errors import InputError, RecipeError
from samfast.model.config import CONFIGS
from samfast.recipes import RECIPES, choose, get, refusal
from samfast.weights import resolve
from samfast.weights.known import KNOWN
from samfast.weights.lookup import place

Measure = Callable[[Job], dict[str, Any]]

INTERRUPTED = "interrupted"
"""The status of the row during which Ctrl-C came; there are none after it."""


def run(
    recipes: Sequence[str] | None = None,
    *,
    model: str = "vit_xs",
    checkpoint: str | None = None,
    device: str | None = None,
    batch_size: int | None = None,
    repeats: int = 5,
    data: str | None = None,
    limit: int | None = None,
    progress: Callable[[int], object] | None = None,
    measure: Measure | None = None,
) -> list[dict[str, Any]]:
    """Measure recipes (None: all there are) and rivals (`rival:<name>`, only when named), a row each.

    checkpoint   as `samfast.load` takes it; None: the packaged weights of vit_xs, a known checkpoint that is
                 already in the user's cache, else random ones; each row's `weights` says which
    batch_size   None: 1 on a CPU, 8 on a GPU
    data, limit  a data set to score `miou` on, its first so many images
    progress     called with 1 after each row
    measure      how a job becomes a row; None: in a process of its own
    returns      the keys of `samfast bench --json`. A row whose status is not "ok" has no figures: the recipe was
                 refused, wrong, failed, or interrupted by Ctrl-C, which keeps the rows before it

    Raises RecipeError for unknown names, InputError for an unknown model or values out of range.
    """
    names = list(RECIPES) if recipes is None else list(dict.fromkeys(_named(recipes, device)))
    if model not in CONFIGS:
        raise InputError(f"unknown model {model!r}; there are {', '.join(CONFIGS)}")
    if repeats < 1 or (batch_size is not None and batch_size < 1):
        raise InputError(f"repeats={repeats}, batch_size={batch_size}; both must be at least 1")
    where = device or ("cuda" if torch.cuda.is_available() else "cpu")
    source, words = _weights(model, checkpoint)
    in_process = measure or _in_a_process
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory(prefix="samfast-bench-") as folder:
        base = Job(
            recipe=REFERENCE,
            model=model,
            checkpoint=source,
            weights=words,
            device=where,
            batch_size=batch_size or (8 if where.startswith("cuda") else 1),
            reference=str(Path(folder) / "reference.safetensors"),
            repeats=repeats,
            data=data,
            limit=limit,
        )
        reference: dict[str, Any] | None = None
        for name in names:
            job = replace(base, recipe=name)
            try:
                reason = None if name in RIVALS else refusal(get(name), torch.device(where))
                if reason is None and reference is None:
                    reference = in_process(replace(base, write=True))
                if reason is not None:
                    rows.append(blank(job, f"refused: {reason}"))
                elif reference is not None and reference["status"] != "ok":
                    rows.append(
                        blank(job, f"failed: no {REFERENCE} answers to compare with: {reference['status']}")
                    )
                else:
                    rows.append(in_process(job))
            except KeyboardInterrupt:
                rows.append(blank(job, INTERRUPTED))
                break
            if progress is not None:
                progress(1)
    return rows


def _named(recipes: Sequence[str], device: str | None) -> list[str]:
    unknown = [name for name in recipes if name not in RECIPES and name not in RIVALS and name != "auto"]
    if unknown or not recipes:
        what = f"unknown recipe {unknown[0]!r}" if unknown else "no recipe named"
        raise RecipeError(f"{what}; there are auto, {', '.join((*RECIPES, *RIVALS))}")
    place = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    return [choose(place).name if name == "auto" else name for name in recipes]


def _weights(model: str, checkpoint: str | None) -> tuple[str, str]:
    """The checkpoint to load, and what a row says of it. Nothing is downloaded to measure a speed."""
    if checkpoint == "random":
        return "random", "random"
    if checkpoint is not None:
        return checkpoint, f"checkpoint {Path(checkpoint).name}"
    known = KNOWN.get(model)
    if known is None or not place(known).is_file():
        return "random", "random"
    return str(resolve(model)), "packaged" if known.url is None else f"cached {known.file}"


def _in_a_process(job: Job) -> dict[str, Any]:
    """Measured apart, so that peak memory, caches and a crash are its own."""
    with tempfile.TemporaryDirectory(prefix="samfast-bench-") as folder:
        question, answer = Path(folder) / "job.json", Path(folder) / "row.json"
        question.write_text(json.dumps(asdict(job)))
        command = [sys.executable, "-m", "samfast.bench.worker", str(question), str(answer)]
        worker = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
        try:
            _, complaint = worker.communicate()
        except BaseException:
            worker.terminate()
            worker.wait()
            raise
        if worker.returncode == 130:
            raise KeyboardInterrupt
        if worker.returncode or not answer.is_file():
            lines = complaint.strip().splitlines() or [f"exit code {worker.returncode}, without a word"]
            return blank(job, f"failed: {lines[-1]}")
        row: dict[str, Any] = json.loads(answer.read_text())
        return row


__all__ = ["INTERRUPTED", "measure_row", "run"]
