"""Draw the README's bar chart: images per second of the original, of its rival and of samfast.

    python benchmarks/make_readme_chart.py [--check]

Its bars are rows of `benchmarks/results/h200_vit_b_cuda.json`, all of one run. `--check`
writes nothing and exits 1 if the chart says anything else than the results.
"""

from __future__ import annotations

import argparse
import io
import json
import re
import sys
from html import unescape
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results" / "h200_vit_b_cuda.json"
CHART = ROOT / "docs" / "images" / "speed.svg"

BATCH_SIZE = 8
BARS = {
    "rival:segment-anything": "segment-anything, float32",
    "rival:segment-anything-fast": "segment-anything-fast, bfloat16",
    "fused": "samfast fused, bfloat16",
    "fp8": "samfast fp8, float8",
}
"""The rows' recipes and their labels in the chart; speeds are relative to the first one's."""

SAMFAST, RIVAL = "#3b6fb6", "#a9b1bc"

STYLE: Any = {
    "svg.fonttype": "none",  # text stays text: it can be searched, copied and read aloud
    "svg.hashsalt": "readme",
    "font.family": ["DejaVu Sans", "sans-serif"],
    "font.size": 9,
}


def rows() -> list[dict[str, Any]]:
    """The rows of the bars, in their order. ValueError if they are not of one commit and card."""
    measured = {
        row["recipe"]: row
        for row in json.loads(RESULTS.read_text(encoding="utf-8"))
        if row["batch_size"] == BATCH_SIZE and row["status"] == "ok"
    }
    chosen = [measured[recipe] for recipe in BARS]
    if len({(row["environment"]["commit"], row["environment"]["gpu"]) for row in chosen}) != 1:
        raise ValueError(f"{RESULTS.name}: the rows of the chart are of several commits or cards")
    return chosen


def caption(row: dict[str, Any]) -> str:
    """What was measured, on which card and when."""
    stamp = row["environment"]
    return (
        f"ViT-B image encoder, random weights, 1024 x 1024, batch {BATCH_SIZE}, {stamp['gpu']}, "
        f"torch {stamp['torch'].partition('+')[0]}, commit {stamp['commit']}, {stamp['date'][:10]}"
    )


def svg() -> str:
    """The chart as an SVG file."""
    import matplotlib as mpl
    from matplotlib.figure import Figure

    with mpl.rc_context(STYLE):
        chosen = rows()
        speeds = [row["encoder_images_per_second"] for row in chosen]
        figure = Figure(figsize=(7.2, 1.9))
        figure.patch.set_facecolor("white")
        axes = figure.add_axes((0.3, 0.2, 0.56, 0.66))
        colours = [RIVAL if row["recipe"].startswith("rival:") else SAMFAST for row in chosen]
        places = range(len(chosen))
        axes.barh(places, speeds, color=colours, height=0.68)
        axes.set_yticks(places, list(BARS.values()))
        axes.invert_yaxis()
        axes.tick_params(axis="y", length=0)
        axes.set_xticks([])
        axes.spines[["top", "right", "bottom"]].set_visible(False)
        for place, speed in zip(places, speeds, strict=True):
            text = f" {speed:.3g} ({speed / speeds[0]:.3g} times)" if place else f" {speed:.3g}"
            axes.text(speed, place, text, va="center")
        figure.text(0.3, 0.91, "Images per second", weight="bold")
        figure.text(0.02, 0.05, caption(chosen[0]), size=7, color="#555555")
        out = io.StringIO()
        nothing = {"Date": None, "Creator": None, "Format": None, "Type": None}
        figure.savefig(out, format="svg", metadata=nothing)
    return out.getvalue()


def words(text: str) -> list[str]:
    """The text of an SVG file, and its bars' outlines: what a change of results changes.

    Everything else may differ from one matplotlib to the next.
    """
    labels = re.findall(r"<text\b[^>]*>(.*?)</text>", text, re.DOTALL)
    bars = re.findall(r'<g id="patch_\d+">\s*<path d="(.*?)"', text, re.DOTALL)
    return [unescape(label) for label in labels] + [" ".join(bar.split()) for bar in bars]


def main() -> int:
    """0; with --check 1 if the chart is not what the results say."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--check", action="store_true", help="compare, write nothing")
    if parser.parse_args().check:
        if words(CHART.read_text(encoding="utf-8")) == words(svg()):
            return 0
        print(f"{CHART.name} differs from the results: run {Path(__file__).name}", file=sys.stderr)
        return 1
    CHART.write_text(svg(), encoding="utf-8")
    print(CHART.relative_to(ROOT))
    return 0


if __name__ == "__main__":
    sys.exit(main())
