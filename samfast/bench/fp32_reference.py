"""What all rows of a run compare with, made once: weights, fp32's answers and masks, ceilings."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

import samfast
from samfast.atomic_files import atomic_write
from samfast.bench.bench_job import REFERENCE, Job
from samfast.bench.ceilings import formats_of, measure_ceilings
from samfast.bench.parity import Errors, errors, without_tf32
from samfast.bench.rivals import RIVALS
from samfast.bench.samples import images, objects, prompts
from samfast.model.config import CONFIGS
from samfast.recipes import Recipe, get, refusal
from samfast.types import Masks

if TYPE_CHECKING:
    from samfast.engine import SamFast

HALF = {"bfloat16": torch.bfloat16, "float16": torch.float16}
_WEIGHTS, _ANSWERS, _ERRORS = "weights.safetensors", "answers.safetensors", "errors.json"


def prepare(job: Job) -> dict[str, Any]:
    """Write weights, fp32's answers and masks, and the plain model's errors into the job's folder.

    Images are encoded one by one: attention that writes out its scores takes a gibibyte for each
    image of ViT-H.

    returns  "image_size", and "ceilings" by batch size as text
    """
    device, folder, most = torch.device(job.device), Path(job.folder), max(job.batch_sizes)
    sam = _load(job, REFERENCE, job.checkpoint)
    if job.checkpoint == "random":
        _save(sam.model.state_dict(), folder / _WEIGHTS)
    config = replace(CONFIGS[job.model], image_size=sam.image_size)
    truth = answers(sam, most)
    _save(truth, folder / _ANSWERS)
    masks = Fp32Masks(folder)
    if job.scoring is not None and any(name not in RIVALS for name in job.names):
        job.scoring.score(sam, 1, masks.save)
    else:
        for number, answer in sample_masks(sam, most):
            masks.save(number, answer)
    del sam
    formats = {"bf16", "fp8", "int8"} if device.type == "cuda" else set()
    dtypes = set()
    for name in job.names:
        recipe = Recipe(dtype=RIVALS[name].dtype) if name in RIVALS else get(name)
        dtypes.add(recipe.dtype)
        formats |= formats_of(recipe)
    by_dtype: dict[str, dict[int, Errors]] = {}
    for name, dtype in HALF.items():
        plain = replace(get(REFERENCE), dtype=dtype)
        if dtype in dtypes and refusal(plain, device) is None:
            half = answers(_load(job, plain, checkpoint_of(job)), most)
            by_dtype[name] = {n: errors(first(half, n), first(truth, n)) for n in job.batch_sizes}
    (folder / _ERRORS).write_text(json.dumps(by_dtype))
    if device.type == "cuda":
        torch.cuda.empty_cache()
    return {
        "image_size": config.image_size,
        "ceilings": {
            str(n): measure_ceilings(config, n, device, sorted(formats)) for n in job.batch_sizes
        },
    }


def checkpoint_of(job: Job) -> str | None:
    """The checkpoint to load: the job's, or the file of random weights that `prepare` wrote."""
    return str(Path(job.folder) / _WEIGHTS) if job.checkpoint == "random" else job.checkpoint


def reference(job: Job, dtype: torch.dtype) -> tuple[dict[str, Tensor], Errors | None]:
    """fp32's answers to the job's batch, and the plain model's errors in that half precision."""
    from safetensors.torch import load_file

    by_dtype = json.loads((Path(job.folder) / _ERRORS).read_text())
    plain = by_dtype.get(str(dtype).removeprefix("torch."), {}).get(str(job.batch_size))
    return first(load_file(Path(job.folder) / _ANSWERS), job.batch_size), plain


def answers(sam: SamFast, count: int) -> dict[str, Tensor]:
    """Answers to the samples, without TF32: "features" (B, C, h, w), "low_res" and "iou" (P, M)."""
    with without_tf32():
        embeddings = sam.embed(images(count))
        masks = sam.predict(embeddings, prompts(count))
    return {
        "features": embeddings.features.float().cpu(),
        "low_res": torch.cat([each.low_res for each in masks]).float().cpu(),
        "iou": torch.cat([each.iou for each in masks]).float().cpu(),
    }


def first(answers: dict[str, Tensor], count: int) -> dict[str, Tensor]:
    """The answers to the first `count` images."""
    clicks = sum(objects(count))
    return {key: value[: count if key == "features" else clicks] for key, value in answers.items()}


def sample_masks(sam: SamFast, count: int) -> Iterator[tuple[int, Masks]]:
    """The samples' masks, with the image's number; of one image at a time."""
    with without_tf32():
        embeddings = sam.embed(images(count))
    for number, clicks in enumerate(prompts(count)):
        with without_tf32():
            (masks,) = sam.predict(embeddings[number : number + 1], [clicks])
        yield number, masks


@dataclass(frozen=True)
class Fp32Masks:
    """fp32's masks in a folder, a compressed file for each image, so that a data set fits."""

    folder: Path

    def save(self, number: int, masks: Masks) -> None:
        """Keep one image's masks; OutputError if the file cannot be written."""
        buffer = io.BytesIO()
        np.savez_compressed(
            buffer,
            shape=np.array(masks.masks.shape),
            bits=np.packbits(masks.masks.cpu().numpy()),
            best=masks.iou.argmax(dim=1).cpu().numpy(),
        )
        atomic_write(self._path(number), buffer.getvalue())

    def read(self, number: int) -> tuple[NDArray[np.bool_], NDArray[np.int64]]:
        """The masks (N, M, H, W), and (N,) which of the M fp32 prefers."""
        with np.load(self._path(number), allow_pickle=False) as kept:
            shape, best = kept["shape"], kept["best"]
            masks = np.unpackbits(kept["bits"], count=int(shape.prod())).reshape(shape)
        return masks.astype(bool), best

    def _path(self, number: int) -> Path:
        return self.folder / f"fp32-masks-{number}.npz"


@dataclass
class MaskAgreement:
    """Sums over images of how a recipe's masks agree with fp32's of the same prompts."""

    fp32: Fp32Masks
    _images: int = 0
    _iou: list[float] = field(default_factory=list)
    _flipped: list[float] = field(default_factory=list)
    _other: list[bool] = field(default_factory=list)

    def add(self, number: int, masks: Masks) -> None:
        """Compare one image's masks with fp32's."""
        truth, truth_best = self.fp32.read(number)
        best = masks.iou.argmax(dim=1).cpu().numpy()
        pixels = masks.masks.shape[-2] * masks.masks.shape[-1]
        self._images += 1
        for mask, exact, i, j in zip(masks.masks, truth, best, truth_best, strict=True):
            fp32 = torch.from_numpy(exact).to(mask.device)
            counts = [m.flatten(-2).count_nonzero(-1) for m in (mask & fp32, mask | fp32)]
            both, either = torch.stack(counts).cpu().numpy()
            iou = np.where(either > 0, both / np.maximum(either, 1), 1.0)  # empty masks are equal
            self._iou += iou.tolist()
            self._flipped += ((either - both) / pixels).tolist()
            self._other.append(bool(i != j))

    def figures(self) -> dict[str, Any] | None:
        """A row's `agreement`; None without masks.

        "mask_iou": the mean IoU of each of a click's three masks with fp32's, two empty ones being
        equal; "flipped_share": the mean share of an image's pixels that differ; "images", "masks";
        "other_best": the share of clicks of which another mask is preferred
        """
        if not self._iou:
            return None
        return {
            "mask_iou": float(np.mean(self._iou)),
            "flipped_share": float(np.mean(self._flipped)),
            "images": self._images,
            "masks": len(self._iou),
            "other_best": float(np.mean(self._other)),
        }


def _load(job: Job, recipe: Recipe | str, checkpoint: str | None) -> SamFast:
    return samfast.load(
        job.model, checkpoint=checkpoint, device=job.device, recipe=recipe, batch_size=1
    )


def _save(tensors: dict[str, Tensor], path: Path) -> None:
    from safetensors.torch import save_file

    save_file({name: each.cpu().contiguous() for name, each in tensors.items()}, path)
