"""What is measured on a GPU: the instruments, and that no image depends on those encoded with
it."""

from __future__ import annotations

import functools
import gc
from dataclasses import replace

import pytest
import torch

import samfast
from samfast.bench import ladder
from samfast.bench.ceilings import measure_ceilings
from samfast.bench.kernel_table import CLASSES, kernel_table
from samfast.bench.parity import TIMES_REFERENCE, relative_error, without_tf32
from samfast.bench.peak_memory import Peak
from samfast.bench.samples import images
from samfast.bench.scoring import Scoring
from samfast.images import to_batch
from samfast.model.config import CONFIGS
from samfast.recipes import RECIPES, get, refusal
from tests.bench import in_process

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU"),
]

CUDA = torch.device("cuda")
SIZES = (1, 2, 7, 8, 32)


def batch_errors(encode, pixels) -> dict[int, float]:
    """By batch size: the largest relative error of an image in a batch against itself alone.

    Each image is seen at two places of the batch. Kernels may differ with the batch, and so may
    rounding; more than rounding is a fault.
    """
    alone = torch.cat([encode(image[None]).float() for image in pixels[: max(SIZES)]])
    errors = {}
    for size in SIZES:
        forward = encode(pixels[:size]).float()
        backward = encode(pixels[:size].flip(0)).float().flip(0)
        assert forward.isfinite().all() and backward.isfinite().all()
        errors[size] = max(worst(forward, alone[:size]), worst(backward, alone[:size]))
    return errors


@pytest.fixture(scope="module")
def pixels() -> torch.Tensor:
    return to_batch(images(max(SIZES)), CONFIGS["vit_xs"].image_size).pixels.cuda()


@pytest.fixture(scope="module")
def truth(pixels) -> torch.Tensor:
    """The features in float32, image by image."""
    sam = samfast.load("vit_xs", device="cuda", recipe="fp32", batch_size=1)
    with without_tf32():
        return torch.cat([sam.encode(image[None]) for image in pixels])


def worst(features: torch.Tensor, truth: torch.Tensor) -> float:
    return max(relative_error(a.float(), b) for a, b in zip(features, truth, strict=True))


@pytest.mark.parametrize("name", ["bf16_triton", "fused", "fp8", "compile_default"])
def test_an_image_is_encoded_alike_alone_and_in_a_batch(name, pixels, truth):
    recipe = RECIPES[name]
    reason = refusal(recipe, CUDA)
    if reason is not None:
        pytest.skip(reason)
    # Compiled code has one size, that of a batch; graphs have several, so that 1, 2, 8 and 32 are
    # run as such.
    sam = samfast.load("vit_xs", device="cuda", recipe=name, batch_size=8 if recipe.compile else 32)
    errors = batch_errors(sam.encode, pixels)
    plain = samfast.load(
        "vit_xs", device="cuda", recipe=replace(get("fp32"), dtype=recipe.dtype), batch_size=1
    )
    rounding = worst(torch.cat([plain.encode(image[None]) for image in pixels]), truth)
    alone = worst(torch.cat([sam.encode(image[None]) for image in pixels]), truth)
    if not recipe.lossy:
        assert alone <= TIMES_REFERENCE * rounding
    # Both answers are about as far from the exact one as that, not always to the same side.
    bound = alone if recipe.lossy else TIMES_REFERENCE * rounding
    assert list(errors) == list(SIZES)
    assert all(error <= bound for error in errors.values()), (errors, bound)


@pytest.mark.gpu_alone
def test_kernels_are_listed_of_plain_and_captured_encoders(pixels):
    few = pixels[:2]
    for name in ("bf16_folded", "fused"):
        if refusal(RECIPES[name], CUDA) is not None:
            continue
        sam = samfast.load("vit_xs", device="cuda", recipe=name, batch_size=2)
        sam.encode(few)
        table = kernel_table(functools.partial(sam.encode, few), CUDA)
        assert set(table["classes"]) == set(CLASSES)
        assert table["classes"]["matmul"]["ms"] > 0
        assert table["classes"]["attention"]["ms"] > 0
        assert sum(row["share"] for row in table["rows"]) == pytest.approx(1)


def test_peak_memory_counts_what_a_graph_keeps():
    size = 256 * 2**20
    gc.collect()
    torch.cuda.empty_cache()
    before, reserved = torch.cuda.memory_allocated(), torch.cuda.memory_reserved()  # of other tests
    source = torch.zeros(size // 4, device=CUDA)

    def work() -> torch.Tensor:
        return (source + 1).sum()

    work()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        kept = work()
    with Peak(CUDA) as peak:
        graph.replay()
        torch.cuda.synchronize()
    assert kept.item() == size // 4
    assert peak.bytes is not None and peak.reserved is not None
    assert 2 * size <= peak.bytes - before <= peak.reserved - before
    assert peak.reserved - reserved < 2 * size + 128 * 2**20
    del graph, kept
    with Peak(CUDA) as without:
        pass
    assert without.bytes is not None and without.bytes - before < 2 * size


@pytest.mark.gpu_alone
def test_ceilings_of_this_card():
    ceilings = measure_ceilings(CONFIGS["vit_b"], 1, CUDA, ["fp32", "bf16", "int8", "fp8"])
    # How they compare is a measurement, which a card that others share would spoil.
    kinds = [
        "fp32",
        "bf16",
        "int8",
        *(["fp8"] if torch.cuda.get_device_capability() >= (8, 9) else []),
    ]
    assert all(ceilings["tflops"][kind] > 1 for kind in kinds)


@pytest.mark.gpu_alone
def test_rows_of_a_recipe_and_a_rival():
    pytest.importorskip("transformers")
    rows = ladder.run(
        ["rival:transformers", "bf16_folded"],
        model="vit_xs",
        device="cuda",
        batch_size=(2, 1),
        run_task=in_process.run_task,
    )
    assert [row["status"] for row in rows] == ["ok"] * 4
    for row in rows:
        assert len(row["ratio_to"]) == 1
        assert 0 < row["share_of_ceiling"] < 1
        assert row["encoder_seconds"]["p99"] >= row["encoder_seconds"]["median"] > 0
        assert 0 < row["encoder_peak_memory_bytes"] <= row["peak_memory_bytes"]
        assert row["environment"]["gpu"] == torch.cuda.get_device_name()
        if row["recipe"] == "bf16_folded":
            assert row["agreement"]["images"] == row["batch_size"]
            assert 0.5 < row["agreement"]["mask_iou"] <= 1
            assert 0 <= row["agreement"]["flipped_share"] < 0.1


def test_recipes_are_scored_on_photos_and_against_fp32(photo_data, monkeypatch, tmp_path):
    monkeypatch.setenv("SAMFAST_CACHE", str(tmp_path))
    names = [
        name
        for name in ("fp32_sdpa", "bf16_folded", "fused")
        if refusal(RECIPES[name], CUDA) is None
    ]
    rows = ladder.run(
        names,
        model="vit_xs",
        device="cuda",
        batch_size=4,
        scoring=Scoring(str(photo_data / "val"), limit=6),
        run_task=in_process.run_task,
    )
    assert [row["status"] for row in rows] == ["ok"] * len(names)
    exact = rows[0]
    assert exact["agreement"]["mask_iou"] > 0.99
    for row in rows:
        assert row["accuracy"]["images"] == row["agreement"]["images"] == 6
        assert row["miou"] == pytest.approx(exact["miou"], abs=0.03)
        assert row["agreement"]["mask_iou"] > 0.9
        assert row["agreement"]["flipped_share"] < 0.02
