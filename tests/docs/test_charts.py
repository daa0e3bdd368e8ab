"""The charts in docs say what the committed results say."""

from __future__ import annotations

import pytest

pytest.importorskip("matplotlib")

from benchmarks import make_charts


def test_charts_say_what_the_results_say():
    assert make_charts.wrong() == [], "run benchmarks/make_charts.py"


def test_a_chart_that_says_something_else_is_found(tmp_path, monkeypatch):
    for name, svg in make_charts.drawn():
        (tmp_path / name).write_text(svg, encoding="utf-8")
    monkeypatch.setattr(make_charts, "CHARTS", tmp_path)
    assert make_charts.wrong() == []
    speed, memory = tmp_path / "vit_b-speed.svg", tmp_path / "vit_b-memory.svg"
    assert ">fused</text>" in speed.read_text(encoding="utf-8")
    speed.write_text(
        speed.read_text(encoding="utf-8").replace(">fused</text>", ">fp9</text>"), encoding="utf-8"
    )
    memory.unlink()
    (tmp_path / "vit_z-speed.svg").write_text("<svg/>", encoding="utf-8")
    assert make_charts.wrong() == ["vit_b-memory.svg", "vit_b-speed.svg", "vit_z-speed.svg"]


def test_the_page_shows_them_all():
    page = (make_charts.ROOT / "docs" / "performance.md").read_text(encoding="utf-8")
    assert [name for name, _ in make_charts.drawn() if f"](charts/{name})" not in page] == []
