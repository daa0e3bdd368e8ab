"""The report: what its charts show, which rows share one, and the page of them all."""

from __future__ import annotations

import sys
from html.parser import HTMLParser

import pytest
from PIL import Image

from samfast.bench import charts, report_page
from samfast.bench.charts import COLOURS
from samfast.bench.report_groups import grouped, labels
from samfast.bench.results import number, read, spread_bounds
from samfast.cli.bench_command import describe
from samfast.errors import MissingExtraError, OutputError
from tests.bench.rows import row, write


@pytest.fixture
def results(tmp_path):
    """A function: rows as they are after reading."""

    def make(*content) -> list:
        return read(write(tmp_path / "made.json", list(content)))

    return make


LADDER = (
    row("fp8", 565.0, spread=0.27),
    row("int8", None, status="refused: needs torch's int8"),
    row("rival:segment-anything", 30.0),
    row("fused", 467.0, spread=0.29),
    row("fp32", 40.0),
)


def bars(figure):
    """Widths and colours of a figure's bars, from top to bottom."""
    from matplotlib.colors import to_hex

    patches = sorted(figure.axes[0].patches, key=lambda bar: bar.get_y())
    assert all(bar.get_x() == 0 for bar in patches)
    return [(bar.get_width(), to_hex(bar.get_facecolor())) for bar in patches]


def texts(figure):
    from matplotlib.text import Text

    return " | ".join(text.get_text() for text in figure.findobj(Text))


def test_the_waterfall_goes_up_the_ladder_from_zero(results):
    (group,) = grouped(results(*LADDER))
    figure = charts.speed(group, 8)
    axes = figure.axes[0]
    assert [label.get_text() for label in axes.get_yticklabels()] == [
        "segment-anything (rival)",
        "fp32",
        "fused",
        "fp8",
    ]
    low, high = axes.get_xlim()
    assert low == 0 and high > 565 * 1.135
    content = bars(figure)
    rates = [30.0, 24.0, 40.0, 32.0, 467.0, 373.6, 565.0, 452.0]
    assert [width for width, _ in content] == pytest.approx(rates)
    encoder, whole, rival, rival_whole = COLOURS.values()
    assert [colour for _, colour in content] == [rival, rival_whole] + [encoder, whole] * 3


def test_whiskers_show_the_spread(results):
    assert spread_bounds(100.0, 0.2) == (90.0, 110.0)
    assert spread_bounds(100.0, None) == (100.0, 100.0)
    assert spread_bounds(100.0, 3.0) == (0.0, 250.0)
    (group,) = grouped(results(row("fused", 100.0, spread=0.2)))
    for figure in (charts.speed(group, 8), charts.ceiling(group, 8)):
        whisker = figure.axes[0].collections[0].get_segments()[0][:, 0]
        factor = figure.axes[0].patches[0].get_width() / 100
        assert list(whisker) == pytest.approx([90 * factor, 110 * factor])


def test_memory_and_ceiling_begin_at_zero(results):
    (group,) = grouped(results(*LADDER))
    memory, ceiling = charts.memory(group, 8), charts.ceiling(group, 8)
    assert [width for width, _ in bars(memory)] == [1.0] * 4
    encoder, _, rival, _ = COLOURS.values()
    assert [colour for _, colour in bars(memory)] == [rival, encoder, encoder, encoder]
    assert [width for width, _ in bars(ceiling)] == pytest.approx([3.0, 4.0, 46.7, 56.5])
    assert memory.axes[0].get_xlim()[0] == 0
    assert ceiling.axes[0].get_xlim() == (0, 100)
    assert charts.memory(group, 1) is None and charts.speed(group, 1) is None
    (bare,) = grouped(results(row(peak_memory_bytes=None, share_of_ceiling=None)))
    assert charts.memory(bare, 8) is None and charts.ceiling(bare, 8) is None


def test_speed_by_batch_size(results):
    (group,) = grouped(
        results(row("fused", 400.0, batch_size=1), row("fused", 470.0), row("fp8", 500.0))
    )
    axes = charts.batch_sizes(group).axes[0]
    assert axes.get_xlim()[0] == 0 and axes.get_ylim()[0] == 0
    curve = next(line for line in axes.lines if line.get_label() == "fused")
    assert (list(curve.get_xdata()), list(curve.get_ydata())) == ([1, 8], [400.0, 470.0])
    assert not [line for line in axes.lines if line.get_label() == "fp8"]  # a point is no curve
    (single,) = grouped(results(row("fused"), row("fp8")))
    assert charts.batch_sizes(single) is None


def test_what_has_no_figures_is_named(results):
    (group,) = grouped(results(*LADDER))
    assert "no figures: int8 (refused)" in texts(charts.speed(group, 8))
    assert [r["recipe"] for r in group.unmeasured()] == ["int8"]
    wrong = row("fp8", 565.0, status="wrong: relative error 0.5")
    (group,) = grouped(results(wrong, row("fused")))
    assert [r["recipe"] for r in group.measured(8)] == ["fused"]  # a wrong answer's speed is none


def test_every_chart_has_its_stamp(results):
    (group,) = grouped(results(*LADDER, row("fused", batch_size=1)))
    for figure in (
        charts.speed(group, 8),
        charts.memory(group, 8),
        charts.ceiling(group, 8),
        charts.batch_sizes(group),
    ):
        said = " ".join(texts(figure).replace(" | ", " ").split())
        for word in (
            "vit_b, random weights, on Card A",
            "torch 2.11.0",
            "commit abcdef0",
            "TF32 off",
            "2026-11-24",
        ):
            assert word in said


@pytest.mark.parametrize(
    "changes",
    [
        {"gpu": "Card B"},
        {"model": "vit_h"},
        {"commit": "fedcba9"},
        {"dirty": True},
        {"weights": "packaged"},
        {"torch": "2.13"},
        {"settings": {"TRITON_X": "1"}},
    ],
)
def test_what_was_measured_otherwise_stands_apart(results, changes):
    content = grouped(results(row("fused"), row("fp8", **changes), row("fp32")))
    assert [[r["recipe"] for r in group.rows] for group in content] == [["fp32", "fused"], ["fp8"]]
    assert (content[0].title, content[0].stamp) != (content[1].title, content[1].stamp)


def test_a_group_of_several_commits_names_them(results):
    rows = results(row("fused"), row("fp8", commit="fedcba98765"), row("fp32", dirty=True))
    (group,) = grouped(rows, alike=("gpu", "torch"))
    first = rows[0]["environment"]["commit"][:7]
    assert f"commits {first} with uncommitted changes and {first} and fedcba9," in group.stamp
    unknown = results(row("fused", dirty=None))
    assert f"commit {first} (changes unknown), TF32" in grouped(unknown)[0].stamp


def test_no_note_runs_out_of_its_chart(results):
    settings = {
        "TORCHINDUCTOR_MAX_AUTOTUNE_GEMM_BACKENDS": "ATEN",
        "PYTORCH_ALLOC_CONF": "max_split_size_mb:" * 20,
    }
    (group,) = grouped(results(row("fused", settings=settings)))
    figure = charts.speed(group, 8)
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.text import Text

    renderer = FigureCanvasAgg(figure).get_renderer()
    edges = [text.get_window_extent(renderer).x1 for text in figure.findobj(Text)]
    assert max(edges) <= figure.bbox.width


def test_the_same_row_twice_counts_once_and_another_run_is_told_by_its_time(results):
    later = row("fused", 390.0, date="2026-11-25T12:30:00+00:00")
    (group,) = grouped(results(row("fused"), row("fused"), later))
    assert labels(list(group.rows)) == ["fused 11-24T10:00", "fused 11-25T12:30"]
    assert group.stamp.endswith("2026-11-24 to 2026-11-25")


def test_accuracy_stands_beside_the_speed_of_what_was_scored(results):
    (group,) = grouped(results(row("fused", miou=0.534), row("fp8", miou=0.4), row("fp32")))
    figure = charts.speed(group, 8)
    dots = figure.axes[1].lines
    assert figure.axes[1].get_xlim() == (0, 1)
    assert [float(dot.get_xdata()[0]) for dot in dots] == [0.534, 0.4]
    assert "not measured" in texts(figure) and ".534" in texts(figure)
    (bare,) = grouped(results(row("fused")))
    assert len(charts.speed(bare, 8).axes) == 1


class Page(HTMLParser):
    """A page's tags, images and alternative texts; every tag that opens closes."""

    def __init__(self, text):
        super().__init__()
        self.tags: list[str] = []
        self.images: dict[str, str] = {}
        self.open: list[str] = []
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        if tag == "img":
            self.images[dict(attrs)["src"]] = dict(attrs)["alt"]
        if tag not in ("meta", "img"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


@pytest.fixture
def page(results, tmp_path):
    evil = row('<script>alert("x")</script> $\\frac$', 300.0)
    other = row("fused", 90.0, gpu="Card B")
    content = results(*LADDER, evil, row("fused", batch_size=1, miou=0.689), other)
    written = report_page.write(content, tmp_path, describe)
    assert all(path.is_file() for path in written)
    return written[0].read_text(encoding="utf-8"), written


def test_the_page_shows_the_charts_of_its_folder(page):
    text, written = page
    parsed = Page(text)
    assert not {"script", "link"} & set(parsed.tags)
    assert set(parsed.images) == {path.name for path in written if path.suffix == ".svg"}
    assert len(parsed.images) == 10
    assert any("fused 467" in alt for alt in parsed.images.values())
    assert "&lt;script&gt;" in text


def test_the_page_lists_figures_and_reasons(page):
    text, _ = page
    assert "refused: needs torch&#x27;s int8" in text
    assert text.count("<h2>") == 2
    for words in ("Card A", "Card B", "467", "29%", "0.6890", "torch 2.11.0"):
        assert words in text


def test_files_are_pictures_and_the_same_each_time(page, results, tmp_path):
    _, written = page
    for path in written[1:]:
        if path.suffix == ".png":
            with Image.open(path) as picture:
                assert picture.width > 1000
        else:
            assert path.read_text(encoding="utf-8").startswith("<?xml")
    again = tmp_path / "again"
    again.mkdir()
    content = read(tmp_path / "made.json")
    for path in report_page.write(content, again, describe):
        assert path.read_bytes() == (tmp_path / path.name).read_bytes(), path.name


def test_a_folder_that_cannot_be_written(results, tmp_path):
    with pytest.raises(OutputError, match="there is no folder"):
        report_page.write(results(row()), tmp_path / "none", describe)


def test_without_matplotlib_the_extra_is_named(results, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'samfast\[report\]'"):
        report_page.write(results(row()), tmp_path, describe)


def test_numbers_have_three_digits():
    assert [number(v) for v in (467.4, 30.47, 0.8532, 1234.5, 0, 0.0662)] == [
        "467",
        "30.5",
        "0.853",
        "1234",
        "0",
        "0.0662",
    ]
