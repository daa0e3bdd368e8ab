"""Measuring one row: parity first, then speed and memory, then accuracy."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import samfast
from samfast.bench import rivals
from samfast.bench.bench_job import Job, blank
from samfast.bench.fp32_reference import (
    Fp32Masks,
    MaskAgreement,
    answers,
    checkpoint_of,
    reference,
    sample_masks,
)
from samfast.bench.kernel_table import kernel_table
from samfast.bench.other_load import OtherLoad, described, gpu_share, usable_cpus
from samfast.bench.parity import Errors, errors, judge, judge_rival, without_tf32
from samfast.bench.peak_memory import Peak, settled_resident
from samfast.bench.results import spread_bounds
from samfast.bench.rivals import RIVALS
from samfast.bench.samples import clicks, images, prompts
from samfast.bench.timing import Timing, measure, synchronize
from samfast.checkpoints import resolve
from samfast.checkpoints.state_dict import load_checkpoint
from samfast.errors import MissingExtraError, UnsupportedRecipeError
from samfast.images import to_batch
from samfast.model.config import CONFIGS
from samfast.recipes import get

Row = dict[str, Any]

WARMUP = 3
"""Warm-up calls: torch's own CUDA graphs are recorded in the second and replayed from the third."""

SECONDS = {"cuda": 1.0}
"""How long a call is timed, if the repeats take less: 30 runs of up to 33 ms."""


def measure_row(job: Job, on_stage: Callable[[str], object] = lambda stage: None) -> Row:
    """A row whose status is "ok", or says why it has no figures ("refused: ...", "wrong: ...").

    on_stage  called with the name of what comes next
    """
    device = torch.device(job.device)
    others_on_gpu = gpu_share(device)
    on_stage("loading")
    torch.zeros(1, device=device)  # starts the device outside the clock
    synchronize(device)
    before, start = settled_resident(), time.perf_counter()
    try:
        subject = _Rival(job) if job.recipe in RIVALS else _Recipe(job)
    except (UnsupportedRecipeError, MissingExtraError) as error:
        return blank(job, f"refused: {error}")
    synchronize(device)
    loading = time.perf_counter() - start
    row = blank(job, "ok")
    with torch.no_grad():
        pixels = to_batch(images(job.batch_size), subject.side).pixels.to(device, subject.dtype)

        def encode() -> None:
            subject.encode(pixels)

        on_stage("warming up")
        start = time.perf_counter()
        encode()
        synchronize(device)
        first = time.perf_counter() - start
        row["first_call_seconds"] = loading + first
        with Peak(device, since=before) as alone:  # before the decoder's graphs take memory
            encode()
            synchronize(device)
        on_stage("parity")
        relative, plain, wrong = subject.parity(pixels)
        row["max_relative_error"], row["relative_errors"] = max(relative.values()), relative
        row["reference_relative_error"] = None if plain is None else max(plain[k] for k in relative)
        if wrong is not None:
            return row | {"status": wrong}
        decode = subject.decoding(pixels)
        with Peak(device, since=before) as highest, OtherLoad() as other_load:
            on_stage("encoder")
            encoder = _time(encode, job)
            on_stage("to masks")
            to_masks = None if decode is None else _time(decode, job)
        row["environment"]["other_processes"] = {
            "cpus": other_load.cpus,
            "of_cpus": len(usable_cpus()),
            "gpu_share": others_on_gpu,
        }
        row |= _speeds(job, encoder, to_masks)
        row["encoder_peak_memory_bytes"] = alone.bytes
        row["peak_memory_bytes"] = max(
            (peak.bytes for peak in (alone, highest) if peak.bytes is not None), default=None
        )
        row["doubts"] = doubts(row)
        row["compile_seconds"] = max(0.0, first - encoder.median) if subject.compiled else 0.0
        if job.kernels:
            on_stage("kernels")
            row["kernels"] = kernel_table(encode, device)
    on_stage("accuracy")
    return row | subject.accuracy()


def _speeds(job: Job, encoder: Timing, to_masks: Timing | None) -> Row:
    """The row's speeds; the spread is that of the less steady one."""
    spreads = [timing.spread for timing in (encoder, to_masks) if timing is not None]
    return {
        "encoder_images_per_second": job.batch_size / encoder.median,
        "encoder_seconds": {"median": encoder.median, "p99": encoder.p99},
        "images_per_second": None if to_masks is None else job.batch_size / to_masks.median,
        "spread": max((spread for spread in spreads if spread is not None), default=None),
    }


def doubts(row: Row) -> list[str]:
    """Why a row's figures may be wrong, in words: other processes; masks faster than embeddings."""
    words = described(row["environment"]["other_processes"])
    encoder, to_masks = row["encoder_images_per_second"], row["images_per_second"]
    if to_masks is not None:
        lowest, _ = spread_bounds(to_masks, row["spread"])
        _, highest = spread_bounds(encoder, row["spread"])
        if lowest > highest:
            rates = f"{to_masks:.3g} images/s to masks are more than the encoder's {encoder:.3g}"
            words.append(rates)
    return words


class _Recipe:
    """samfast under the job's recipe."""

    def __init__(self, job: Job) -> None:
        self.job = job
        recipe = get(job.recipe)
        # Weights are pruned while loading only if they are random.
        random = job.checkpoint == "random" and recipe.sparsify is not None
        self.sam = samfast.load(
            job.model,
            checkpoint="random" if random else checkpoint_of(job),
            device=job.device,
            recipe=recipe,
            batch_size=job.batch_size,
        )
        self.encode = self.sam.encode
        self.side, self.dtype = self.sam.image_size, torch.float32
        self.compiled = bool(recipe.compile or recipe.graphed)

    def parity(self, pixels: Tensor) -> tuple[Errors, Errors | None, str | None]:
        """The errors, the plain model's in the same half precision, and what is wrong."""
        truth, plain = reference(self.job, self.sam.recipe.dtype)
        relative = errors(answers(self.sam, self.job.batch_size), truth)
        return relative, plain, judge(self.sam.recipe, relative, plain)

    def decoding(self, pixels: Tensor) -> Callable[[], object] | None:
        """The call from pixels through the encoder, and prompts from the host, to masks."""
        sam, clicked = self.sam, prompts(self.job.batch_size)
        embeddings = sam.embed(images(self.job.batch_size))
        return lambda: sam.predict(replace(embeddings, features=sam.encode(pixels)), clicked)

    def accuracy(self) -> Row:
        """Against annotations if there are some, and agreement with fp32's masks."""
        agreement = MaskAgreement(Fp32Masks(Path(self.job.folder)))
        if self.job.scoring is None:
            for number, masks in sample_masks(self.sam, self.job.batch_size):
                agreement.add(number, masks)
            return {"agreement": agreement.figures()}
        scores = self.job.scoring.score(self.sam, self.job.batch_size, agreement.add)
        return {"miou": scores["miou"], "accuracy": scores, "agreement": agreement.figures()}


class _Rival:
    """Another implementation with the same weights."""

    def __init__(self, job: Job) -> None:
        self.job, self.rival = job, RIVALS[job.recipe]
        _, state = load_checkpoint(resolve(job.model, checkpoint_of(job)), job.model)
        device = torch.device(job.device)
        self.loaded = rivals.load(job.recipe, job.model, state, device, job.rivals_path)
        self.encode, mode = self.loaded.encoder, self.rival.compile
        if mode is not None:
            self.encode = torch.compile(self.encode, mode=mode)
        self.side, self.dtype = CONFIGS[job.model].image_size, self.rival.dtype
        self.compiled = self.rival.compile is not None

    def parity(self, pixels: Tensor) -> tuple[Errors, Errors | None, str | None]:
        """As `_Recipe.parity`, of the features alone."""
        truth, plain = reference(self.job, self.dtype)
        with without_tf32():
            features = {"features": self.encode(pixels).float().cpu()}
        relative = errors(features, truth)
        return relative, plain, judge_rival(self.dtype, relative["features"])

    def decoding(self, pixels: Tensor) -> Callable[[], object] | None:
        """As `_Recipe.decoding`, by the rival's decoder; None if it cannot be called."""
        decode = self.loaded.decode
        if decode is None:
            return None
        points, labels = clicks(self.job.batch_size, self.side, self.dtype, pixels.device)
        return lambda: decode(self.encode(pixels), points, labels)

    def accuracy(self) -> Row:
        """Rivals are not scored."""
        return {}


def _time(call: Callable[[], object], job: Job) -> Timing:
    seconds = SECONDS.get(torch.device(job.device).type, 0.0)
    return measure(call, job.device, repeats=job.repeats, warmup=WARMUP, seconds=seconds)
