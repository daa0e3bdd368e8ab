"""The encoder's steps on a GPU: nothing waits, nothing is compiled again, and answers are the
caller's to keep."""

from __future__ import annotations

import functools
import json
import os
import subprocess
import sys
import threading
import warnings
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

import samfast
from samfast import Prompts
from samfast.device.transfer import pinned, to_device
from samfast.errors import UsageError
from samfast.images import Batcher, LoadedImage, device_preprocess, load_image, to_batch
from samfast.images.batching import already_loaded
from samfast.images.device_preprocess import CopiedBatch, batch_maker, on_device
from samfast.recipes import RECIPES, refusal
from tests.pairs import raw_batch

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU"),
    # torch's own, when float32 is compiled
    pytest.mark.filterwarnings("ignore:TensorFloat32 tensor cores:UserWarning"),
]

CUDA = torch.device("cuda")
GRAPHED = replace(RECIPES["bf16_folded"], graph=True)


@pytest.fixture(scope="module", autouse=True)
def _cache(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SAMFAST_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


def load(recipe, batch_size=4, image_size=256, tuned=False):
    """A model with random weights.

    tuned  compile a max-autotune recipe in that mode. Tuning takes minutes and changes only the
           choice of kernels, so that other tests compile it in the mode reduce-overhead
    """
    chosen = RECIPES[recipe] if isinstance(recipe, str) else recipe
    reason = refusal(chosen, CUDA)
    if reason is not None:
        pytest.skip(reason)
    if chosen.compile == "max-autotune" and not tuned:
        recipe = replace(chosen, compile="reduce-overhead")
    return samfast.load(
        "vit_xs",
        checkpoint="random",
        device="cuda",
        recipe=recipe,
        batch_size=batch_size,
        image_size=image_size,
    )


shared = functools.cache(load)
"""As `load`, but one model for all tests, which must not change it."""


def by_compiled_code(*recipes):
    """Parametrise a test so that recipes with the same compiled encoder run in one worker."""
    parameters = []
    for recipe in recipes:
        chosen = RECIPES[recipe] if isinstance(recipe, str) else recipe
        code = replace(chosen, prompts="looped", compile=None)
        marks = pytest.mark.xdist_group(str(code)) if chosen.compile else ()
        parameters.append(pytest.param(recipe, marks=marks))
    return parameters


def photos(count, seed=0):
    rng = np.random.default_rng(seed)
    sizes = [(60, 80), (128, 128), (200, 90), (17, 300), (64, 64)]
    return [rng.integers(0, 255, (*sizes[i % 5], 3), dtype=np.uint8) for i in range(count)]


def click(count=1):
    return [Prompts(points=[[[20, 9]], [[5, 6], [30, 8]]], labels=[[1], [1, 0]])] * count


@contextmanager
def no_waiting():
    torch.cuda.synchronize()
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Synchronization debug mode is a prototype")
            torch.cuda.set_sync_debug_mode("error")
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


def relative(a, b):
    return float((a.double() - b.double()).norm() / b.double().norm())


def test_waiting_would_be_noticed():
    with no_waiting(), pytest.raises(RuntimeError, match="synchroniz"):
        torch.ones(1, device="cuda").item()


@pytest.mark.parametrize("name", by_compiled_code(*RECIPES))
def test_embed_and_predict_never_wait_for_the_gpu(name):
    sam = shared(name)
    prompts = {
        "clicks": click(3),
        "boxes": [Prompts(boxes=[[3, 4, 16, 16]])] * 3,
        "both": [
            Prompts(points=[[], [[9, 9]]], labels=[[], [0]], boxes=[[3, 4, 16, 16], [1, 0, 9, 9]])
        ]
        * 3,
    }
    if RECIPES[name].compile is not None or RECIPES[name].graphed or RECIPES[name].lossy:
        sam.embed(photos(5))  # compiling and recording do wait
    if RECIPES[name].prompts == "packed":
        warm = sam.embed(photos(5))[:3]
        for given in prompts.values():
            for multimask in (True, False):
                results = sam.predict(warm, given, multimask=multimask)
        sam.predict(warm[:1], [Prompts(masks=results[0].low_res[:, :1])])
    with no_waiting():
        embeddings = sam.embed(photos(5))[:3]
        for given in prompts.values():
            for multimask in (True, False):
                results = sam.predict(embeddings, given, multimask=multimask)
        mask = results[0].low_res[:, :1]
        sam.predict(embeddings[:1], [Prompts(masks=mask)])


SIZES = [
    (1, 1),
    (1, 300),
    (300, 1),
    (2, 513),
    (255, 256),
    (256, 256),
    (256, 100),
    (257, 256),
    (900, 1300),
]


@pytest.mark.parametrize("kernel", [True, False])
@pytest.mark.parametrize("side", [64, 256, 1024])
def test_pixels_by_way_of_bytes_are_the_cpus_to_the_last_bit(monkeypatch, kernel, side):
    if not kernel:
        monkeypatch.setattr(device_preprocess, "has_triton", lambda device: False)
    rng = np.random.default_rng(side)
    images = [
        LoadedImage(rng.integers(0, 256, (*size, 3), dtype=np.uint8), str(size))
        for size in SIZES
        if max(size) < 2 * side * min(size)  # thinner ones are refused
    ]
    want = to_batch(images, side).pixels
    bytes_ = raw_batch(images, side, pin=True)
    assert bytes_.pixels.is_pinned()
    on_device(bytes_, CUDA)  # Triton compiles, which waits
    with no_waiting():
        got = on_device(bytes_, CUDA)
        part = on_device(bytes_, CUDA, slice(1, 3))
    assert torch.equal(got.cpu(), want)
    assert torch.equal(part.cpu(), want[1:3])


def test_many_batches_are_pixel_by_pixel_what_each_image_is_alone(monkeypatch):
    sam = load("bf16_sdpa", batch_size=3)
    images = photos(40)
    want = to_batch([load_image(image) for image in images], 256).pixels
    seen = []
    plain = sam.encode
    monkeypatch.setattr(sam, "encode", lambda pixels: seen.append(pixels) or plain(pixels))
    sam.embed(images[:1])
    seen.clear()
    with no_waiting():
        sam.embed(images)
    assert torch.equal(torch.cat(seen).cpu(), want)


def test_a_batch_that_a_thread_copied_ahead_is_the_same_on_any_stream():
    """While the GPU is busy, so that the copy is not yet there when it is needed."""
    images = [load_image(each) for each in photos(12)]
    want = to_batch(images, 256).pixels
    with Batcher(256, pin=True) as batcher, ThreadPoolExecutor(1) as thread:
        make = batch_maker(batcher, CUDA)
        on_device(make(images, already_loaded), CUDA)  # Triton compiles
        torch.cuda.synchronize()
        torch.cuda._sleep(200_000_000)  # cycles, a tenth of a second
        batches = [
            thread.submit(make, images[start : start + 3], already_loaded).result()
            for start in range(0, 12, 3)
        ]
        assert all(isinstance(each, CopiedBatch) for each in batches)
        stream = torch.cuda.Stream()
        with torch.cuda.stream(stream):
            got = [on_device(each, CUDA) for each in batches]
        del batches  # their memory is not used again before it was read
        torch.zeros(64 << 20, dtype=torch.uint8, device=CUDA)
        stream.synchronize()
    assert torch.equal(torch.cat(got).cpu(), want)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.bool, torch.int64, torch.bfloat16])
@pytest.mark.parametrize("count", [0, 1, 32768, 32769, 5 << 20])
def test_values_arrive_on_the_gpu_as_they_are(dtype, count):
    values = torch.randint(0, 2, (count,)).to(dtype)
    assert torch.equal(to_device(values, CUDA).cpu(), values)
    assert pinned(values).is_pinned() or not count
    grid = values[: count // 2 * 2].view(-1, 2)
    assert torch.equal(to_device(grid.T, CUDA).cpu(), grid.T)
    once = pinned(values)
    assert pinned(once).data_ptr() == once.data_ptr()


def test_pinned_memory_is_used_again_but_not_before_it_was_copied():
    """While the GPU is busy, so that copies wait, and later without another block."""
    sam = shared("bf16_sdpa", batch_size=2)
    images = photos(12)
    want = [to_batch([load_image(image)], 256).pixels[0] for image in images]
    with Batcher(256, pin=True) as batcher:
        torch.cuda.synchronize()
        torch.cuda._sleep(200_000_000)  # cycles, a tenth of a second
        got = [
            on_device(batcher.raw_batch([image], lambda each, _: load_image(each)), CUDA)
            for image in images
        ]
    for pixels, expected in zip(got, want, strict=True):
        assert torch.equal(pixels[0].cpu(), expected)
    sam.embed(images[:2])
    torch.cuda.synchronize()
    before = torch.cuda.host_memory_stats()["num_host_alloc"]
    for _ in range(20):
        sam.embed(images[:2])
        torch.cuda.synchronize()
    # PyTorch takes blocks back late, so one or two more may be allocated, but not 20.
    assert torch.cuda.host_memory_stats()["num_host_alloc"] <= before + 2


def test_tensors_on_the_gpu_are_read_after_what_made_them():
    sam = shared("bf16_sdpa", batch_size=2)
    plain = [torch.from_numpy(image).permute(2, 0, 1) for image in photos(6)]
    want = sam.embed(plain).features
    with torch.cuda.stream(torch.cuda.Stream()):
        to_device = [image.cuda() for image in plain]
        torch.cuda.synchronize()
        made = [torch.zeros_like(image) for image in to_device]
        torch.cuda._sleep(200_000_000)
        for target, image in zip(made, to_device, strict=True):
            target.copy_(image)
        got = sam.embed(made).features
        torch.cuda.current_stream().synchronize()
    assert relative(got, want) < 1e-2


@pytest.mark.parametrize(
    "name", by_compiled_code("compile", "triton", "sdpa", "compile_default", "int8")
)
def test_nothing_is_compiled_again(name):
    import torch._dynamo.config
    from torch._dynamo.utils import counters

    with torch._dynamo.config.patch(error_on_recompile=True):
        sam = shared(name)
        sam.embed(photos(1))
        before = counters["stats"]["unique_graphs"]
        for count in (1, 2, 3, 4, 5, 9):
            sam.predict(sam.embed(photos(count, seed=count)), click(count))
        with torch.inference_mode():
            sam.embed(photos(2))
        with torch.autocast("cuda", torch.float16):
            sam.embed(photos(2))
    assert counters["stats"]["unique_graphs"] == before
    assert not counters["graph_break"]


@pytest.mark.parametrize("recipe", by_compiled_code(GRAPHED, "fused", "compile"))
def test_a_replay_gives_what_the_same_steps_give(recipe):
    chosen = RECIPES[recipe] if isinstance(recipe, str) else recipe
    mode = "default" if chosen.compile else None
    plain, sam = load(replace(chosen, graph=False, compile=mode)), shared(recipe)
    for count in (4, 1, 3, 2, 6, 4):
        images = photos(count, seed=count)
        assert relative(sam.embed(images).features, plain.embed(images).features) < 1e-2
    assert sam.encode.graph is not None
    assert set(sam.encode.graph.sizes) == ({4} if chosen.compile else {1, 2, 4})


@pytest.mark.parametrize("recipe", by_compiled_code(GRAPHED, "compile", "compile_default", "fused"))
def test_answers_survive_later_calls(recipe):
    """Embed A, embed B, predict A."""
    sam = shared(recipe)
    a = sam.embed(photos(4, seed=1))
    kept = a.features.clone()
    answer = sam.predict(a, click(4))[0].low_res
    before = answer.clone()
    for count in (4, 1, 2, 4):
        sam.predict(sam.embed(photos(count, seed=2)), click(count))
    assert torch.equal(a.features, kept)
    assert torch.equal(answer, before)
    assert torch.equal(sam.predict(a, click(4))[0].low_res, before)


def test_the_same_image_has_the_same_answer_in_every_company():
    sam = load(GRAPHED, batch_size=8)
    images = photos(8)
    together = sam.embed(images).features
    for count in (1, 2, 7):
        alone = sam.embed(images[:count]).features
        assert relative(alone, together[:count]) < 1e-2


def test_weights_written_or_replaced_are_seen_by_a_graph():
    sam = load(GRAPHED)
    fresh = load("bf16_folded")
    images = photos(2)
    sam.embed(images)
    bias = sam.model.image_encoder.blocks[0].mlp.lin2.bias
    with torch.no_grad():
        bias.add_(1)
        fresh.model.image_encoder.blocks[0].mlp.lin2.bias.add_(1)
    assert relative(sam.embed(images).features, fresh.embed(images).features) < 1e-2
    with torch.no_grad():
        new = bias + 1
        fresh.model.image_encoder.blocks[0].mlp.lin2.bias.add_(1)
    sam.model.image_encoder.blocks[0].mlp.lin2.bias = torch.nn.Parameter(new)
    assert relative(sam.embed(images).features, fresh.embed(images).features) < 1e-2
    assert sam.encode.graph.sizes == (2,)


def test_a_model_that_has_moved_says_so():
    sam = load(GRAPHED)
    sam.embed(photos(1))
    sam.model.cpu()
    with pytest.raises(UsageError, match="load it again"):
        sam.embed(photos(1))


def test_threads_on_streams_of_their_own_get_their_own_answers():
    sam = shared(GRAPHED)
    images = [photos(2, seed=seed) for seed in range(4)]
    expected = [sam.embed(each).features for each in images]
    wrong = []

    def work(index):
        with torch.cuda.stream(torch.cuda.Stream()):
            for _ in range(20):
                features = sam.embed(images[index]).features
                torch.cuda.current_stream().synchronize()
                if not torch.equal(features, expected[index]):
                    wrong.append(index)

    threads = [threading.Thread(target=work, args=(index,)) for index in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


@pytest.mark.timeout(600)
@pytest.mark.xdist_group("new process")  # groups start first, and this one takes longest
@pytest.mark.parametrize("name", ["compile_default", "triton"])
def test_a_new_process_starts_from_what_was_kept(name, tmp_path):
    """Another torch cache, empty; only samfast's own is the same. As exact as plain bfloat16."""
    program = f"""
import json, sys
sys.path.insert(0, {str(Path(__file__).parents[2])!r})
from tests.gpu.test_encoder_steps import load, photos, relative
sam = load({name!r}, tuned=True)
features = sam.embed(photos(4)).features
first = sam.encode.compiled.first
truth, plain = (load(name).embed(photos(4)).features for name in ("fp32_folded", "bf16_triton"))
errors = relative(features, truth), relative(plain, truth)
total = features.double().norm().item()
print(json.dumps([first.graphs, first.kept is not None, total, first.seconds, errors]))
"""
    if refusal(RECIPES[name], CUDA) is not None:
        pytest.skip(str(refusal(RECIPES[name], CUDA)))
    answers = []
    for run in ("cold", "warm"):
        environment = dict(
            os.environ,
            SAMFAST_CACHE=str(tmp_path / "samfast"),
            TORCHINDUCTOR_CACHE_DIR=str(tmp_path / run),
            TRITON_CACHE_DIR=str(tmp_path / run / "triton"),
        )
        done = subprocess.run(
            [sys.executable, "-c", program],
            env=environment,
            capture_output=True,
            text=True,
            timeout=280,
        )
        assert done.returncode == 0, done.stderr
        answers.append(json.loads(done.stdout.splitlines()[-1]))
        print(name, run, answers[-1])
    cold, warm = answers
    assert cold[:2] == [2, False]
    assert warm[:2] == [0, True]
    assert warm[2] == pytest.approx(cold[2], rel=1e-2)
    assert warm[3] < cold[3]
    for *_, (compiled, plain) in answers:
        assert compiled <= 2 * plain
