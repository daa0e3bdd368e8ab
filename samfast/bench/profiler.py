"""`samfast profile`: a trace, PyTorch's snapshot of the GPU's memory, and a summary in JSON."""

from __future__ import annotations

import json
import os
import pickle
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.profiler import record_function

from samfast.atomic_files import atomic_write
from samfast.bench import samples
from samfast.bench.environment import stamp
from samfast.bench.kernel_table import shortened, table
from samfast.bench.peak_memory import Peak
from samfast.bench.samples import one_click_each
from samfast.bench.sync_waits import noted
from samfast.bench.timing import measure, synchronize
from samfast.bench.trace_events import (
    REGION,
    GpuTime,
    Span,
    Trace,
    gpu_time,
    gpu_work,
    record,
    spans,
    timed_work,
)
from samfast.errors import DeviceMemoryError, OutputError
from samfast.images import ImageLike, LoadedImage, load_image

if TYPE_CHECKING:
    from samfast.engine import SamFast

TRACE, SNAPSHOT, SUMMARY = "trace.json.gz", "memory.pickle", "profile.json"
"""The files of a profile; the summary is written last, when the others are whole."""

REGIONS = ("preprocess", "encoder", "prompts", "decoder", "masks")
"""The stages of an image, in order; they are the regions of the trace."""

OUTSIDE = "outside"
"""The name in the summary of what belongs to no region."""

RUN = "run"
"""The region around a whole run."""

STEPS = 4
"""Passes over the workload: timed alone, traced, watched for waits, memory."""

MAX_MEMORY_EVENTS = 200_000
"""Events of the GPU's allocator that the snapshot keeps."""


def profile(
    sam: SamFast,
    out: str | os.PathLike[str],
    *,
    images: Sequence[ImageLike | LoadedImage] | None = None,
    points: int = 8,
    repeats: int = 3,
    progress: Callable[[int], None] = lambda steps: None,
) -> dict[str, Any]:
    """Run a batch several times and write where its time and memory go into the folder `out`.

    images     the first `sam.batch_size` of them are the batch; None: synthetic ones of 640 x 480
    points     clicks in each image
    repeats    traced runs
    progress   called with 1 after each of STEPS passes
    writes     trace.json.gz, in Chrome's format, with the stages as regions; on a GPU
               memory.pickle, PyTorch's snapshot of one run; profile.json
    returns    what profile.json holds; times are of one run. "seconds" and "idle_share" are those
               "alone" and those in the traced runs, which the profiler slows. "waits" is as of
               `sync_waits.noted`, "memory" as of `Peak`; figures of a GPU are None on a CPU

    Raises ImageError, OutputError if a file cannot be written, DeviceMemoryError.
    """
    run, workload = _workload(sam, images, points)
    folder = Path(out)
    folder.mkdir(parents=True, exist_ok=True)
    on_gpu = sam.device.type == "cuda"

    def runs(count: int = 1) -> None:
        stages = Stages()
        with watched(sam, stages):
            for _ in range(count):
                run(stages)

    try:
        alone = measure(lambda: run(Stages()), sam.device, repeats=repeats).median
        progress(1)
        if on_gpu:
            record(runs, sam.device)  # the first trace of a process starts the profiler
        packed, trace = record(lambda: runs(repeats), sam.device)
        progress(1)
        waits = _waits(sam, run) if on_gpu else None  # in a run apart, which the warnings slow
        progress(1)
        memory, snapshot = _memory(runs, sam.device)
        progress(1)
    except torch.OutOfMemoryError as error:
        raise DeviceMemoryError(
            f"the device's memory ran out with {workload['images']} images at once; use a smaller "
            "--batch-size, or fewer --points"
        ) from error
    files = {TRACE: packed} | ({} if snapshot is None else {SNAPSHOT: snapshot})
    result = {
        "model": sam.name,
        "recipe": sam.recipe_name,
        "workload": {**workload, "repeats": repeats, "batch_size": sam.batch_size},
        **summarize(trace, repeats, alone, on_gpu=on_gpu),
        "waits": waits,
        "memory": memory,
        "files": [*files, SUMMARY],
        "environment": stamp(sam.device),
    }
    files[SUMMARY] = (json.dumps(result, indent=2, allow_nan=False) + "\n").encode()
    _write(folder, files)
    return result


class Stages:
    """The regions of a run, one at a time: entering a stage ends the one before it."""

    def __init__(self) -> None:
        self.name: str | None = None
        self._region: Any = None

    def enter(self, name: str | None) -> None:
        """Begin stage `name` unless it is the present one; None: only end that."""
        if name == self.name:
            return
        if self._region is not None:
            self._region.__exit__(None, None, None)
        self.name, self._region = name, None if name is None else record_function(name)
        if self._region is not None:
            self._region.__enter__()


@contextmanager
def watched(sam: SamFast, stages: Stages) -> Iterator[None]:
    """Enters the stages where the engine does, without adding anything that waits.

    A compiled encoder or fused decoder does not call the model's modules, and a CUDA graph replays
    prompt encoder and mask decoder as one, which counts as the decoder. So the engine's own calls
    are wrapped, and the modules have hooks for where they are called.

    preprocess  reading and resizing images, and their way to the device
    prompts     checking and packing prompts, their way to the device, and the prompt encoder
    masks       all work on the decoder's logits
    """
    encode, decode = sam.encode, sam.decode
    graphs = decode.graphs

    def encoding(pixels: Tensor) -> Tensor:
        stages.enter("encoder")
        features = encode(pixels)
        stages.enter("prompts")
        return features

    hooks = [
        module.register_forward_pre_hook(lambda *_, name=name: stages.enter(name))
        for module, name in (
            (sam.model.prompt_encoder, "prompts"),
            (sam.model.mask_decoder, "decoder"),
            (getattr(decode, "mask_decoder", None), "decoder"),
        )
        if isinstance(module, nn.Module)
    ]
    sam.encode = encoding  # type: ignore[assignment]
    sam.decode = _Watched(decode, stages, "prompts", "masks")  # type: ignore[assignment]
    if graphs is not None:
        decode.graphs = _Watched(graphs, stages, "decoder", "decoder")  # type: ignore[assignment]
    try:
        yield
    finally:
        sam.encode, sam.decode = encode, decode
        if graphs is not None:
            decode.graphs = graphs
        stages.enter(None)
        for hook in hooks:
            hook.remove()


class _Watched:
    """A callable whose calls begin one stage and end in another."""

    def __init__(self, wrapped: Any, stages: Stages, first: str, then: str) -> None:
        self._wrapped, self._stages, self._first, self._then = wrapped, stages, first, then

    def __call__(self, *arguments: Any, **options: Any) -> Any:
        self._stages.enter(self._first)
        answer = self._wrapped(*arguments, **options)
        self._stages.enter(self._then)
        return answer

    def __getattr__(self, name: str) -> Any:
        return getattr(self._wrapped, name)


def summarize(trace: Trace, repeats: int, alone: float, *, on_gpu: bool) -> dict[str, Any]:
    """The part of the summary that comes from a trace of `repeats` runs.

    alone  seconds of a run without the profiler
    """
    regions, start, end = _regions(trace)
    idle = idle_alone = None
    used: dict[str | None, GpuTime] = {}
    scale = 1e6 * repeats
    timed = timed_work(trace, regions, on_gpu=on_gpu)
    if on_gpu:
        work = gpu_work(trace, regions)
        end = max([end, *(span.end for span, _ in work)])
        used = gpu_time(work, start, end)
        idle = sum(time.idle for time in used.values()) / (end - start)
        idle_alone = max(0.0, 1 - sum(time.busy for time in used.values()) / scale / alone)
    kernels = table([(name, time) for name, time, _ in timed], calls=repeats)
    seen = {(shortened(name), region or OUTSIDE) for name, _, region in timed}
    host = dict.fromkeys((*REGIONS, OUTSIDE), 0.0)
    for span in regions:
        host[span.name] += span.end - span.start
    whole = sum(span.end - span.start for span in spans(trace, REGION) if span.name == RUN)
    host[OUTSIDE] = whole - sum(host.values())
    rows = {}
    for name, time in host.items():
        gpu = used.get(None if name == OUTSIDE else name, GpuTime(0.0, 0.0))
        rows[name] = {
            "host_seconds": time / scale,
            "gpu_busy_seconds": gpu.busy / scale if on_gpu else None,
            "gpu_idle_seconds": gpu.idle / scale if on_gpu else None,
            "idle_share": gpu.idle_share,
        }
    return {
        "seconds": {"alone": alone, "traced": (end - start) / scale},
        "idle_share": idle,
        "idle_share_alone": idle_alone,
        "regions": rows,
        "classes": kernels["classes"],
        "kernels": [
            {**row, "regions": [name for name in host if (row["name"], name) in seen]}
            for row in kernels["rows"]
        ],
    }


def _workload(
    sam: SamFast,
    images: Sequence[ImageLike | LoadedImage] | None,
    points: int,
) -> tuple[Callable[[Stages], None], dict[str, Any]]:
    """A function that runs one batch, and its description in JSON.

    Files are read once here, so that a bad one is reported before anything runs. A run waits for
    the GPU only where a user's call does.
    """
    batch = sam.batch_size
    chosen = samples.images(batch) if images is None else list(images[:batch])
    sizes = [
        (image if isinstance(image, LoadedImage) else load_image(image)).size for image in chosen
    ]
    generator = np.random.default_rng(0)
    clicks = [
        one_click_each(generator.random((points, 2)) * (width - 1, height - 1))
        for height, width in sizes
    ]

    def run(stages: Stages) -> None:
        with record_function(RUN):
            stages.enter("preprocess")
            embeddings = sam.embed(chosen)
            stages.enter("prompts")
            sam.predict(embeddings, clicks)
            stages.enter(None)

    return run, {
        "images": len(chosen),
        "sizes": [list(size) for size in sizes],
        "points": points * len(chosen),
    }


def _regions(trace: Trace) -> tuple[list[Span], float, float]:
    """The stages, and when the first run begins and the last one ends."""
    annotated = spans(trace, REGION)
    runs = [span for span in annotated if span.name == RUN]
    stages = [span for span in annotated if span.name in REGIONS]
    return stages, runs[0].start, max(run.end for run in runs)


def _waits(sam: SamFast, run: Callable[[Stages], None]) -> list[dict[str, Any]]:
    """Where one run waits for the GPU."""
    stages = Stages()
    with watched(sam, stages), noted(lambda: stages.name or OUTSIDE) as waits:
        run(stages)
    return waits


def _memory(run: Callable[[], object], device: torch.device) -> tuple[dict[str, Any], bytes | None]:
    """The peak of a run of its own, which the history slows, and on a GPU PyTorch's snapshot."""
    snapshot, before = None, None
    with Peak(device) as peak:
        if device.type != "cuda":
            run()
        else:
            before = torch.cuda.memory_allocated(device)
            history = torch.cuda.memory._record_memory_history
            history("all", context="alloc", stacks="python", max_entries=MAX_MEMORY_EVENTS)
            try:
                run()
                synchronize(device)
                snapshot = pickle.dumps(torch.cuda.memory._snapshot())
            finally:
                history(None)
    memory = {"peak_bytes": peak.bytes, "reserved_bytes": peak.reserved, "before_bytes": before}
    return memory, snapshot


def _write(folder: Path, files: dict[str, bytes]) -> None:
    """Write the files in order; until the last one, the summary, the folder has no summary."""
    try:
        for name in (SUMMARY, SNAPSHOT):
            (folder / name).unlink(missing_ok=True)
    except OSError as error:
        raise OutputError(
            f"{folder / name}: cannot be replaced: {error.strerror}; choose another folder"
        ) from error
    for name, content in files.items():
        atomic_write(folder / name, content)
