"""What all rows of a model share, made once in a process of its own: weights, answers to compare
with, ceilings.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

import samfast
from samfast.bench.ceilings import measure_ceilings
from samfast.bench.fp32_masks import Fp32Masks
from samfast.bench.job import REFERENCE
from samfast.bench.parity import Reference, answers, errors, first, sample_masks
from samfast.bench.scoring import Scoring
from samfast.engine import SamFast
from samfast.loading import random_weights
from samfast.model.config import CONFIGS
from samfast.recipes import RECIPES, get, refusal

_WEIGHTS, _MASKS = "weights.safetensors", "fp32_masks"
_HALF = {"bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass(frozen=True)
class Preparation:
    """What is to be prepared, for jobs with the same model, checkpoint, device and folder.

    batch_sizes  of all jobs
    dtypes       half precisions ("bfloat16", "float16") whose plain model is to be compared
    formats      number formats whose ceilings are to be measured
    scoring      the data set whose masks fp32 is asked for; None: those of the samples
    """

    model: str
    checkpoint: str | None
    device: str
    batch_sizes: tuple[int, ...]
    folder: str
    dtypes: tuple[str, ...] = ()
    formats: tuple[str, ...] = ()
    scoring: Scoring | None = None


def prepare(task: Preparation) -> dict[str, Any]:
    """Write weights and reference answers into the folder; returns image_size, ceilings by batch
    size as text.

    Images are encoded one by one: the plain attention writes out its scores, a gibibyte an image
    for ViT-H.
    """
    device, folder = torch.device(task.device), Path(task.folder)
    if task.checkpoint == "random":
        from safetensors.torch import save_file

        save_file(random_weights(CONFIGS[task.model]).state_dict(), folder / _WEIGHTS)
    most = max(task.batch_sizes)
    sam = _load(task, REFERENCE)
    config = replace(CONFIGS[task.model], image_size=sam.image_size)
    truth = answers(sam, most)
    masks = fp32_masks(task.folder)
    if task.scoring is not None:
        task.scoring.score(sam, 1, masks.save)
    else:
        for number, answer in sample_masks(sam, most):
            masks.save(number, answer)
    del sam
    found: dict[str, dict[int, dict[str, float]]] = {}
    for name in task.dtypes:
        recipe = replace(get(REFERENCE), dtype=_HALF[name])
        if refusal(recipe, device) is not None:
            continue
        own = answers(_load(task, recipe), most)
        found[name] = {n: errors(first(own, n), first(truth, n)) for n in task.batch_sizes}
    Reference(truth, found).save(folder)
    if device.type == "cuda":
        torch.cuda.empty_cache()
    return {
        "image_size": config.image_size,
        "ceilings": {
            str(n): measure_ceilings(config, n, device, task.formats) for n in task.batch_sizes
        },
    }


def fp32_masks(folder: str) -> Fp32Masks:
    """The masks that `prepare` has written, or is to write."""
    return Fp32Masks(Path(folder) / _MASKS)


def checkpoint_of(checkpoint: str | None, folder: str) -> str | None:
    """The checkpoint to load: the file of random weights that `prepare` has written, or the one
    given.
    """
    return str(Path(folder) / _WEIGHTS) if checkpoint == "random" else checkpoint


def half_dtypes(recipes: Iterable[str], rivals: Iterable[torch.dtype]) -> tuple[str, ...]:
    """The names of the half precisions among recipes and rivals."""
    dtypes = {RECIPES[name].dtype for name in recipes} | set(rivals)
    return tuple(name for name, dtype in _HALF.items() if dtype in dtypes)


def _load(task: Preparation, recipe: Any) -> SamFast:
    return samfast.load(
        task.model,
        checkpoint=checkpoint_of(task.checkpoint, task.folder),
        device=task.device,
        recipe=recipe,
        batch_size=1,
    )
