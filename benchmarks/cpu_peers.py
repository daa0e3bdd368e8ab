"""Measures the image encoder on a CPU beside what a user would pick instead of samfast.

    python benchmarks/cpu_peers.py [--models NAME...] [--groups NAME...] [--starts N] [--rounds N]
    [--json FILE]

segment-anything 1.0, samfast's recipes for CPUs, OpenVINO in float32, bfloat16 and int8 (NNCF), and
ONNX Runtime in float32 and int8 (dynamic) have the same weights, random ones for ViT-B and the
packaged ones of vit_xs, and encode the same photo, one image at a time. Each runs in a process of
its own and is checked against the original. They are then timed in turn, an image each, round after
round in another order, so that other load on the machine, and what a variant leaves behind, affect
all alike; what is compared is the fastest of each. Where a process's memory lies makes a graph up
to a twentieth faster or slower, so with --starts all processes are started again and again.
The file keeps rows of other models and groups.

Needs what the tests need, and what it compares with: pip install openvino nncf onnx onnxruntime.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import torch  # noqa: E402
from torch import Tensor, nn  # noqa: E402

from benchmarks.cpu_vit_xs import coffee  # noqa: E402

Run = Callable[[Tensor], Tensor]

SEED = 0
BASE = "segment-anything"
GROUPS = {
    "fp32": (
        *(BASE, "fp32_blocked", "fp32_onednn", "fp32_openvino"),
        *("openvino_fp32", "onnxruntime_fp32"),
    ),
    "bf16": ("fp32_openvino", "bf16_blocked", "bf16_onednn", "bf16_openvino", "openvino_bf16"),
    "int8": (
        *("bf16_openvino", "int8_onednn", "int8_openvino", "fp32_int8_onednn"),
        "fp32_int8_openvino",
        *("openvino_int8", "onnxruntime_int8"),
    ),
}
"""The variants that are timed in turn; those of all groups together would need too much memory. The
first of a group is in the one before too. fp32_openvino is samfast's recipe, openvino_fp32 what
OpenVINO makes of the original."""

LARGEST_ERROR = {"int8": 0.2, "bf16": 0.05, "fp32": 1e-5}
"""Of a variant against the original, by the first of these words in its name. A larger one is a
mistake, not rounding."""

PACKAGES = ("segment-anything", "openvino", "nncf", "onnx", "onnxruntime")


def weights(model: str) -> dict[str, Tensor]:
    """Of the encoder's SAM, the same in every process."""
    import samfast
    from samfast.loading import random_weights
    from samfast.model.config import CONFIGS

    if model == "vit_xs":
        return samfast.load(model, device="cpu", recipe="fp32").model.state_dict()
    return random_weights(CONFIGS[model], SEED).state_dict()


def original(model: str) -> nn.Module:
    """The image encoder of segment-anything 1.0."""
    from samfast.model.config import CONFIGS
    from tests import pairs

    sam = pairs.original(CONFIGS[model])
    sam.load_state_dict(weights(model))
    encoder: nn.Module = sam.image_encoder.eval()
    return encoder


def photo(turned: int = 0) -> Tensor:
    """A photo as the encoder takes it, (1, 3, 1024, 1024) normalised; turned by right angles."""
    import numpy as np

    from samfast.images.resize import resize_image
    from samfast.types import PIXEL_MEAN, PIXEL_STD

    pixels = resize_image(np.ascontiguousarray(np.rot90(coffee(None), turned)), 1024)
    mean, std = torch.tensor(PIXEL_MEAN), torch.tensor(PIXEL_STD)
    image = ((torch.from_numpy(pixels) - mean) / std).permute(2, 0, 1)
    height, width = image.shape[1:]
    return nn.functional.pad(image, (0, 1024 - width, 0, 1024 - height))[None].contiguous()


def variant(name: str, model: str, folder: Path) -> Run:
    """The variant's encoder, ready to run."""
    if name == BASE:
        return original(model)
    library, _, kind = name.partition("_")
    if library == "openvino":
        return openvino(model, kind)
    if library == "onnxruntime":
        return onnxruntime(model, kind, folder)
    import samfast

    checkpoint = None
    if model != "vit_xs":
        checkpoint = str(folder / "weights.pt")
        torch.save(weights(model), checkpoint)
    return samfast.load(model, checkpoint=checkpoint, device="cpu", recipe=name).encode


def openvino(model: str, kind: str) -> Run:
    """OpenVINO on the original's module; int8 by NNCF, what it does not quantize in bfloat16."""
    import openvino as ov  # type: ignore[import-untyped, import-not-found, unused-ignore]

    example = photo()
    graph = ov.convert_model(original(model), example_input=example, input=[example.shape])
    if kind == "int8":
        import nncf  # type: ignore[import-untyped, import-not-found, unused-ignore]

        photos = nncf.Dataset([photo(turned).numpy() for turned in range(4)])
        graph = nncf.quantize(graph, photos, model_type=nncf.ModelType.TRANSFORMER, subset_size=4)
    compiled = ov.compile_model(
        graph,
        "CPU",
        {
            "PERFORMANCE_HINT": "LATENCY",
            "INFERENCE_PRECISION_HINT": "f32" if kind == "fp32" else "bf16",
        },
    )
    return lambda pixels: torch.from_numpy(compiled(pixels.numpy())[0])


def onnxruntime(model: str, kind: str, folder: Path) -> Run:
    """ONNX Runtime on the original's module; int8 by its dynamic quantization."""
    import onnxruntime as ort  # type: ignore[import-untyped, import-not-found, unused-ignore]

    path = folder / f"{model}.onnx"
    if not path.is_file():
        torch.onnx.export(original(model), (photo(),), str(path), dynamo=False, opset_version=17)
    if kind == "int8":
        from onnxruntime import quantization  # type: ignore[import-untyped, unused-ignore]

        quantized = folder / f"{model}_int8.onnx"
        int8 = quantization.QuantType.QInt8
        quantization.quantize_dynamic(
            path, quantized, weight_type=int8, op_types_to_quantize=["MatMul"]
        )
        path = quantized
    session = ort.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    (entry,) = session.get_inputs()
    return lambda pixels: torch.from_numpy(session.run(None, {entry.name: pixels.numpy()})[0])


def worker(name: str, model: str, folder: Path) -> None:
    """Time one image for each line "go" on stdin, as a line of JSON; an empty line ends."""
    from samfast.bench.peak_memory import peak_resident, resident

    answers = os.dup(1)  # stdout is for the rows; the libraries' own messages go to stderr
    os.dup2(2, 1)
    imported = resident()
    pixels = photo()
    truth = folder / f"{model}.pt"
    with torch.no_grad(), os.fdopen(answers, "w") as out:

        def say(value: Any) -> None:
            out.write(json.dumps(value) + "\n")
            out.flush()

        try:
            run = variant(name, model, folder)
            answer = run(pixels).float().clone()
        except Exception as failure:
            say({"status": f"failed: {type(failure).__name__}: {failure}"[:300]})
            return
        if name == BASE:
            torch.save(answer, truth)
        exact = torch.load(truth, weights_only=True).double()
        error = float((answer.double() - exact).norm() / exact.norm())
        say({"status": "ok", "max_relative_error": error})
        while sys.stdin.readline().strip():
            start, start_cpu = time.perf_counter(), time.process_time()
            run(pixels)
            say([time.perf_counter() - start, time.process_time() - start_cpu])
        peak = peak_resident()
        known = None if peak is None or imported is None else peak - imported
        say({"peak_memory_bytes": known})


class Variant:
    """A worker process and what it has measured."""

    def __init__(self, name: str, model: str, folder: Path) -> None:
        self.name, self.model = name, model
        self.seconds: list[float] = []
        self.cpu_seconds: list[float] = []
        command = [sys.executable, str(Path(__file__).resolve()), "--worker", name]
        command += ["--models", model, "--folder", str(folder)]
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        self.row: dict[str, Any] = self._answer()

    @property
    def runs(self) -> bool:
        """Whether it could be loaded."""
        return bool(self.row["status"] == "ok")

    def time_once(self) -> None:
        """One more image."""
        self._say("go")
        seconds, cpu_seconds = self._answer()
        self.seconds.append(seconds)
        self.cpu_seconds.append(cpu_seconds)

    def finish(self) -> dict[str, Any]:
        """The row, with the keys of `samfast bench`; ends the process."""
        from samfast.recipes import RECIPES

        recipe = RECIPES.get(self.name)
        row = {
            "recipe": self.name if recipe is not None else f"rival:{self.name}",
            "definition": None if recipe is None else str(recipe),
            "model": self.model,
            "batch_size": 1,
        }
        if not self.runs or not self.seconds:  # only its answer was needed
            return row | self.row
        self._say("")
        self.row |= self._answer()
        self._process.wait()
        return row | self.row | {"samples": self.seconds, "cpu_samples": self.cpu_seconds}

    def kill(self) -> None:
        """End the process."""
        self._process.kill()
        self._process.wait()

    def _say(self, word: str) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(word + "\n")
        self._process.stdin.flush()

    def _answer(self) -> Any:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise SystemExit(f"{self.name}: its process ended with {self._process.wait()}")
        return json.loads(line)


def measure(
    names: tuple[str, ...], model: str, folder: Path, rounds: int, starts: int = 1
) -> list[dict[str, Any]]:
    """The rows of variants that are timed in turn, in processes that are started so many times."""
    runs = [measure_once(names, model, folder, rounds, seed) for seed in range(starts)]
    return [joined(rows) for rows in zip(*runs, strict=True)]


def joined(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """One row of a variant's rows, of which each is of another process."""
    failed = next((row for row in rows if "samples" not in row), None)
    if failed is not None:
        return failed
    samples = [seconds for row in rows for seconds in row["samples"]]
    peaks = [row["peak_memory_bytes"] for row in rows]
    return {
        **rows[0],
        "max_relative_error": max(row["max_relative_error"] for row in rows),
        "peak_memory_bytes": None if None in peaks else max(peaks),
        "seconds": min(samples),
        "median_seconds": statistics.median(samples),
        "samples": samples,
        "cpu_samples": [seconds for row in rows for seconds in row["cpu_samples"]],
        "seconds_by_start": [min(row["samples"]) for row in rows],
        "encoder_images_per_second": 1 / min(samples),
        "compile_seconds": 0.0,
    }


def measure_once(
    names: tuple[str, ...], model: str, folder: Path, rounds: int, seed: int
) -> list[dict[str, Any]]:
    """The rows of variants that are timed in turn, in an order that the seed decides."""
    variants: list[Variant] = []
    try:
        for name in names:
            variants.append(Variant(name, model, folder))
            print(f"{model} {name}: {variants[-1].row}", file=sys.stderr, flush=True)
        timed = [each for each in variants if each.runs]
        # The one before leaves caches, and threads that wait for more work, in another state.
        order = random.Random(seed)
        for number in range(rounds):
            for each in order.sample(timed, len(timed)):
                each.time_once()
            done = "  ".join(f"{each.name} {each.seconds[-1]:.2f}" for each in timed)
            print(f"round {number + 1}: {done}", file=sys.stderr, flush=True)
        return [each.finish() for each in variants]
    finally:
        for each in variants:
            each.kill()


def table(rows: list[dict[str, Any]]) -> str:
    """The rows for people."""
    lines = [f"{'model':7} {'group':5} {'variant':24} {'s/image':>8} {'median':>8} {'error':>9}"]
    for row in rows:
        start = f"{row['model']:7} {row['group']:5} {row['recipe']:24}"
        if row["status"] != "ok":
            lines.append(f"{start} {row['status']}")
            continue
        lines.append(
            f"{start} {row['seconds']:8.3f} {row['median_seconds']:8.3f} "
            f"{row['max_relative_error']:9.1e}{'' if row['parity'] else '  WRONG'}"
        )
    return "\n".join(lines)


def main() -> int:
    """0, or 1 if some answer was wrong."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", default=str(ROOT / "benchmarks" / "results" / "cpu_peers.json"))
    parser.add_argument("--models", nargs="+", default=["vit_b", "vit_xs"], metavar="NAME")
    parser.add_argument("--groups", nargs="+", choices=GROUPS, default=list(GROUPS))
    parser.add_argument("--rounds", type=int, default=7, help="timed images a variant (at least 3)")
    parser.add_argument("--starts", type=int, default=1, help="times that processes are started")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.worker:
        worker(arguments.worker, arguments.models[0], arguments.folder)
        return 0
    if arguments.rounds < 3:
        parser.error("--rounds must be at least 3")
    if arguments.starts < 1:
        parser.error("--starts must be at least 1")
    from samfast.bench.environment import stamp

    environment = stamp("cpu") | {
        "packages": {name: metadata.version(name) for name in PACKAGES},
    }
    path = Path(arguments.json)
    measured = {(model, group) for model in arguments.models for group in arguments.groups}
    rows: list[dict[str, Any]] = []
    if path.is_file():
        before = json.loads(path.read_text(encoding="utf-8"))["rows"]
        rows = [row for row in before if (row["model"], row["group"]) not in measured]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for model in arguments.models:
            if "fp32" not in arguments.groups:
                measure((BASE,), model, folder, 0)
            for group in arguments.groups:
                names = GROUPS[group]
                for row in measure(names, model, folder, arguments.rounds, arguments.starts):
                    kind = row["recipe"].removeprefix("rival:").replace(BASE, "fp32")
                    kind = next(each for each in LARGEST_ERROR if each in kind)
                    good = row["status"] != "ok" or row["max_relative_error"] <= LARGEST_ERROR[kind]
                    rows.append({**row, "group": group, "parity": good, "environment": environment})
    print(table(rows))
    result = {
        "what": "image encoders on a CPU, one photo at a time; vit_b with random weights, vit_xs "
        "with the packaged ones",
        "timed_region": "normalised pixels to embeddings; one process a variant, those of a group "
        "timed in turn, after a warm-up; seconds are the fastest of the rounds of all starts",
        "rounds": arguments.rounds,
        "starts": arguments.starts,
        "rows": rows,
        "environment": environment,
    }
    path.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    return 0 if all(row["parity"] for row in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
