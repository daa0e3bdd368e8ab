"""Measurements of the recipes: their speed on devices, and their loss of accuracy on checkpoints.

The packaged tables (`data/speed.json`, `data/accuracy.json`) are written by
`benchmarks/make_tables.py` from the committed results, never by hand. `samfast calibrate` writes a
file per checkpoint to the user's cache.
"""

from __future__ import annotations

import contextlib
import functools
import json
import logging
import math
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from torch import nn

from samfast.atomic_files import atomic_write
from samfast.checkpoints.fingerprint import fingerprint
from samfast.device.machine import cpu_kind_of, versions
from samfast.model.sam import Sam
from samfast.recipes.recipe import Recipe
from samfast.recipes.table import RECIPES
from samfast.user_cache import cache_dir

FORMAT = 1
"""Version of the files; files of other versions are not read."""

MINIMUM_PHOTOS = 8
"""Fewer photos are no evidence: the loss on one kind of photo says little about others."""

ARITHMETIC = {"int8": 1, "fp8": 1, "2:4": 1}
"""Raised when a step's arithmetic changes, so that earlier measurements no longer count."""

DATA = Path(__file__).parent / "data"
"""The folder of the packaged tables."""

_LOG = logging.getLogger(__name__)


class Measured:
    """A row with the stamp of `samfast.bench.environment`."""

    environment: dict[str, Any]

    @property
    def date(self) -> str:
        """Of the measurement, YYYY-MM-DD."""
        return str(self.environment.get("date", "undated"))[:10]


@dataclass(frozen=True)
class Speed(Measured):
    """The speed of a recipe's encoder on one device.

    recipe              a name in RECIPES; definition, its `encoder_settings` when it was measured
    batch_size          images encoded at a time
    gpu                 its name, None for a CPU; capability, its compute capability, "9.0", where
                        known
    images_per_second   of the encoder; peak_bytes, the memory it took, None where not measured
    compile_seconds     of the first call, 0 without compilation
    """

    recipe: str
    definition: dict[str, Any]
    model: str
    batch_size: int
    gpu: str | None
    capability: str | None
    images_per_second: float
    peak_bytes: int | None
    compile_seconds: float | None
    environment: dict[str, Any]

    @property
    def cpu_kind(self) -> str | None:
        """The kind of the processor (`samfast.device.machine.cpu_kind`); None for a GPU's row."""
        if self.gpu is not None:
            return None
        kind = self.environment.get("cpu_kind")
        return str(kind or cpu_kind_of(str(self.environment.get("cpu"))))


@dataclass(frozen=True)
class Evidence(Measured):
    """The measured loss of a lossy recipe on one checkpoint.

    fingerprint  of the checkpoint (`checkpoint_fingerprint`); checkpoint, its name for people;
                 model, its variant
    recipe       that was run; rounding, the name of what it rounds (`rounding`)
    kind         "miou": scored against annotated masks, "agreement": against fp32 on photos without
                 annotations
    loss_points  compared with the budget, in points of mean IoU: for "miou" the largest loss among
                 point and box prompts; for "agreement" the upper end of a 95 % interval
                 (`samfast.bench.agreement`)
    photos       their number; photo_set, their name
    details      the other measured figures
    source       "packaged", or the file of the row; not written to it
    """

    fingerprint: str
    checkpoint: str
    model: str
    recipe: str
    rounding: str
    kind: str
    loss_points: float
    photos: int
    photo_set: str
    details: dict[str, Any]
    environment: dict[str, Any]
    source: str = "packaged"


def rounding(recipe: Recipe) -> str:
    """A name for what a recipe rounds and how, the only part of it that can cost accuracy.

    Tests hold attention, compilation, fusion and graphs within the rounding of the dtype; so
    evidence for a rounding is valid for every recipe that rounds the same.
    """
    parts = [str(recipe.dtype).removeprefix("torch.")]
    for step, layers in (
        (recipe.quantize, recipe.quantized_layers),
        (recipe.sparsify, recipe.sparse_layers),
    ):
        if step is not None:
            parts.append(f"{step} (arithmetic {ARITHMETIC[step]}) of {'+'.join(sorted(layers))}")
    return ", ".join(parts)


def checkpoint_fingerprint(sam: Sam, encoder: str) -> str:
    """A fingerprint of all weights of a model before a recipe is applied.

    A loss is measured on masks, so it depends on the decoder too: many fine-tuned checkpoints have
    the public encoder and another decoder.

    encoder  the encoder's fingerprint, `SamFast.fingerprint`
    """
    return fingerprint(nn.ModuleList([sam.prompt_encoder, sam.mask_decoder]), encoder)


def speeds() -> tuple[Speed, ...]:
    """The packaged rows whose recipe still has the encoder that was measured."""
    return tuple(
        row
        for row in packaged_speeds()
        if row.recipe in RECIPES and RECIPES[row.recipe].encoder_settings == row.definition
    )


def evidence(checkpoint: str) -> tuple[Evidence, ...]:
    """The rows of the checkpoint of that fingerprint, packaged and of the user's cache.

    A file or row of the cache that cannot be read, or that another samfast or another definition of
    its recipe made, is left out, with one logged line.
    """
    packaged = tuple(row for row in packaged_evidence() if row.fingerprint == checkpoint)
    return packaged + calibrated(checkpoint)


def known_fingerprints() -> tuple[str, ...]:
    """The checkpoints that have evidence, packaged or in the user's cache."""
    folder = calibrated_dir()
    cached = sorted(path.stem for path in folder.glob("*.json")) if folder.is_dir() else []
    return tuple(dict.fromkeys((*(row.fingerprint for row in packaged_evidence()), *cached)))


@functools.cache
def packaged_speeds() -> tuple[Speed, ...]:
    """The rows of `data/speed.json`."""
    return tuple(Speed(**row) for row in _packaged("speed.json"))


@functools.cache
def packaged_evidence() -> tuple[Evidence, ...]:
    """The rows of `data/accuracy.json` whose recipe still rounds as it did when they were
    measured.
    """
    return tuple(
        _evidence(row, "packaged") for row in _packaged("accuracy.json") if not _outdated(row)
    )


def packaged_text(rows: Iterable[Speed | Evidence]) -> str:
    """The text of a packaged table."""
    lines = ",\n".join(json.dumps(_plain(row)) for row in rows)
    return f'{{"format": {FORMAT}, "rows": [\n{lines}\n]}}\n'


def calibrated_dir() -> Path:
    """The folder of `samfast calibrate`'s files. It need not exist yet."""
    return cache_dir() / "calibrated"


def calibrated(checkpoint: str) -> tuple[Evidence, ...]:
    """The rows of a checkpoint in the user's cache that are still valid; see `evidence`."""
    path = _calibrated_file(checkpoint)
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return ()
    except (OSError, ValueError) as error:
        _ignored(path, f"it cannot be read ({type(error).__name__})")
        return ()
    listed = content.get("rows") if isinstance(content, dict) else None
    if not isinstance(listed, list) or content.get("format") != FORMAT:
        _ignored(path, f"it is not of format {FORMAT}")
        return ()
    this = versions()["samfast"]
    rows: list[Evidence] = []
    reasons: list[str] = []
    for raw in listed:
        try:
            row = _evidence(raw, str(path))
        except (TypeError, ValueError):
            reasons.append("a row is damaged")
            continue
        if row.fingerprint != checkpoint:
            reasons.append(f"the row of {row.recipe} is of another checkpoint")
        elif row.environment.get("samfast") != this:
            made = row.environment.get("samfast")
            reasons.append(f"the row of {row.recipe} was measured with samfast {made}, not {this}")
        elif _outdated(raw):
            reasons.append(f"the recipe {row.recipe} has changed since it was measured")
        else:
            rows.append(row)
    if reasons:
        _ignored(path, "; ".join(reasons))
    return tuple(rows)


def save_calibrated(rows: Iterable[Evidence]) -> Path:
    """Write the rows of one checkpoint to the user's cache; they replace older ones of the same
    rounding.

    returns  the file, written whole or not at all; OutputError when it cannot be written
    """
    new = list(rows)
    assert new and len({row.fingerprint for row in new}) == 1
    path = _calibrated_file(new[0].fingerprint)
    measured = {row.rounding for row in new}
    kept = [row for row in calibrated(new[0].fingerprint) if row.rounding not in measured]
    with contextlib.suppress(OSError):  # atomic_write reports it
        path.parent.mkdir(parents=True, exist_ok=True)
    content = {"format": FORMAT, "rows": [_plain(row) for row in (*kept, *new)]}
    atomic_write(path, (json.dumps(content, indent=1, allow_nan=False) + "\n").encode())
    return path


def _calibrated_file(checkpoint: str) -> Path:
    return calibrated_dir() / f"{checkpoint}.json"


def _packaged(name: str) -> list[dict[str, Any]]:
    path = DATA / name
    content = json.loads(path.read_text(encoding="utf-8"))
    assert content["format"] == FORMAT, path
    rows: list[dict[str, Any]] = content["rows"]
    return rows


def _plain(row: Speed | Evidence) -> dict[str, Any]:
    return {key: value for key, value in asdict(row).items() if key != "source"}


def _evidence(raw: Any, source: str) -> Evidence:
    """A row as it was written; TypeError or ValueError if it is damaged."""
    row = Evidence(**raw, source=source)
    texts = ("fingerprint", "checkpoint", "model", "recipe", "rounding", "kind", "photo_set")
    types = {**dict.fromkeys(texts, str), "photos": int, "details": dict, "environment": dict}
    whole = all(type(getattr(row, name)) is kind for name, kind in types.items())
    if not whole or row.kind not in ("miou", "agreement") or not math.isfinite(row.loss_points):
        raise ValueError("not a row of evidence")
    return row


def _outdated(raw: dict[str, Any]) -> bool:
    recipe = RECIPES.get(raw["recipe"])
    return recipe is None or rounding(recipe) != raw["rounding"]


@functools.cache  # logged once, however often the file is read
def _ignored(path: Path, reason: str) -> None:
    _LOG.warning("%s is not used, or not all of it: %s; run samfast calibrate again", path, reason)
