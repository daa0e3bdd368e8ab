"""The README: its example runs, and its figures and chart are those of the committed results."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from benchmarks import make_readme_chart

ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / "benchmarks" / "results"
README = (ROOT / "README.md").read_text(encoding="utf-8")


def row(file: str, recipe: str, batch_size: int = 8) -> dict[str, Any]:
    rows = json.loads((RESULTS / file).read_text(encoding="utf-8"))
    (chosen,) = [r for r in rows if (r["recipe"], r["batch_size"]) == (recipe, batch_size)]
    return chosen


def encoder_speed(recipe: str) -> float:
    return row("h200_vit_b_cuda.json", recipe)["encoder_images_per_second"]


def automatic_ratio() -> float:
    """The lower of two runs: the original's time depends on the host."""
    ratios = []
    for file in ("h200_automatic_vit_xs.json", "h200_automatic_another_host.json"):
        rows = json.loads((RESULTS / file).read_text(encoding="utf-8"))
        seconds = {row["what"]: row["seconds_a_photo"] for row in rows}
        ratios.append(seconds["rival:segment-anything"] / seconds["fused"])
    return min(ratios)


def cpu_seconds(recipe: str) -> float:
    rows = json.loads((RESULTS / "cpu_peers.json").read_text(encoding="utf-8"))["rows"]
    (chosen,) = [
        r for r in rows if (r["model"], r["group"], r["recipe"]) == ("vit_b", "fp32", recipe)
    ]
    return chosen["median_seconds"]


FIGURES: dict[str, Callable[[], float]] = {
    r"`fused` encodes (\S+) images per second": lambda: encoder_speed("fused"),
    r"That is (\S+) times the speed of segment-anything in float32": lambda: (
        encoder_speed("fused") / encoder_speed("rival:segment-anything")
    ),
    r"and (\S+) times that of segment-anything-fast": lambda: (
        encoder_speed("fused") / encoder_speed("rival:segment-anything-fast")
    ),
    r"with `vit_xs`, at\s+(\S+) times the speed of segment-anything": automatic_ratio,
    r"`fp8` has (\S+) times the speed of segment-anything": lambda: (
        encoder_speed("fp8") / encoder_speed("rival:segment-anything")
    ),
    r"in float32 has (\S+) times the speed of the original": lambda: (
        cpu_seconds("rival:segment-anything") / cpu_seconds("fp32_openvino")
    ),
}
"""The README's figures: the words around each, and its value by the results."""

NAMES = re.compile(
    r"ViT-[BHL]|vit_\w+|SAM [12]|H200|CC0|CC BY-NC [\d.]+|Apache-[\d.]+|bfloat16|float(8|32)"
    r"|8-bit|Python 3\.\d+|PyTorch 2\.\d+|1\.0|capability 8\.[09]|batch 8|32 x 32 points"
)
"""Words with digits that are no measurements."""


def wrong_figures(text: str) -> list[str]:
    """The patterns of FIGURES whose figure is missing or is not what the results say."""
    text = " ".join(text.split())
    wrong = []
    for words, value in FIGURES.items():
        match = re.search(words, text)
        if match is None or match[1] != f"{value():.3g}":
            wrong.append(words)
    return wrong


def numbers(text: str) -> list[str]:
    """The words of a document that hold digits, but for code, links, pictures and NAMES."""
    text = re.sub(r"```.*?```|`[^`]*`|\]\([^)]*\)|^\[.*?\]:.*?$", "", text, flags=re.S | re.M)
    return re.findall(r"\S*\d\S*", NAMES.sub("", text))


def test_figures_are_those_of_the_results():
    assert wrong_figures(README) == []


@pytest.mark.parametrize("words", FIGURES)
def test_a_changed_figure_is_noticed(words):
    text = " ".join(README.split())
    match = re.search(words, text)
    assert match is not None
    start, stop = match.span(1)
    last = str((int(text[stop - 1]) + 1) % 10)
    assert wrong_figures(f"{text[: stop - 1]}{last}{text[stop:]}") == [words]
    assert wrong_figures(text[:start] + text[stop:]) == [words]


def test_there_are_no_other_figures():
    assert len(FIGURES) <= 6
    text = " ".join(README.split())
    checked = [match[1] for words in FIGURES if (match := re.search(words, text))]
    assert sorted(numbers(README)) == sorted(checked)
    assert numbers("It is 12x as fast with `fp8` ([batch 8](a8.json))") == ["12x"]


def test_there_are_no_html_comments():
    assert "<!--" not in README


def test_the_example_runs(tmp_path, monkeypatch, capsys):
    code = re.search(r"```python\n(.*?)```", README, re.DOTALL)
    assert code is not None
    monkeypatch.chdir(tmp_path)
    pixels = np.random.default_rng(0).integers(0, 255, (300, 400, 3), np.uint8)
    Image.fromarray(pixels).save("photo.jpg")
    exec(code[1], {})
    assert "torch.Size([1, 3, 300, 400])" in capsys.readouterr().out


def test_the_chart_is_that_of_the_results(monkeypatch, tmp_path):
    pytest.importorskip("matplotlib")
    drawn = make_readme_chart.CHART.read_text(encoding="utf-8")
    assert make_readme_chart.words(drawn) == make_readme_chart.words(make_readme_chart.svg())
    rows = json.loads(make_readme_chart.RESULTS.read_text(encoding="utf-8"))
    for each in rows:
        if each["recipe"] == "fused":
            each["encoder_images_per_second"] += 20
    changed = tmp_path / "rows.json"
    changed.write_text(json.dumps(rows), encoding="utf-8")
    monkeypatch.setattr(make_readme_chart, "RESULTS", changed)
    assert make_readme_chart.words(drawn) != make_readme_chart.words(make_readme_chart.svg())
