"""What is measured of one recipe, or of one rival: parity first, then speed and memory."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

import samfast
from samfast.bench.environment import stamp
from samfast.bench.memory import Peak
from samfast.bench.rivals import RIVALS, Encoder
from samfast.bench.timing import Timing, measure
from samfast.engine import SamFast
from samfast.errors import MissingExtraError, UnsupportedRecipeError
from samfast.images import LoadedImage, to_batch
from samfast.recipes import get
from samfast.types import Prompts, Size

REFERENCE = "fp32"
"""The recipe that the others are judged against: float32, the bias of attention written out."""

IMAGE_SIZE: Size = (480, 640)
OBJECTS = (7, 3, 12, 5, 9, 1, 14, 8, 6, 10, 4, 7, 20, 2, 5, 6)
"""Objects asked in image 0, 1, ...: ragged, a mean of 7.4, as in COCO val2017."""

TOLERANCE = {torch.float32: 1e-4, torch.float16: 0.05, torch.bfloat16: 0.2}
"""Largest relative error at which a row is still measured: above it the answer is not SAM's."""

TIMED = (
    "encoder_images_per_second: normalised pixels on the device to embeddings. images_per_second: decoded "
    f"{IMAGE_SIZE[1]}x{IMAGE_SIZE[0]} images in memory through resizing, encoder and decoder to masks of that size, "
    "three a point. Loading, compilation and warm-up outside; median of the runs"
)
TIMED_RIVAL = "encoder_images_per_second: normalised pixels on the device to embeddings; median of the runs"


@dataclass(frozen=True)
class Job:
    """One row to measure.

    recipe       a name in RECIPES, or one in RIVALS
    checkpoint   as `samfast.load` takes it; "random" for random weights
    weights      the row's words for those weights
    reference    a file of the fp32 answers to compare with; written instead of read if `write` is set
    repeats      timed runs
    data, limit  a COCO instances folder to score on, or None: no miou; its first so many images
    """

    recipe: str
    model: str
    checkpoint: str | None
    weights: str
    device: str
    batch_size: int
    reference: str
    write: bool = False
    repeats: int = 5
    data: str | None = None
    limit: int | None = None


def blank(job: Job, status: str) -> dict[str, Any]:
    """The row of a recipe that was not measured."""
    return {
        "recipe": job.recipe,
        "model": job.model,
        "batch_size": job.batch_size,
        "encoder_images_per_second": None,
        "images_per_second": None,
        "peak_memory_bytes": None,
        "compile_seconds": None,
        "miou": None,
        "max_relative_error": None,
        "weights": job.weights,
        "prompts_per_image": sum(_objects(job.batch_size)) / job.batch_size,
        "timed_region": TIMED_RIVAL if job.recipe in RIVALS else TIMED,
        "spread": None,
        "status": status,
        "environment": stamp(job.device),
    }


def measure_row(job: Job) -> dict[str, Any]:
    """The row: status "ok", or why there are no figures ("refused: ...", "wrong: ...")."""
    try:
        if job.write:
            return _write_reference(job)
        return _rival(job) if job.recipe in RIVALS else _recipe(job)
    except (UnsupportedRecipeError, MissingExtraError) as error:
        return blank(job, f"refused: {error}")


def relative_error(answer: Tensor, truth: Tensor) -> float:
    """||a - b|| / ||b|| in float64."""
    exact = truth.double()
    return float((answer.double().to(exact.device) - exact).norm() / exact.norm())


def _write_reference(job: Job) -> dict[str, Any]:
    from safetensors.torch import save_file

    sam = _load(job, REFERENCE, batch_size=1)
    save_file(_answers(sam, job.batch_size), job.reference)
    return blank(job, "ok")


def _recipe(job: Job) -> dict[str, Any]:
    from safetensors.torch import load_file

    recipe = get(job.recipe)
    device = torch.device(job.device)
    images, prompts = _images(job.batch_size), _prompts(job.batch_size)
    reference = load_file(job.reference)
    with Peak(device) as peak:
        sam = _load(job, job.recipe, job.batch_size)
        row = blank(job, "ok")
        answers = _answers(sam, job.batch_size)
        error = max(relative_error(answers[key], truth) for key, truth in reference.items())
        row["max_relative_error"] = error
        if not error <= TOLERANCE[recipe.dtype]:
            row["status"] = (
                f"wrong: relative error {error:.1e}, at most {TOLERANCE[recipe.dtype]:.0e} is allowed"
            )
            return row
        pixels = to_batch(images, sam.image_size).pixels.to(device)

        def encode() -> None:
            with torch.no_grad():
                sam.model.image_encoder(pixels)

        def answer() -> None:
            sam.predict(sam.embed(images), prompts)

        encoder = measure(encode, device, repeats=job.repeats)
        whole = measure(answer, device, repeats=job.repeats)
    row |= _speed(job, encoder) | {
        "images_per_second": job.batch_size / whole.median,
        "spread": max(encoder.spread, whole.spread),
        "compile_seconds": 0.0 if recipe.compile is None else encoder.first,
        "peak_memory_bytes": peak.bytes,
    }
    if job.data is not None:
        row["miou"] = _miou(sam, job)
    return row


def _rival(job: Job) -> dict[str, Any]:
    from safetensors.torch import load_file

    device = torch.device(job.device)
    reference = load_file(job.reference)
    state = samfast.load(
        job.model, checkpoint=job.checkpoint, device="cpu", recipe=REFERENCE
    ).model.state_dict()
    pixels = to_batch(_images(job.batch_size), 1024).pixels.to(device)
    with Peak(device) as peak, torch.no_grad():
        encode: Encoder = RIVALS[job.recipe](job.model, state, device)
        row = blank(job, "ok")
        error = relative_error(encode(pixels), reference["features"])
        row["max_relative_error"] = error
        if not error <= TOLERANCE[torch.float32]:
            row["status"] = f"wrong: relative error {error:.1e} against {REFERENCE}"
            return row
        encoder = measure(lambda: encode(pixels), device, repeats=job.repeats)
    return row | _speed(job, encoder) | {"spread": encoder.spread, "peak_memory_bytes": peak.bytes}


def _speed(job: Job, encoder: Timing) -> dict[str, Any]:
    return {"encoder_images_per_second": job.batch_size / encoder.median}


def _load(job: Job, recipe: str, batch_size: int) -> SamFast:
    return samfast.load(
        job.model, checkpoint=job.checkpoint, device=job.device, recipe=recipe, batch_size=batch_size
    )


def _answers(sam: SamFast, count: int) -> dict[str, Tensor]:
    """What parity is judged by: embeddings, logits and predicted IoU of the same images and points.

    Without TF32, which torch lets convolutions have: it would drown the differences between recipes. Timing is
    done under torch's own settings, as the stamp states them.
    """
    with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
        embeddings = sam.embed(_images(count))
        masks = sam.predict(embeddings, _prompts(count))
    return {
        "features": embeddings.features.float().cpu(),
        "low_res": torch.cat([each.low_res for each in masks]).float().cpu(),
        "iou": torch.cat([each.iou for each in masks]).float().cpu(),
    }


def _objects(count: int) -> list[int]:
    return [OBJECTS[i % len(OBJECTS)] for i in range(count)]


def _images(count: int) -> list[LoadedImage]:
    """Images with structure at every scale, the same in every process."""
    generator = np.random.default_rng(0)
    images = []
    for i in range(count):
        coarse = torch.from_numpy(generator.random((1, 3, 15, 20), dtype=np.float32))
        smooth = (
            torch.nn.functional.interpolate(coarse, IMAGE_SIZE, mode="bilinear")[0].permute(1, 2, 0).numpy()
        )
        noise = generator.random((*IMAGE_SIZE, 3), dtype=np.float32)
        images.append(LoadedImage((255 * (0.8 * smooth + 0.2 * noise)).astype(np.uint8), f"synthetic {i}"))
    return images


def _prompts(count: int) -> list[Prompts]:
    generator = np.random.default_rng(1)
    size = np.array(IMAGE_SIZE[::-1])
    return [
        Prompts(points=generator.random((n, 1, 2)) * (size - 1), labels=np.ones((n, 1), dtype=np.int64))
        for n in _objects(count)
    ]


def _miou(sam: SamFast, job: Job) -> float:
    from samfast.bench.accuracy import evaluate
    from samfast.bench.dataset import open_dataset

    data = open_dataset(Path(str(job.data)))
    scores = evaluate(sam, data, prompts="point", limit=job.limit, batch_size=job.batch_size)
    return float(scores["point"]["miou"])
