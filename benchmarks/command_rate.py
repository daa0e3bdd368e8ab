"""Times `samfast segment` as a user runs it: until the first mask is written, and in a folder.

    python benchmarks/command_rate.py --json FILE [--device cuda] [--photos DIR] [--files N]
        [--model vit_xs] [--recipe auto] [--repeats N] [--points-per-side N] [--no-cold]
        [--parts first rates stages]

Each figure comes from a new process; nothing in the command is changed. The parts:

    base    `import torch` and CUDA's start alone, which no program of torch can avoid
    first   seconds from the start of `samfast segment photo.jpg` until its file is there, of
            everything and of one box; and how much of it is beyond the base
    cold    everything once more, with empty caches of Triton, of samfast and of the driver
    stages  where that time goes: the command in a process that notes when its steps begin and end.
            Torch and CUDA are started before the command there, one after another
    rates   images/s of a folder, as the command's last line tells it (after loading, until all
            files are written), beside the same work in a loop over `segment_each` or
            `predict_each` in another new process: its first pass over the files, which prepares
            what the command has to prepare too, and its second. On a GPU a run before them, that is
            not counted, leaves the compiled kernels in the cache for both

Photos of 640 x 480 pixels with 11 boxes each are drawn, unless --photos names a folder with
images/ and annotations.json. Everything takes --points-per-side clicks a side.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from benchmarks.child_environment import child_environment  # noqa: E402

SIZE, BOXES = (480, 640), 11
"""Of the drawn photos: (height, width), and boxes of each."""

ONE_BOX = "100,80,400,300"

PARTS = ("first", "rates", "stages")

TIMEOUT = 300
"""Seconds after which a process has failed."""

RATE = re.compile(r"([0-9.]+) images/s\s*$")

BASE = """
import sys, time
begun = time.monotonic()
import torch
imported = time.monotonic()
if sys.argv[1] != "cpu":
    torch.zeros(1, device=sys.argv[1])
    torch.cuda.synchronize()
print(begun, imported, time.monotonic())
"""


def drawn(folder: Path, count: int) -> Path:
    """Soft blobs and fine noise, whose files are about as large as those of photos, and a COCO file
    of boxes; returns the folder of photos.
    """
    import numpy as np
    from PIL import Image

    rng = np.random.default_rng(0)
    height, width = SIZE
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    (folder / "images").mkdir()
    for number in range(count):
        coarse = Image.fromarray(rng.integers(0, 255, (12, 16, 3), np.uint8))
        soft = np.asarray(coarse.resize((width, height), Image.Resampling.BICUBIC), np.int16)
        noisy = (soft + rng.normal(0, 8, soft.shape).astype(np.int16)).clip(0, 255)
        name = f"{number:04}.jpg"
        Image.fromarray(noisy.astype(np.uint8)).save(folder / "images" / name, quality=85)
        images.append({"id": number, "file_name": name, "height": height, "width": width})
        for _ in range(BOXES):
            x, y = rng.uniform((0, 0), (width - 120, height - 120)).tolist()
            annotations.append(
                {
                    "id": len(annotations),
                    "image_id": number,
                    "category_id": 1,
                    "bbox": [x, y, 100.0, 80.0],
                }
            )
    categories = [{"id": 1, "name": "object"}]
    content = {"images": images, "annotations": annotations, "categories": categories}
    (folder / "annotations.json").write_text(json.dumps(content))
    return folder


def some_of(data: Path, folder: Path, count: int) -> Path:
    """Links to the first photos of a data set, and their annotations."""
    content = json.loads((data / "annotations.json").read_text())
    chosen = content["images"][:count]
    kept = {image["id"] for image in chosen}
    (folder / "images").mkdir()
    for image in chosen:
        (folder / "images" / image["file_name"]).symlink_to(
            (data / "images" / image["file_name"]).resolve()
        )
    few = [
        {key: each[key] for key in ("id", "image_id", "category_id", "bbox")}
        for each in content["annotations"]
        if each["image_id"] in kept
    ]
    categories = content.get("categories", [])
    content = {"images": chosen, "annotations": few, "categories": categories}
    (folder / "annotations.json").write_text(json.dumps(content))
    return folder


def boxes_of(data: Path) -> dict[str, list[list[float]]]:
    """The boxes of each file, XYXY."""
    content = json.loads((data / "annotations.json").read_text())
    names = {image["id"]: image["file_name"] for image in content["images"]}
    boxes: dict[str, list[list[float]]] = {name: [] for name in names.values()}
    for each in content["annotations"]:
        x, y, width, height = each["bbox"]
        boxes[names[each["image_id"]]].append([x, y, x + width, y + height])
    return boxes


def base(device: str) -> dict[str, float]:
    """Seconds until Python runs, torch is imported, and CUDA has started."""
    start = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-c", BASE, device],
        capture_output=True,
        text=True,
        timeout=TIMEOUT,
        check=True,
    )
    begun, imported, started = (float(text) - start for text in done.stdout.split())
    return {
        "python": begun,
        "import_torch": imported - begun,
        "cuda": started - imported,
        "total": started,
    }


def medians(rows: Iterable[dict[str, float]]) -> dict[str, float]:
    """The median of each key."""
    rows = list(rows)
    return {key: statistics.median(row[key] for row in rows) for key in rows[0]}


def command(arguments: argparse.Namespace, *more: str) -> list[str]:
    """`samfast segment`, and options that all runs share."""
    options = ["--model", arguments.model, "--device", arguments.device]
    options += ["--recipe", arguments.recipe, *more]
    return [sys.executable, "-m", "samfast", "segment", *options]


def environment(caches: Path | None = None) -> dict[str, str]:
    """The environment of a run, with caches below a folder if one is given."""
    if caches is None:
        return child_environment()
    return child_environment(
        TRITON_CACHE_DIR=str(caches / "triton"),
        SAMFAST_CACHE=str(caches / "samfast"),
        CUDA_CACHE_PATH=str(caches / "cuda"),
    )


def first_mask(call: list[str], out: Path, env: dict[str, str]) -> dict[str, float]:
    """Seconds until a file of masks is in `out`, and until the command has ended."""
    start = time.monotonic()
    with tempfile.TemporaryFile("w+") as errors:
        process = subprocess.Popen(
            [*call, "--out", str(out)], env=env, stdout=subprocess.DEVNULL, stderr=errors
        )
        try:
            written = None
            while process.poll() is None and time.monotonic() - start < TIMEOUT:
                if written is None and any(out.glob("*.json")):
                    written = time.monotonic() - start
                time.sleep(0.002)
            ended = time.monotonic() - start
            process.wait(0.1)
        finally:
            process.kill()
        errors.seek(0)
        if process.returncode != 0:
            raise RuntimeError(f"{' '.join(call)}: {errors.read()[-2000:]}")
    return {"first_mask": ended if written is None else written, "ended": ended}


def prompted(arguments: argparse.Namespace) -> dict[str, list[str]]:
    """The options of `samfast segment`, for everything and for prompts."""
    side = arguments.points_per_side
    everything = [] if side is None else ["--points-per-side", str(side)]
    return {"everything": everything, "box": ["--box", ONE_BOX]}


def first_masks(
    arguments: argparse.Namespace, photo: Path, folder: Path, start: float
) -> Iterator[dict[str, Any]]:
    """Rows of `first` and `cold`; start is the base's total."""
    for what, options in prompted(arguments).items():
        call = command(arguments, *options, str(photo))
        runs = []
        for number in range(arguments.repeats + 1):  # the first fills caches
            run = first_mask(call, folder / f"first-{what}-{number}", environment())
            runs.append(run | {"beyond_base": run["first_mask"] - start})
        yield {"what": what, "caches": "warm", **medians(runs[1:]), "runs": runs[1:]}
        if arguments.cold and what == "everything":  # it launches the most kernels
            env = environment(folder / f"caches-{what}")
            run = first_mask(call, folder / f"cold-{what}", env)
            beyond = run["first_mask"] - start
            yield {"what": what, "caches": "cold", **run, "beyond_base": beyond}


def stages(arguments: argparse.Namespace, photo: Path, folder: Path) -> Iterator[dict[str, Any]]:
    """Where the time goes until the first file is written."""
    for what, options in prompted(arguments).items():
        report, out = folder / f"stages-{what}.json", folder / f"stages-{what}"
        call = command(arguments, *options, str(photo), "--out", str(out))[3:]
        start = time.monotonic()
        subprocess.run(
            [sys.executable, str(Path(__file__).resolve()), "--staged", str(report), *call],
            env=environment() | {"COMMAND_RATE_DEVICE": arguments.device},
            capture_output=True,
            timeout=TIMEOUT,
            check=True,
        )
        told = json.loads(report.read_text())
        for step in told["steps"]:
            step["begin"] -= start
            step["end"] -= start
        yield {"what": what, **told}


def run_staged(report: str, argv: list[str]) -> int:
    """The command in this process, whose steps are noted."""
    steps: list[dict[str, Any]] = []
    kernels: list[dict[str, Any]] = []
    begun = time.monotonic()

    def note(name: str, begin: float) -> None:
        steps.append({"step": name, "begin": begin, "end": time.monotonic()})

    def timed(owner: Any, name: str, label: str) -> None:
        """Note each call of owner.name."""
        plain = getattr(owner, name)

        def call(*args: Any, **options: Any) -> Any:
            begin = time.monotonic()
            try:
                return plain(*args, **options)
            finally:
                note(label, begin)

        setattr(owner, name, call)

    def first_of(owner: Any, name: str, label: str) -> None:
        """Note when an iterator that owner.name returns has its first item."""
        plain = getattr(owner, name)

        def call(*args: Any, **options: Any) -> Any:
            begin = time.monotonic()
            for number, item in enumerate(plain(*args, **options)):
                if number == 0:
                    note(label, begin)
                yield item

        setattr(owner, name, call)

    import torch

    note("import torch", begun)
    device = os.environ["COMMAND_RATE_DEVICE"]
    begin = time.monotonic()
    if device != "cpu":
        torch.zeros(1, device=device)
        torch.cuda.synchronize()
        note("start CUDA", begin)
    begin = time.monotonic()
    import samfast.engine
    import samfast.loading
    from samfast.cli import main, segment_results
    from samfast.device import cuda_graphs

    note("import samfast", begin)
    if device != "cpu":
        begin = time.monotonic()
        import triton

        note("import triton", begin)
        if hasattr(triton, "knobs"):

            def listen(*, src: Any, times: Any, cache_hit: bool, **_: Any) -> None:
                name = getattr(src, "name", str(src))
                kernels.append({"kernel": name, "cached": cache_hit, "seconds": times.total / 1e6})

            triton.knobs.compilation.listener = listen
    timed(samfast.loading, "_read", "read and build the model")
    timed(samfast.loading, "apply", "apply the recipe")
    timed(samfast.loading, "load", "load")
    timed(cuda_graphs, "dry_run", "dry run")
    timed(cuda_graphs.Recorder, "_record", "record a graph")
    first_of(samfast.engine.SamFast, "segment_each", "first answer")
    first_of(samfast.engine.SamFast, "answer_each", "first answer")
    timed(segment_results.ResultWriter, "write", "write files")
    begin = time.monotonic()
    code = main.main(argv)
    note("command", begin)
    steps.insert(0, {"step": "start Python", "begin": begun, "end": begun})
    Path(report).write_text(json.dumps({"steps": steps, "kernels": kernels}))
    return code


def loop(arguments: argparse.Namespace) -> dict[str, float]:
    """images/s of two passes over the files in this process, without the command."""
    import samfast

    data = Path(arguments.loop_data)
    paths = sorted((data / "images").iterdir())
    sam = samfast.load(arguments.model, device=arguments.device, recipe=arguments.recipe)
    boxes = boxes_of(data)
    one = [[float(number) for number in ONE_BOX.split(",")]]

    def everything() -> Iterable[Any]:
        side = arguments.points_per_side
        return sam.segment_each(paths, **({} if side is None else {"points_per_side": side}))

    def asked(of: Callable[[Path], list[list[float]]]) -> Iterable[Any]:
        prompts = [samfast.Prompts(boxes=of(path)) for path in paths]
        return sam.predict_each(paths, prompts, multimask=False, output_mode="coco_rle")

    ways: dict[str, Callable[[], Iterable[Any]]] = {
        "everything": everything,
        "box": lambda: asked(lambda path: one),
        "coco": lambda: asked(lambda path: boxes[path.name]),
    }
    rates = []
    for _ in range(2):
        start = time.perf_counter()
        done = sum(1 for _ in ways[arguments.loop]())
        rates.append(done / (time.perf_counter() - start))
    return {"first_pass": rates[0], "second_pass": rates[1]}


def command_rate(
    arguments: argparse.Namespace, data: Path, options: list[str], out: Path
) -> dict[str, float]:
    """images/s as the command tells them, its seconds from start to end, and its files."""
    start = time.monotonic()
    done = subprocess.run(
        command(arguments, *options, str(data / "images"), "--out", str(out)),
        env=environment(),
        capture_output=True,
        text=True,
        timeout=TIMEOUT,
    )
    wall = time.monotonic() - start
    told = RATE.search(done.stderr)
    if done.returncode != 0 or told is None:
        raise RuntimeError(f"{options}: exit code {done.returncode}: {done.stderr[-2000:]}")
    return {"rate": float(told[1]), "wall": wall, "files": len(list(out.glob("*.json")))}


def loop_rates(arguments: argparse.Namespace, what: str, data: Path) -> dict[str, float]:
    """images/s of both passes of the loop, in a process of its own."""
    again = [sys.executable, str(Path(__file__).resolve()), "--loop", what]
    again += ["--loop-data", str(data), "--model", arguments.model, "--json", "-"]
    again += ["--device", arguments.device, "--recipe", arguments.recipe]
    if arguments.points_per_side is not None:
        again += ["--points-per-side", str(arguments.points_per_side)]
    looped = subprocess.run(
        again, env=environment(), capture_output=True, text=True, timeout=TIMEOUT, check=True
    )
    rates: dict[str, float] = json.loads(looped.stdout)
    return rates


def rates(arguments: argparse.Namespace, data: Path, folder: Path) -> Iterator[dict[str, Any]]:
    """A row for each kind of work in a folder: medians of rounds, which begin with each in turn."""
    work = prompted(arguments) | {"coco": ["--prompts", str(data / "annotations.json")]}
    for what, options in work.items():
        commands: list[dict[str, float]] = []
        loops: list[dict[str, float]] = []
        if arguments.device != "cpu":
            command_rate(arguments, data, options, folder / f"compiling-{what}")
        for number in range(arguments.repeats):
            if number % 2:
                loops.append(loop_rates(arguments, what, data))
            out = folder / f"rates-{what}-{number}"
            commands.append(command_rate(arguments, data, options, out))
            if not number % 2:
                loops.append(loop_rates(arguments, what, data))
        rate = statistics.median(each["rate"] for each in commands)
        plain = {
            name: statistics.median(each[name] for each in loops)
            for name in ("first_pass", "second_pass")
        }
        yield {
            "what": what,
            "files": commands[0]["files"],
            "command_images_per_second": rate,
            "command_wall_seconds": statistics.median(each["wall"] for each in commands),
            "loop_images_per_second": plain,
            "share_of_first_pass": rate / plain["first_pass"],
            "share_of_second_pass": rate / plain["second_pass"],
            "rounds": {"command": [each["rate"] for each in commands], "loop": loops},
        }


def parser() -> argparse.ArgumentParser:
    """The command line."""
    assert __doc__ is not None
    made = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    made.add_argument("--json", required=True, metavar="FILE")
    made.add_argument("--device", default="cpu", metavar="NAME")
    made.add_argument("--photos", type=Path, metavar="DIR")
    made.add_argument("--files", type=int, default=165)
    made.add_argument("--model", default="vit_xs")
    made.add_argument("--recipe", default="auto")
    made.add_argument("--repeats", type=int, default=2)
    made.add_argument("--points-per-side", type=int)
    made.add_argument("--no-cold", dest="cold", action="store_false")
    made.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS)
    made.add_argument("--loop", choices=("everything", "box", "coco"), help=argparse.SUPPRESS)
    made.add_argument("--loop-data", help=argparse.SUPPRESS)
    return made


def main(argv: list[str] | None = None) -> int:
    """Measure and write; the file is written after each row."""
    arguments = parser().parse_args(argv)
    if arguments.loop is not None:
        print(json.dumps(loop(arguments)))
        return 0
    from samfast.bench.environment import stamp
    from samfast.cli.console import write_json

    began = time.monotonic()
    result: dict[str, Any] = {
        "model": arguments.model,
        "recipe": arguments.recipe,
        "points_per_side": arguments.points_per_side,
        "cores": os.cpu_count(),
        "photos": "drawn" if arguments.photos is None else arguments.photos.name,
        "environment": stamp(arguments.device),
    }
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        (folder / "data").mkdir()
        if arguments.photos is None:
            data = drawn(folder / "data", arguments.files)
        else:
            data = some_of(arguments.photos, folder / "data", arguments.files)
        photo = min((data / "images").iterdir())
        base(arguments.device)  # fills the page cache
        result["base"] = medians(base(arguments.device) for _ in range(arguments.repeats))
        parts: dict[str, Callable[[], Iterator[dict[str, Any]]]] = {
            "first": lambda: first_masks(arguments, photo, folder, result["base"]["total"]),
            "rates": lambda: rates(arguments, data, folder),
            "stages": lambda: stages(arguments, photo, folder),
        }
        for name in arguments.parts:
            result[name] = []
            for row in parts[name]():
                result[name].append(row)
                result["seconds"] = time.monotonic() - began
                write_json(result, arguments.json)
                print(f"{name}: {json.dumps(row)}", file=sys.stderr, flush=True)
    return 0


if __name__ == "__main__":
    if sys.argv[1:2] == ["--staged"]:
        sys.exit(run_staged(sys.argv[2], sys.argv[3:]))
    sys.exit(main())
