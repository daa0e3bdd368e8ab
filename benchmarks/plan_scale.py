"""A plan on paper: time, cost and bytes of a run over many images, and what saturates first.

    python benchmarks/plan_scale.py FIGURES.json [--measured RUN_GPUS.json ...]
        [--images 10000000 1000000000] [--gpus 1 8 64] [--json FILE]

FIGURES.json holds what was measured and what is assumed, each with where it is from:

    {"images_per_second_per_gpu": {"value": 100, "from": "run_gpus.json, vit_b, one H100"}, ...}

The keys are those of FIGURES below. --measured takes what `benchmarks/run_gpus.py` has written, of
one machine or several; its figures take the place of those of FIGURES.json, and of two machines
those of the one with more workers count. A figure that is missing or null is left out: what depends
on it is null too, and the text says what must be measured. The plan assumes that workers do not
wait for each other, as shards are independent, and that each resource is used in proportion; the
one whose time is longest is what saturates.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent

FIGURES = {
    "images_per_second_per_gpu": "of a run's worker, from files to written masks",
    "scaling": "rate of N GPUs over N times one GPU's",
    "startup_seconds": "until every worker has answered its first shard",
    "cpu_seconds_per_image": "of the host beside a GPU: reading, JPEG, RLE, Parquet",
    "cpus_per_gpu": "cores of the host for each GPU",
    "file_bytes_per_image": "that are read",
    "result_bytes_per_image": "of Parquet, or of an embedding",
    "read_bytes_per_second": "of the source, for all workers together",
    "requests_per_image": "of an object store: one to read, and a shard's part of one to write",
    "requests_per_second": "that the object store answers",
    "price_per_gpu_hour": "in the currency of the answer",
    "price_per_million_requests": "of the object store",
    "price_per_gigabyte_month": "of the results",
    "shard_size": "images in a shard",
    "shards_per_second_of_driver": "that the driver hands out and lists",
    "manifest_bytes_per_shard": "the manifest is written as a whole",
    "driver_bytes_per_image": "of the listing in the driver's memory",
    "driver_memory_bytes": "that the driver has",
}
"""What a plan is made of."""

Values = dict[str, float | None]


def read_figures(path: Path) -> tuple[Values, dict[str, str]]:
    """The values, and where each is from; exits for keys that are not known."""
    content: dict[str, Any] = json.loads(path.read_text())
    unknown = set(content) - set(FIGURES)
    if unknown:
        sys.exit(f"{path}: {', '.join(sorted(unknown))}; there are {', '.join(FIGURES)}")
    values: Values = {name: content.get(name, {}).get("value") for name in FIGURES}
    return values, {name: content[name]["from"] for name in content}


def measured_figures(path: Path) -> dict[str, tuple[float, str]]:
    """The figures that `benchmarks/run_gpus.py` has measured, and where each is from.

    The rate is of one worker of Ray, or of one process where none was measured; `scaling`,
    `startup_seconds` and `cpu_seconds_per_image` are of the most workers.
    """
    report: dict[str, Any] = json.loads(path.read_text())
    machine = report["environment"]
    name = machine["gpu"] or machine["cpu"]
    what = f"measured: {path.name}, {report['model']} with {report['recipe']}, {name}"
    rows = {
        int(row["devices"]): row
        for key, row in report.items()
        if key.startswith("ray ") and row.get("images_per_second")
    }
    process = report.get("process", {})
    one = rows.get(1) or (process if process.get("images_per_second") else None)
    figures: dict[str, tuple[float | None, str]] = {}
    if one is not None:
        row = "ray 1" if 1 in rows else "process"
        figures["images_per_second_per_gpu"] = one["images_per_second"], f"{what}, {row}"
        figures["cpu_seconds_per_image"] = one["cpu_seconds_per_image"], f"{what}, {row}"
        if report["checkpoint"] != "random":  # whose masks are noise, and longer than others
            figures["result_bytes_per_image"] = one["result_bytes_per_image"], f"{what}, {row}"
    if rows:
        most = max(rows)
        row, start = f"{what}, ray {most}", report["ray_start"]
        seconds = start["ray"] + start["identity"] + rows[most]["seconds_to_first_shard"]
        figures["startup_seconds"] = round(seconds, 1), row
        figures["cpu_seconds_per_image"] = rows[most]["cpu_seconds_per_image"], row
        if one is not None and most > 1:
            rate = rows[most]["images_per_second"] / (most * one["images_per_second"])
            figures["scaling"] = round(rate, 4), row
    if report.get("driver", {}).get("shards_per_second"):
        figures["shards_per_second_of_driver"] = (
            report["driver"]["shards_per_second"],
            f"{what}, driver: shards of {report['driver']['shard_size']}, workers that do nothing",
        )
    return {name: (value, place) for name, (value, place) in figures.items() if value is not None}


def fill(values: Values, sources: dict[str, str], reports: list[Path]) -> None:
    """Put in what was measured; the report with the most workers has the last word."""

    def workers(path: Path) -> int:
        rows: list[Any] = list(json.loads(path.read_text()).values())
        return max(int(row.get("devices", 0)) for row in rows if isinstance(row, dict))

    for path in sorted(reports, key=workers):
        for name, (value, place) in measured_figures(path).items():
            values[name], sources[name] = value, place


def product(*factors: float | None) -> float | None:
    """Of all factors, or None where one is not known."""
    known = [each for each in factors if each is not None]
    return math.prod(known) if len(known) == len(factors) else None


def quotient(top: float | None, bottom: float | None) -> float | None:
    """None where a part is not known."""
    return None if top is None or not bottom else top / bottom


def plan(values: Values, images: int, gpus: int) -> dict[str, Any]:
    """The plan for so many images on so many GPUs."""
    shards = None if values["shard_size"] is None else math.ceil(images / values["shard_size"])
    seconds = {
        "gpu": quotient(
            images, product(values["images_per_second_per_gpu"], gpus, values["scaling"])
        ),
        "cpu": quotient(
            product(images, values["cpu_seconds_per_image"]), product(values["cpus_per_gpu"], gpus)
        ),
        "source": quotient(
            product(images, values["file_bytes_per_image"]), values["read_bytes_per_second"]
        ),
        "object store": quotient(
            product(images, values["requests_per_image"]), values["requests_per_second"]
        ),
        "driver": quotient(shards, values["shards_per_second_of_driver"]),
    }
    known = {name: value for name, value in seconds.items() if value is not None}
    first = max(known, key=lambda name: known[name], default=None)
    # Without the GPU's own rate the time of a run is not known, whatever else is.
    longest = known[first] if first is not None and seconds["gpu"] is not None else None
    run = None if longest is None else longest + (values["startup_seconds"] or 0)
    results = product(images, values["result_bytes_per_image"])
    listing = product(images, values["driver_bytes_per_image"])
    return {
        "images": images,
        "gpus": gpus,
        "shards": shards,
        "seconds_by_resource": seconds,
        "saturates_first": first if longest is not None else None,
        "not_known": [name for name, value in seconds.items() if value is None],
        "run_seconds": run,
        "gpu_cost": product(quotient(run, 3600), gpus, values["price_per_gpu_hour"]),
        "request_cost": product(
            images / 1e6, values["requests_per_image"], values["price_per_million_requests"]
        ),
        "result_bytes": results,
        "result_cost_per_month": product(
            quotient(results, 1e9), values["price_per_gigabyte_month"]
        ),
        "read_bytes": product(images, values["file_bytes_per_image"]),
        "manifest_bytes": product(shards, values["manifest_bytes_per_shard"]),
        "listing_bytes": listing,
        "listing_fits": (
            None
            if listing is None or values["driver_memory_bytes"] is None
            else listing <= values["driver_memory_bytes"]
        ),
        "runs_for_listing": (
            None
            if listing is None or not values["driver_memory_bytes"]
            else math.ceil(listing / values["driver_memory_bytes"])
        ),
    }


def main() -> None:
    """Print the plans as a table, and write them as JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("figures", type=Path)
    parser.add_argument("--measured", type=Path, nargs="+", default=[])
    parser.add_argument("--images", type=int, nargs="+", default=[10_000_000, 1_000_000_000])
    parser.add_argument("--gpus", type=int, nargs="+", default=[1, 8, 64])
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    values, sources = read_figures(arguments.figures)
    fill(values, sources, arguments.measured)
    plans = [plan(values, n, gpus) for n in arguments.images for gpus in arguments.gpus]
    missing = [name for name, value in values.items() if value is None]
    if arguments.json is not None:
        content = {"figures": values, "from": sources, "missing": missing, "plans": plans}
        arguments.json.write_text(json.dumps(content, indent=1) + "\n")
    print("| images | GPUs | days | saturates first | read TB | results TB | cost of GPUs |")
    print("| ---: | ---: | ---: | --- | ---: | ---: | ---: |")
    for each in plans:
        cells = (
            f"{each['images']:,}",
            each["gpus"],
            shown(each["run_seconds"], 86400),
            each["saturates_first"] or "not known",
            shown(each["read_bytes"], 1e12),
            shown(each["result_bytes"], 1e12),
            shown(each["gpu_cost"], 1),
        )
        print("| " + " | ".join(map(str, cells)) + " |")
    for name in missing:
        print(f"not measured or assumed yet: {name}, {FIGURES[name]}")


def shown(value: float | None, unit: float) -> str:
    """Three digits of a value in that unit."""
    return "not known" if value is None else f"{value / unit:.3g}"


if __name__ == "__main__":
    main()
