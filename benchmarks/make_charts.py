"""The charts in docs, drawn from the committed results.

    python benchmarks/make_charts.py [--check]

Of each file in MODELS the rows of the card and versions that measured most of them, at batch 8 and
by batch size. A row is measured again when its code has changed, so those of several commits stand
in one chart, which names them. `--check` writes
nothing and exits 1 if a chart says anything else than the results.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Iterator
from html import unescape
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from samfast.bench import charts  # noqa: E402
from samfast.bench.environment import SAME_RUN  # noqa: E402
from samfast.bench.report_groups import grouped  # noqa: E402
from samfast.bench.results import read  # noqa: E402

RESULTS = ROOT / "benchmarks" / "results"
CHARTS = ROOT / "docs" / "charts"
MODELS = {"vit_b": "h200_vit_b.json", "vit_h": "h200_vit_h.json"}
BATCH_SIZE = 8
ALIKE = tuple(key for key in SAME_RUN if key not in ("commit", "dirty"))


def drawn() -> Iterator[tuple[str, str]]:
    """Each chart's file name and SVG."""
    for model, file in MODELS.items():
        group = max(grouped(read(RESULTS / file), ALIKE), key=lambda each: len(each.rows))
        figures = {
            "speed": charts.speed(group, BATCH_SIZE),
            "memory": charts.memory(group, BATCH_SIZE),
            "ceiling": charts.ceiling(group, BATCH_SIZE),
            "batch-sizes": charts.batch_sizes(group),
        }
        for kind, figure in figures.items():
            if figure is not None:
                name = f"{model}-{kind}"
                yield f"{name}.svg", charts.svg(figure, name)


def words(svg: str) -> list[str]:
    """What a chart says; how it is drawn differs from one matplotlib to the next."""
    return [unescape(word) for word in re.findall(r"<text\b[^>]*>(.*?)</text>", svg, re.DOTALL)]


def wrong() -> list[str]:
    """The charts in docs that say something else than the results, are missing, or are of
    nothing.
    """
    made = dict(drawn())
    to_device = {path.name: path.read_text(encoding="utf-8") for path in CHARTS.glob("*.svg")}
    return sorted(
        name
        for name in made.keys() | to_device.keys()
        if name not in made or name not in to_device or words(made[name]) != words(to_device[name])
    )


def main() -> int:
    """0; with --check 1 if a chart is not what the results say."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--check", action="store_true", help="compare, write nothing")
    if parser.parse_args().check:
        for name in wrong():
            print(
                f"docs/charts/{name} is not what the results say: run {Path(__file__).name}",
                file=sys.stderr,
            )
        return 1 if wrong() else 0
    CHARTS.mkdir(parents=True, exist_ok=True)
    for path in CHARTS.glob("*.svg"):
        path.unlink()
    for name, svg in drawn():
        (CHARTS / name).write_text(svg, encoding="utf-8")
        print(f"docs/charts/{name}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
