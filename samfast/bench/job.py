"""What is to be measured, and the keys of a row that says what was."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from samfast.bench.environment import stamp
from samfast.bench.rivals import RIVALS
from samfast.bench.samples import IMAGE_SIZE, objects
from samfast.bench.scoring import Scoring
from samfast.recipes import RECIPES

REFERENCE = "fp32"
"""The recipe that the others are judged against: float32, the bias of attention written out."""

TIMED = (
    "encoder_images_per_second: normalised float32 pixels on the device to embeddings. "
    "images_per_second: the same "
    "pixels through the encoder, and prompts from the host, to masks of "
    f"{IMAGE_SIZE[1]}x{IMAGE_SIZE[0]} on the "
    "device, three a point. loaded_images_per_second: the same from decoded images in the host's "
    "memory, resizing "
    "included. Loading, compilation and warm-up outside; median of the runs"
)
TIMED_RIVAL = (
    "encoder_images_per_second: normalised pixels on the device, in the rival's own dtype, to "
    "embeddings. "
    "images_per_second: the same pixels through the encoder, and prompts on the device, image by "
    "image, to masks of "
    f"{IMAGE_SIZE[1]}x{IMAGE_SIZE[0]}, three a point. Loading, compilation and warm-up outside; "
    "median of the runs"
)


@dataclass(frozen=True)
class Job:
    """The rows of one recipe, or of one rival, to be measured in one process.

    recipe       a name in RECIPES, or one in RIVALS
    checkpoint   as `samfast.load` takes it; "random" for random weights, which are read from
                 `folder`
    weights      the rows' words for those weights
    batch_sizes  a row each, in this order
    folder       where `prepare` has left weights, fp32 answers and errors to compare with
    repeats      timed runs, at least; on a GPU also as many as fit in some seconds
    scoring      a data set to score on, or None: no miou, and agreement on the samples
    rivals_path  a folder with rivals' checkouts, or None
    kernels      also list the time by kernel
    auto         the name that "auto" stood for, if it was asked for
    first_only   only the seconds to the first answer, of the first batch size
    """

    recipe: str
    model: str
    checkpoint: str | None
    weights: str
    device: str
    batch_sizes: tuple[int, ...]
    folder: str
    repeats: int = 5
    scoring: Scoring | None = None
    rivals_path: str | None = None
    kernels: bool = False
    auto: str | None = None
    first_only: bool = False


def blank(job: Job, batch_size: int, status: str) -> dict[str, Any]:
    """The row of what was not measured: every key that rows have.

    chosen_by                "auto" where that was asked for and stood for this recipe
    definition               what the recipe's name stood for; none of a rival
    encoder_seconds          {"median", "p99"} of a call, by CUDA events on a GPU: at batch 1 the
                             latency
    prompts_seconds          {"median", "p99"} of all prompts of a batch of embedded images, to
                             masks
    click_seconds            {"median", "p99"} of one click on an embedded image, by the clock,
                             until it has its masks
    peak_memory_bytes        the most in use during the timed calls, weights and what CUDA graphs
                             keep included; encoder_peak_memory_bytes that of the encoder alone.
                             Memory that was needed before, to load, tune and capture, does not
                             count
    first_call_peak_memory_bytes
                             the most that was allocated from the end of loading to the first answer
    peak_memory_reserved_bytes
                             the most that torch held of the GPU during the timed calls, remainders
                             included
    first_call_seconds       from the checkpoint's file to the encoder's first answer, compilation,
                             tuning and capture included, imports and the device's own start not; of
                             the first batch size that a process measures, the later ones find much
                             of it done and have none
    cache                    "cold" if something was compiled anew for it, "warm" if not
    second_process           {"first_call_seconds", "cache"} of a second process, for which the
                             first one's caches remain; if asked for
    compile_seconds          the first call less a later one, of what is compiled or captured; else
                             0
    max_relative_error       the largest of relative_errors: of features, low-resolution logits,
                             predicted IoU against fp32 without TF32; of a rival that of features
    reference_relative_error
                             the largest error of the plain model in the same half precision, on the
                             same images
    miou                     of the mask that a click's predicted IoU prefers, against the data
                             set's annotations; None without a data set
    accuracy                 the same with what was scored: {"data", "annotations" (SHA-256),
                             "point_rule", "min_area", "limit", "images", "masks", "miou",
                             "miou_oracle", "filled_box", "by_source", "by_category"}
    agreement                with fp32's masks of the same clicks, on the data set or else on the
                             samples: {"mask_iou", the mean IoU of each of a click's three masks
                             with fp32's, two empty ones being equal; "flipped_share", the mean
                             share of an image's pixels that differ; "images", "masks";
                             "best_mask_iou", of the masks that each prefers; "other_best", the
                             share of clicks of whose three masks another one is preferred}
    encoder_flop_per_image   products of the encoder, see `work`; tflops: those done in a second, in
                             1e12
    ceilings                 rates of plain matrix products on this device, see `ceilings`
    share_of_ceiling         the time that all products would take at those rates, relative to the
                             time taken
    ratio_to                 this row's encoder_images_per_second relative to each rival's of the
                             same run, model and batch size; whole_ratio_to: the same of
                             images_per_second
    kernels                  where the time of an encoder call goes, if asked for, see `kernels`
    """
    return {
        "recipe": job.recipe,
        "chosen_by": "auto" if job.recipe == job.auto else None,
        "definition": str(RECIPES[job.recipe]) if job.recipe in RECIPES else None,
        "model": job.model,
        "batch_size": batch_size,
        "encoder_images_per_second": None,
        "encoder_seconds": None,
        "images_per_second": None,
        "loaded_images_per_second": None,
        "prompts_seconds": None,
        "click_seconds": None,
        "peak_memory_bytes": None,
        "peak_memory_reserved_bytes": None,
        "encoder_peak_memory_bytes": None,
        "first_call_peak_memory_bytes": None,
        "first_call_seconds": None,
        "cache": None,
        "second_process": None,
        "compile_seconds": None,
        "miou": None,
        "accuracy": None,
        "agreement": None,
        "max_relative_error": None,
        "relative_errors": None,
        "reference_relative_error": None,
        "encoder_flop_per_image": None,
        "tflops": None,
        "ceilings": None,
        "share_of_ceiling": None,
        "ratio_to": {},
        "whole_ratio_to": {},
        "weights": job.weights,
        "prompts_per_image": sum(objects(batch_size)) / batch_size,
        "timed_region": TIMED_RIVAL if job.recipe in RIVALS else TIMED,
        "spread": None,
        "kernels": None,
        "status": status,
        "environment": stamp(job.device),
    }
