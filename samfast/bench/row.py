"""What is measured of one recipe, or of one rival: parity first, then speed and memory."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import samfast
from samfast.bench import rivals
from samfast.bench.compiling import Compilations
from samfast.bench.fp32_masks import MaskAgreement
from samfast.bench.job import Job, blank
from samfast.bench.kernel_table import kernel_table
from samfast.bench.parity import (
    Reference,
    answers,
    errors,
    judge,
    judge_rival,
    relative_error,
    sample_masks,
    without_tf32,
)
from samfast.bench.peak_memory import Peak, resident
from samfast.bench.prepare import checkpoint_of, fp32_masks
from samfast.bench.rivals import RIVALS, Encoder, Loaded
from samfast.bench.samples import clicks, images, prompts
from samfast.bench.timing import Timing, measure, synchronize
from samfast.bench.work import encoder_flop
from samfast.checkpoints import resolve
from samfast.checkpoints.state_dict import load_checkpoint
from samfast.engine import SamFast
from samfast.errors import MissingExtraError, UnsupportedRecipeError
from samfast.images import to_batch
from samfast.model.config import CONFIGS
from samfast.recipes import build_runtime, get
from samfast.types import Prompts

WARMUP = 3
"""Calls before timing: torch's own CUDA graphs are recorded in the second and replayed from the
third."""

CLICKING = 0.5
"""Seconds of clicks."""

SECONDS = {"cuda": 1.0}
"""How long the encoder is timed, if that is longer than the repeats take: 30 runs of up to 33
ms."""


def measure_rows(job: Job) -> Iterator[dict[str, Any]]:
    """A row a batch size: status "ok", or why there are no figures ("refused: ...", "wrong:
    ...").
    """
    done = 0
    try:
        for row in _rival(job) if job.recipe in RIVALS else _recipe(job):
            done += 1
            yield row
    except (UnsupportedRecipeError, MissingExtraError) as error:
        for batch_size in job.batch_sizes[done:]:
            yield blank(job, batch_size, f"refused: {error}")


def _recipe(job: Job) -> Iterator[dict[str, Any]]:
    device = torch.device(job.device)
    _wake(device)
    before = resident()
    start = time.perf_counter()
    recipe = get(job.recipe)
    # Those in the file are the same, but only where they are asked for as random weights may they
    # be pruned at once.
    drawn = job.checkpoint == "random" and recipe.sparsify is not None
    sam = samfast.load(
        job.model,
        checkpoint="random" if drawn else checkpoint_of(job.checkpoint, job.folder),
        device=job.device,
        recipe=recipe,
        batch_size=job.batch_sizes[0],
    )
    synchronize(device)
    loading: float | None = time.perf_counter() - start
    for batch_size in job.batch_sizes:
        if batch_size != sam.batch_size:
            sam = _with_batch_size(sam, batch_size)
        pixels = to_batch(images(batch_size), sam.image_size).pixels.to(device)
        row = blank(job, batch_size, "ok")
        own, keys = _first_call(sam.encode, pixels, device, loading)
        row |= keys
        loading = None
        if not job.first_only:
            row |= _figures(job, sam, pixels, own, before)
        yield row
        del pixels


def _figures(
    job: Job, sam: SamFast, pixels: Tensor, first: float, before: int | None
) -> dict[str, Any]:
    """Everything but the first call: parity, and if that holds speed, memory and what was asked for
    besides.

    first   seconds of the first call
    before  resident memory before the model was loaded
    """
    batch_size, device, recipe = len(pixels), torch.device(job.device), sam.recipe
    reference = Reference.read(Path(job.folder))
    with Peak(
        device, since=before
    ) as alone:  # before the decoder records graphs, which would count
        sam.encode(pixels)
        synchronize(device)
    found = errors(answers(sam, batch_size), reference.first(batch_size))
    half = reference.error(recipe.dtype, batch_size)
    keys: dict[str, Any] = {
        "max_relative_error": max(found.values()),
        "relative_errors": found,
        "reference_relative_error": None if half is None else max(half.values()),
    }
    wrong = judge(recipe, found, half)
    if wrong is not None:
        return keys | {"status": wrong}
    samples, asked = images(batch_size), prompts(batch_size)
    embeddings = sam.embed(samples)

    def encode() -> None:
        sam.encode(pixels)

    def answer() -> None:
        sam.predict(replace(embeddings, features=sam.encode(pixels)), asked)

    def prompt() -> None:
        sam.predict(embeddings, asked)

    def click() -> None:
        sam.predict(embeddings[:1], [Prompts(points=[[[300, 200]]], labels=[[1]])])
        synchronize(device)

    def load_and_answer() -> None:
        sam.predict(sam.embed(samples), asked)

    with Peak(device, since=before) as highest:
        encoder = _time(encode, job)
        whole = _time(answer, job)
        only_prompts = _time(prompt, job)
    loading = measure(load_and_answer, device, repeats=job.repeats)
    waiting = measure(click, "cpu", repeats=job.repeats, warmup=WARMUP, seconds=CLICKING)
    keys |= _speed(job, encoder, batch_size, sam.image_size) | _memory(alone, highest)
    keys["images_per_second"] = batch_size / whole.median
    keys["prompts_seconds"] = {"median": only_prompts.median, "p99": only_prompts.p99}
    keys["click_seconds"] = {"median": waiting.median, "p99": waiting.p99}
    keys["loaded_images_per_second"] = batch_size / loading.median
    keys["spread"] = max(encoder.spread, whole.spread)
    keys["compile_seconds"] = _compiling(bool(recipe.compile or recipe.graphed), first, encoder)
    if job.kernels:
        keys["kernels"] = kernel_table(encode, device)
    return keys | _accuracy(sam, job, batch_size)


@torch.no_grad()
def _load_rival(job: Job, device: torch.device) -> Loaded:
    _, state = load_checkpoint(
        resolve(job.model, checkpoint_of(job.checkpoint, job.folder)), job.model
    )
    loaded = rivals.load(job.recipe, job.model, state, device, job.rivals_path)
    synchronize(device)
    return loaded


def _rival(job: Job) -> Iterator[dict[str, Any]]:
    device, rival = torch.device(job.device), RIVALS[job.recipe]
    side = CONFIGS[job.model].image_size
    _wake(device)
    before = resident()
    start = time.perf_counter()
    plain = _load_rival(job, device)
    encode = rivals.compiled(
        job.recipe, plain.encoder
    )  # in the clock: torch imports its compiler here
    loading: float | None = time.perf_counter() - start
    for batch_size in job.batch_sizes:
        if loading is None:
            encode = rivals.compiled(job.recipe, plain.encoder)
        pixels = to_batch(images(batch_size), side).pixels.to(device, rival.dtype)
        row = blank(job, batch_size, "ok")
        with torch.no_grad():
            own, keys = _first_call(encode, pixels, device, loading)
            row |= keys
            loading = None
            if not job.first_only:
                row |= _rival_figures(job, plain, encode, pixels, own, before)
        yield row
        del pixels


def _rival_figures(
    job: Job, loaded: Loaded, encode: Encoder, pixels: Tensor, first: float, before: int | None
) -> dict[str, Any]:
    batch_size, device, rival = len(pixels), torch.device(job.device), RIVALS[job.recipe]
    reference = Reference.read(Path(job.folder))
    with without_tf32():
        error = relative_error(
            encode(pixels).float().cpu(), reference.first(batch_size)["features"]
        )
    half = reference.error(rival.dtype, batch_size)
    keys: dict[str, Any] = {
        "max_relative_error": error,
        "relative_errors": {"features": error},
        "reference_relative_error": None if half is None else half["features"],
    }
    wrong = judge_rival(rival.dtype, error)
    if wrong is not None:
        return keys | {"status": wrong}

    def run() -> None:
        encode(pixels)

    with Peak(device, since=before) as peak:
        encoder = _time(run, job)
    highest, spread = peak, encoder.spread
    if loaded.decode is not None:
        points, labels = clicks(batch_size, CONFIGS[job.model].image_size, rival.dtype, device)
        decode = loaded.decode
        with Peak(device, since=before) as highest:
            whole = _time(lambda: decode(encode(pixels), points, labels), job)
        keys["images_per_second"] = batch_size / whole.median
        spread = max(spread, whole.spread)
    keys |= _speed(job, encoder, batch_size, CONFIGS[job.model].image_size) | _memory(peak, highest)
    keys["spread"] = spread
    keys["compile_seconds"] = _compiling(rival.compile is not None, first, encoder)
    if job.kernels:
        keys["kernels"] = kernel_table(run, device)
    return keys


def _wake(device: torch.device) -> None:
    """Let the device start, which is no part of anyone's loading."""
    torch.zeros(1, device=device)
    synchronize(device)


def _with_batch_size(sam: SamFast, batch_size: int) -> SamFast:
    """The same model, its encoder built anew for another batch size."""
    return SamFast(
        sam.model,
        build_runtime(sam.model, sam.recipe, sam.device, batch_size=batch_size, name=sam.name),
        name=sam.name,
        recipe_name=sam.recipe_name,
        reason=sam.reason,
        source=sam.source,
    )


def _first_call(
    encode: Encoder, pixels: Tensor, device: torch.device, loading: float | None
) -> tuple[float, dict[str, Any]]:
    """Seconds of the first call, and the row's keys that say what it took.

    loading  seconds of loading before it; None: another batch size came first, so there is no such
             figure
    """
    with Peak(device) as peak, Compilations(device) as compiled:
        start = time.perf_counter()
        encode(pixels)
        synchronize(device)
        seconds = time.perf_counter() - start
    if loading is None:
        return seconds, {}
    return seconds, {
        "first_call_seconds": loading + seconds,
        "cache": "cold" if compiled.count else "warm",
        "first_call_peak_memory_bytes": peak.bytes,
    }


def _time(encode: Callable[[], object], job: Job) -> Timing:
    seconds = SECONDS.get(torch.device(job.device).type, 0.0)
    return measure(encode, job.device, repeats=job.repeats, warmup=WARMUP, seconds=seconds)


def _speed(job: Job, encoder: Timing, batch_size: int, image_size: int) -> dict[str, Any]:
    flop = encoder_flop(replace(CONFIGS[job.model], image_size=image_size))
    rate = batch_size / encoder.median
    return {
        "encoder_images_per_second": rate,
        "encoder_seconds": {"median": encoder.median, "p99": encoder.p99},
        "encoder_flop_per_image": flop,
        "tflops": flop * rate / 1e12,
    }


def _memory(encoder: Peak, whole: Peak) -> dict[str, Any]:
    """Of the encoder alone, and of all that was timed."""
    both = [peak.bytes for peak in (encoder, whole) if peak.bytes is not None]
    reserved = [peak.reserved for peak in (encoder, whole) if peak.reserved is not None]
    return {
        "peak_memory_bytes": max(both, default=None),
        "peak_memory_reserved_bytes": max(reserved, default=None),
        "encoder_peak_memory_bytes": encoder.bytes,
    }


def _compiling(compiled: bool, first: float, later: Timing) -> float:
    """What the first call took more than a later one, of what is compiled or captured."""
    return max(0.0, first - later.median) if compiled else 0.0


def _accuracy(sam: SamFast, job: Job, batch_size: int) -> dict[str, Any]:
    """What the masks are worth, against annotations if there are some and against fp32's; nothing
    of it is timed.
    """
    agreement = MaskAgreement(fp32_masks(job.folder))
    if job.scoring is None:
        for number, masks in sample_masks(sam, batch_size):
            agreement.add(number, masks)
        return {"agreement": agreement.figures()}
    scores = job.scoring.score(sam, batch_size, agreement.add)
    return {"miou": scores["miou"], "accuracy": scores, "agreement": agreement.figures()}
