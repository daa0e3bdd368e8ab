"""`samfast profile`: where the time of one image goes, stage by stage and operator by operator."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, record_function

from samfast.bench import kernels
from samfast.bench.environment import stamp
from samfast.bench.timing import synchronize
from samfast.errors import InputError, OutputError
from samfast.images import ImageLike, load_image, to_batch
from samfast.outputs.atomic import atomic_write
from samfast.types import Prompts

if TYPE_CHECKING:
    from samfast.engine import SamFast

REGIONS = ("preprocess", "encoder", "prompts", "decoder", "masks")
"""The stages of an image, in their order; the names of the regions in the trace."""


def profile(
    sam: SamFast,
    out: str | os.PathLike[str],
    *,
    image: ImageLike | None = None,
    points: int = 1,
    warmup: int = 1,
    top: int = 40,
) -> dict[str, Any]:
    """Trace embedding one image and answering clicks on it, and write what was seen into the folder `out`.

    image    None: a synthetic one of 640 x 480
    points   objects asked, a click each
    warmup   runs before the traced one
    top      operators in the table
    writes   trace.json (Chrome's format: open it in ui.perfetto.dev), profile.json and profile.txt
    returns  what profile.json holds: "model", "recipe", "regions" (seconds of each stage by the host's clock, the
             GPU waited for), "operators" (name, calls, seconds on CPU and GPU, without what they call in turn),
             "encoder_kernels" (see `samfast.bench.kernels`) and "environment"

    Raises ImageError, OutputError when the folder cannot be written, InputError for counts below 1.
    """
    if points < 1 or warmup < 0 or top < 1:
        raise InputError(f"points={points}, warmup={warmup}, top={top}; give at least 1, 0 and 1")
    folder = Path(out)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"{folder}: cannot be made a folder: {error.strerror}; choose another") from error
    source = _synthetic() if image is None else image
    for _ in range(warmup):
        _run(sam, source, points, _Stages(sam.device))
    activities = [ProfilerActivity.CPU]
    if sam.device.type == "cuda":
        activities.append(ProfilerActivity.CUDA)
    with torch.profiler.profile(activities=activities) as seen:
        _run(sam, source, points, _Stages(sam.device))
    averages = seen.key_averages()
    stages = {event.key: event.cpu_time_total / 1e6 for event in averages if event.key in REGIONS}
    operators = sorted(
        (
            {
                "name": event.key,
                "calls": event.count,
                "cpu_seconds": event.self_cpu_time_total / 1e6,
                "gpu_seconds": event.self_device_time_total / 1e6,
            }
            for event in averages
            if event.key not in REGIONS
        ),
        key=lambda row: -(row["cpu_seconds"] if sam.device.type == "cpu" else row["gpu_seconds"]),
    )[:top]
    result = {
        "model": sam.name,
        "recipe": sam.recipe_name,
        "regions": {name: stages.get(name, 0.0) for name in REGIONS},
        "operators": operators,
        "encoder_kernels": _encoder(sam, source, top),
        "environment": stamp(sam.device),
    }
    seen.export_chrome_trace(str(folder / "trace.json"))
    atomic_write(folder / "profile.json", (json.dumps(result, indent=2) + "\n").encode())
    atomic_write(folder / "profile.txt", describe(result).encode())
    return result


def describe(result: dict[str, Any]) -> str:
    """The result as tables: stages, operators, and the kernels of an encoder call."""
    whole = sum(result["regions"].values()) or 1.0
    lines = [f"{result['model']}, recipe {result['recipe']}, {result['environment']['device']}", ""]
    lines += [f"{name:<12} {s * 1e3:10.2f} ms {s / whole:6.1%}" for name, s in result["regions"].items()]
    lines += ["", f"{'calls':>7} {'CPU ms':>10} {'GPU ms':>10}  operator"]
    lines += [
        f"{row['calls']:>7} {row['cpu_seconds'] * 1e3:>10.2f} {row['gpu_seconds'] * 1e3:>10.2f}  {row['name']}"
        for row in result["operators"]
    ]
    return "\n".join(lines) + "\n\n" + kernels.describe(result["encoder_kernels"])


class _Stages:
    """One region of the trace at a time: entering a stage ends the one before it."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._open: Any = None

    def enter(self, name: str | None) -> None:
        """Begin stage `name`; None: only end the present one."""
        if self._open is not None:
            synchronize(self._device)  # else a stage would end before its kernels have
            self._open.__exit__(None, None, None)
        self._open = None if name is None else record_function(name)
        if self._open is not None:
            self._open.__enter__()


def _run(sam: SamFast, source: ImageLike, points: int, stages: _Stages) -> None:
    with _watched(sam, stages):
        stages.enter("preprocess")
        embeddings = sam.embed([source])
        height, width = embeddings.original_sizes[0]
        coords = np.random.default_rng(0).random((points, 1, 2)) * (width - 1, height - 1)
        stages.enter("prompts")
        sam.predict(embeddings, [Prompts(points=coords, labels=np.ones((points, 1), dtype=np.int64))])
        stages.enter(None)


@contextmanager
def _watched(sam: SamFast, stages: _Stages) -> Iterator[None]:
    """Hooks that enter the stages where the engine does, so that what is traced is what users run.

    A compiled or captured encoder does not call the module, so it is the engine's own call that is watched.
    """
    model, encode = sam.model, sam.encode

    def encoding(pixels: Tensor) -> Tensor:
        stages.enter("encoder")
        features: Tensor = encode(pixels)
        stages.enter(None)
        return features

    def before(module: nn.Module, name: str) -> Any:
        return module.register_forward_pre_hook(lambda *_: stages.enter(name))

    def after(module: nn.Module, name: str | None) -> Any:
        return module.register_forward_hook(lambda *_: stages.enter(name))

    hooks = [
        before(model.prompt_encoder, "prompts"),
        before(model.mask_decoder, "decoder"),
        after(model.mask_decoder, "masks"),
    ]
    sam.encode = encoding  # type: ignore[assignment]
    try:
        yield
    finally:
        sam.encode = encode
        stages.enter(None)
        for hook in hooks:
            hook.remove()


def _encoder(sam: SamFast, source: ImageLike, top: int) -> dict[str, Any]:
    """The kernels of one encoder call on that image; `_run` has called the encoder before."""
    pixels = to_batch([load_image(source)], sam.image_size).pixels.to(sam.device)
    return kernels.kernel_table(lambda: sam.encode(pixels), sam.device, top=top)


def _synthetic() -> Any:
    return np.random.default_rng(0).integers(0, 256, (480, 640, 3), dtype=np.uint8)
