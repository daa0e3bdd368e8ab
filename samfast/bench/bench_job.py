"""What one row measures, and the keys of a row."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from samfast.bench.environment import stamp
from samfast.bench.rivals import RIVALS
from samfast.bench.samples import IMAGE_SIZE, objects
from samfast.bench.scoring import Scoring
from samfast.recipes import RECIPES

REFERENCE = "fp32"
"""The recipe that the others are compared with: float32, the attention bias written out."""

_SIZE = f"{IMAGE_SIZE[1]}x{IMAGE_SIZE[0]}"
TIMED = (
    "encoder_images_per_second: normalised float32 pixels on the device to embeddings. "
    "images_per_second: the same pixels through the encoder, and prompts from the host, to masks "
    f"of {_SIZE} on the device, three a point. Loading, compilation and warm-up outside; median of "
    "the runs"
)
TIMED_RIVAL = (
    "encoder_images_per_second: normalised pixels on the device, in the rival's own dtype, to "
    "embeddings. images_per_second: the same pixels through the encoder, and prompts on the "
    f"device, image by image, to masks of {_SIZE}, three a point. Loading, compilation and warm-up "
    "outside; median of the runs"
)


@dataclass(frozen=True)
class Job:
    """One row of a run; a process measures it.

    recipe       a name in RECIPES or RIVALS
    checkpoint   as `samfast.load` takes it; "random": the random weights in `folder`
    weights      the row's words for those weights
    folder       holds the weights, the fp32 answers and the errors to compare with
    names        all recipes and rivals of the run, and batch_sizes, all batch sizes
    repeats      timed runs, at least; on a GPU also as many as fit in a second
    scoring      a data set to score on; None: no miou, and agreement on the samples
    rivals_path  a folder with rivals' checkouts, or None
    kernels      also list the time by kernel
    cold         the row's process has empty caches
    auto         the recipe that "auto" chose, if it was among the names
    """

    recipe: str
    batch_size: int
    model: str
    checkpoint: str | None
    weights: str
    device: str
    folder: str
    names: tuple[str, ...]
    batch_sizes: tuple[int, ...]
    repeats: int = 5
    scoring: Scoring | None = None
    rivals_path: str | None = None
    kernels: bool = False
    cold: bool = False
    auto: str | None = None


def blank(job: Job, status: str) -> dict[str, Any]:
    """A row without figures: every key that rows have.

    chosen_by                 "auto" where that chose this recipe
    definition                the recipe's fields; None of a rival
    encoder_seconds           {"median", "p99"} of a call: at batch 1 the latency
    peak_memory_bytes         the most in use during the timed calls, with weights and CUDA graphs'
                              memory, without loading, tuning and capture
    first_call_seconds        from the checkpoint's file to the encoder's first answer, with
                              compilation, tuning and capture
    cache                     "cold" if the caches of compiled code were empty, None if not known
    compile_seconds           the first call less a later one, of what is compiled or captured
    max_relative_error        the largest of relative_errors: of features, low-resolution logits and
                              predicted IoU against fp32 without TF32; of a rival of its features
    reference_relative_error  the largest error of the plain model in the same half precision
    miou                      of the mask that a click's predicted IoU prefers; accuracy: with what
                              was scored, see `Scoring.score`
    doubts                    why the figures may be wrong, in words: a whole faster than its part,
                              or other processes at work; see `measure_row.doubts`
    agreement                 with fp32's masks of the same clicks, see `MaskAgreement.figures`
    ceilings                  rates of plain products on this device, see `measure_ceilings`
    share_of_ceiling          the time of all products at those rates over the time taken
    spread                    of the timed runs, relative to the median; None of one run
    ratio_to                  the encoder's speed over each rival's of the same run, model and size
    """
    figures = (
        *("encoder_images_per_second", "encoder_seconds", "images_per_second"),
        *("peak_memory_bytes", "encoder_peak_memory_bytes", "first_call_seconds"),
        *("compile_seconds", "miou", "accuracy", "agreement", "max_relative_error"),
        *("relative_errors", "reference_relative_error", "ceilings", "share_of_ceiling"),
        *("spread", "kernels"),
    )
    return {
        "recipe": job.recipe,
        "chosen_by": "auto" if job.recipe == job.auto else None,
        "definition": str(RECIPES[job.recipe]) if job.recipe in RECIPES else None,
        "model": job.model,
        "batch_size": job.batch_size,
        **dict.fromkeys(figures),
        "cache": "cold" if job.cold else None,
        "ratio_to": {},
        "doubts": [],
        "weights": job.weights,
        "prompts_per_image": sum(objects(job.batch_size)) / job.batch_size,
        "timed_region": TIMED_RIVAL if job.recipe in RIVALS else TIMED,
        "status": status,
        "environment": stamp(job.device),
    }
