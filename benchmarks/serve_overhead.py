"""Processor time of `samfast serve` for a click beside the model, whose answers are made up.

    python benchmarks/serve_overhead.py [--code DIR] [--rounds N] [--seconds S] [--clients N]
    [--device-ms MS] [--http-processes N...] [--json FILE]

The server is the real one, in a process of its own, with the engine's `embed` and `predict` and the
encoding of masks replaced: every batch waits for some milliseconds without a processor, as for a
GPU, and every mask is the same text of COCO. So all that is measured is the server: HTTP, JSON,
prompts, queue, threads, answers. With `--http-processes`, what the model's own process needs for a
click is told too, which on a GPU bounds the rate. `--code` takes the server of another checkout of
samfast, to compare two on one machine; times of both on a machine that others use differ more by
the hour than by the code.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, os.environ.get("SAMFAST_CODE", str(ROOT)))
sys.path.insert(1, str(ROOT))

COUNTS = "Ya`2" + "3L4M3M2N2N2N1O2N1O1O1O1N2O1O1O0000000000O100O1O1N2O1N2N2N2M4M2M5J7I" * 9
"""The text of each mask: some 600 characters, as a mask of a photo of 640 x 480 has."""

SIZE = (480, 640)
MASKS = 3
WAITS = 4
"""Times that a batch waits for the device, each of which gives Python's lock away."""


def serve(milliseconds: float, http_processes: int) -> int:
    """Run the command with an engine whose answers are made up."""
    import numpy as np
    import torch

    from samfast.cli.main import main as samfast_main
    from samfast.engine import SamFast
    from samfast.serve import device_tasks
    from samfast.types import Embeddings, RleAnswers

    def embed(self: Any, images: Any, **_: Any) -> Embeddings:
        count = len(images)
        features = torch.zeros(count, 256, 64, 64)
        return Embeddings(features, (SIZE,) * count, ((768, 1024),) * count, self.fingerprint)

    def predict(self: Any, embeddings: Any, prompts: Any, **options: Any) -> RleAnswers:
        for _ in range(WAITS):
            time.sleep(milliseconds / 1e3 / WAITS)
        count = sum(map(len, prompts))
        # Of no device: logits on a CPU would be copied for the next prompt, and those on a GPU are
        # not.
        logits = torch.zeros(count, MASKS, 256, 256, device="meta")
        masks = count * MASKS
        boxes = np.tile(np.array([100, 120, 200, 150], np.int32), (masks, 1))
        areas, ious = np.full(masks, 12345, np.int32), np.full(masks, 0.93215, np.float32)
        return RleAnswers([COUNTS] * masks, areas, boxes, ious, logits)

    if not hasattr(SamFast, "predict_rle_batch"):
        raise SystemExit("this code's server answers by another call than predict_rle_batch")
    changed: Any = SamFast
    changed.embed, changed.predict_rle_batch = embed, predict
    replaced: Any = device_tasks
    # Joining features is the engine's part, and on a GPU it costs the host nothing to speak of.
    joined = replaced._joined
    replaced.DeviceTasks._together = lambda self, each: joined(each[0].features, each)
    command = ["serve", "--port", "0", "--quiet", "--batch-objects", "64"]
    return samfast_main([*command, "--http-processes", str(http_processes)])


def measure(code: Path, http_processes: int, args: argparse.Namespace) -> dict[str, Any]:
    """One run of a server: clicks a second, milliseconds of its processor for each, latency."""
    from benchmarks.child_environment import child_environment
    from benchmarks.serve_load import Load, click, clicks, percentiles, photos

    process = subprocess.Popen(
        [
            *(sys.executable, __file__, "--serve", "--device-ms", str(args.device_ms)),
            *("--http-processes", str(http_processes)),
        ],
        stderr=subprocess.PIPE,
        text=True,
        env=child_environment(code, SAMFAST_CODE=str(code)),
    )
    assert process.stderr is not None
    try:
        while "http://" not in (line := process.stderr.readline()):
            if not line:
                raise SystemExit("the server did not start")
            print(line, end="", file=sys.stderr)
        port = int(line.rsplit(":", 1)[1].strip(" /\n"))
        os.environ.pop("SAMFAST_DATA", None)  # random images, all of SIZE
        files = photos(args.clients)
        load = Load(port, files, clicks(files))
        asyncio.run(load.upload())
        click(args, load, args.clients, seconds=1.0)
        pids = [process.pid, *_children(process.pid)]
        before = [_cpu_seconds(pid) for pid in pids]
        clicked = click(args, load, args.clients, seconds=args.seconds)
        used = [_cpu_seconds(pid) - start for pid, start in zip(pids, before, strict=True)]
    finally:
        process.terminate()
        process.wait(60)
    count = len(clicked.latencies)
    assert set(clicked.statuses) == {"200"}, clicked.statuses
    return {
        "clicks": count,
        "clicks_per_second": round(count / clicked.seconds, 1),
        "server_cpu_ms_per_click": round(sum(used) / count * 1e3, 4),
        "model_process_cpu_ms_per_click": round(used[0] / count * 1e3, 4),
        "client_cpu_ms_per_click": round(clicked.cpu_seconds / count * 1e3, 4),
        **percentiles(clicked.latencies),
    }


def _children(pid: int) -> list[int]:
    """The ids of a process's children (Linux)."""
    threads = Path(f"/proc/{pid}/task").iterdir()
    return [int(child) for each in threads for child in (each / "children").read_text().split()]


def _cpu_seconds(pid: int) -> float:
    """Processor time of all threads of a process (Linux)."""
    total = 0
    for thread in Path(f"/proc/{pid}/task").iterdir():
        total += int((thread / "schedstat").read_text().split()[0])
    return total / 1e9


def main() -> int:
    """Measure each checkout in turns, and print or write what was found."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--code", type=Path, action="append", metavar="DIR")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=5.0)
    parser.add_argument("--clients", type=int, default=64)
    parser.add_argument("--client-processes", type=int, default=1)
    parser.add_argument("--device-ms", type=float, default=3.0, help="of each batch (default: 3)")
    parser.add_argument("--http-processes", type=int, nargs="+", default=[0], metavar="N")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--serve", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.serve:
        return serve(args.device_ms, *args.http_processes)
    args.cores, args.client_cores = sorted(os.sched_getaffinity(0)), 0
    from samfast.bench.environment import stamp

    codes = [path.resolve() for path in args.code or [ROOT]]
    servers = [(code, count) for code in codes for count in args.http_processes]
    runs: dict[tuple[Path, int], list[dict[str, Any]]] = {each: [] for each in servers}
    for _ in range(args.rounds):
        for each in servers:
            runs[each].append(measure(*each, args))
            print(*each, json.dumps(runs[each][-1]), flush=True)
    rows = []
    for (code, count), measured in runs.items():
        row: dict[str, Any] = {"commit": _commit(code), "http_processes": count}
        for name in ("server_cpu_ms_per_click", "model_process_cpu_ms_per_click", "p99_ms"):
            row[name] = statistics.median(each[name] for each in measured)
        rows.append({**row, "runs": measured})
        print(code, json.dumps(row))
    report = {
        "what": f"samfast serve, {args.clients} clients, engine made up, "
        f"{args.device_ms:g} ms a batch",
        "environment": stamp("cpu"),
        "load_average": [round(each, 1) for each in os.getloadavg()],
        "servers": rows,
    }
    if args.json is not None:
        args.json.write_text(json.dumps(report, indent=1) + "\n")
    return 0


def _commit(code: Path) -> str:
    git = subprocess.run(
        ["git", "-C", str(code), "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"],
        capture_output=True,
        text=True,
        check=True,
    )
    return git.stdout.strip()


if __name__ == "__main__":
    sys.exit(main())
