"""Whether a recipe's answers are still SAM's: errors against fp32, and how large they may be."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from samfast.bench.samples import images, objects, prompts
from samfast.engine import SamFast
from samfast.recipes import Recipe
from samfast.types import Masks

Errors = dict[str, float]

TOLERANCE = {torch.float32: 1e-4, torch.float16: 0.05, torch.bfloat16: 0.2}
"""Largest relative error of each answer at which an exact recipe, or a rival, of that dtype is
still measured."""

TIMES_REFERENCE = 2.0
"""How many times the error of the plain model in the same half precision an exact recipe's error
may be."""

LOSSY = {"quantize": 0.3, "sparsify": 1.2}
"""Largest relative error of the features of recipes that round further, by what they do.

They say only that the answer is SAM's at all: that of random weights, which 2:4 halves, is 0.75
away in vit_xs, and answers that have nothing in common are 1.4 apart. What such a recipe costs is
said by its mean IoU.
"""

_ANSWERS, _ERRORS = "answers.safetensors", "errors.json"


@dataclass(frozen=True)
class Reference:
    """The fp32 answers to the samples, and the errors of the plain model in half precision.

    answers   "features" (B, C, H, W), "low_res" (P, M, h, w) and "iou" (P, M) of B images
    errors    by dtype ("bfloat16", "float16") and number of images: the errors of that model's
              answers
    """

    answers: dict[str, Tensor]
    errors: dict[str, dict[int, Errors]]

    def first(self, count: int) -> dict[str, Tensor]:
        """The answers to the first so many images."""
        return first(self.answers, count)

    def error(self, dtype: torch.dtype, count: int) -> Errors | None:
        """The errors of the plain model in that dtype on the first so many images; None if it was
        not run.
        """
        return self.errors.get(_name(dtype), {}).get(count)

    def save(self, folder: Path) -> None:
        """Write both into the folder."""
        from safetensors.torch import save_file

        save_file(
            {name: each.contiguous() for name, each in self.answers.items()}, folder / _ANSWERS
        )
        (folder / _ERRORS).write_text(json.dumps(self.errors))

    @staticmethod
    def read(folder: Path) -> Reference:
        """What `save` has written there."""
        from safetensors.torch import load_file

        errors = json.loads((folder / _ERRORS).read_text())
        return Reference(
            load_file(folder / _ANSWERS),
            {
                dtype: {int(count): each for count, each in by.items()}
                for dtype, by in errors.items()
            },
        )


def answers(sam: SamFast, count: int) -> dict[str, Tensor]:
    """What parity is judged by: embeddings, logits and predicted IoU of the same images and points.

    Without TF32, which torch lets convolutions have: it would drown the differences between
    recipes. Timing is done under torch's own settings, as the stamp states them.
    """
    with without_tf32():
        embeddings = sam.embed(images(count))
        masks = sam.predict(embeddings, prompts(count))
    return {
        "features": embeddings.features.float().cpu(),
        "low_res": torch.cat([each.low_res for each in masks]).float().cpu(),
        "iou": torch.cat([each.iou for each in masks]).float().cpu(),
    }


def sample_masks(sam: SamFast, count: int) -> Iterator[tuple[int, Masks]]:
    """The same images' masks, each image's with its number, of the same points; held one image at a
    time.
    """
    with without_tf32():
        embeddings = sam.embed(images(count))
    for number, asked in enumerate(prompts(count)):
        with without_tf32():
            (masks,) = sam.predict(embeddings[number : number + 1], [asked])
        yield number, masks


def without_tf32() -> AbstractContextManager[None]:
    """A block in which cuDNN's float32 convolutions are float32."""
    block: AbstractContextManager[None] = torch.backends.cudnn.flags(enabled=True, allow_tf32=False)
    return block


def first(answers: dict[str, Tensor], count: int) -> dict[str, Tensor]:
    """The answers to the first so many images out of those to more."""
    asked = sum(objects(count))
    return {key: value[: count if key == "features" else asked] for key, value in answers.items()}


def errors(answers: dict[str, Tensor], truth: dict[str, Tensor]) -> Errors:
    """The relative error of each answer that is given."""
    return {key: relative_error(answer, truth[key]) for key, answer in answers.items()}


def relative_error(answer: Tensor, truth: Tensor) -> float:
    """||a - b|| / ||b|| in float64."""
    exact = truth.double()
    return float((answer.double().to(exact.device) - exact).norm() / exact.norm())


def judge(recipe: Recipe, found: Errors, reference: Errors | None) -> str | None:
    """What is wrong with a recipe's errors, as a row's status says it; None if nothing is.

    reference   the errors of the plain model in the same dtype, if that is half precision

    Lossy recipes are judged by their features against LOSSY. Exact ones by every answer against
    TOLERANCE, and in half precision by the features, and the largest of all errors, against
    TIMES_REFERENCE times the reference's: few objects' IoU, say, is too noisy to compare by itself.
    """
    if recipe.lossy:
        bound = max(LOSSY[field] for field in LOSSY if getattr(recipe, field) is not None)
        return _above(found["features"], bound, "features' relative error")
    worst = max(
        found.values(), key=lambda error: (error != error, error)
    )  # not a number is the worst
    wrong = _above(worst, TOLERANCE[recipe.dtype], "relative error")
    if wrong is None and reference is not None:
        name = f"{TIMES_REFERENCE:g} times the error of the plain model in {_name(recipe.dtype)}"
        features = TIMES_REFERENCE * reference["features"]
        wrong = _above(found["features"], features, "features' relative error", f"; {name}")
        wrong = wrong or _above(
            worst, TIMES_REFERENCE * max(reference.values()), "relative error", f"; {name}"
        )
    return wrong


def judge_rival(dtype: torch.dtype, error: float) -> str | None:
    """What is wrong with a rival's features; None if nothing is."""
    return _above(error, TOLERANCE[dtype], "features' relative error")


def _above(error: float, bound: float, what: str, why: str = "") -> str | None:
    if error <= bound:  # false for what is not a number
        return None
    return f"wrong: {what} {error:.1e}, at most {bound:.1e} is allowed{why}"


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
