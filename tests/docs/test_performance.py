"""Documents say what the committed results say, and docs/performance.md nothing else."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from benchmarks import documents, make_tables
from samfast.errors import InputError
from tests.bench.rows import row, score, write

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs" / "performance.md"

NAMES = re.compile(
    r"ViT-[BHLX]S?|vit_xs|[HA][12]00|float(8|32)|bfloat16|int8|fp8|2:4|COCO"
    r"|\d+ x \d+( pixels)?|64 keys|\(2023\)|https?://\S+"
)
"""Words with figures that are no measurements: names, and SAM's own sizes."""


@pytest.mark.parametrize("path", make_tables.DOCUMENTS, ids=lambda path: path.name)
def test_documents_say_what_the_results_say(path):
    text = path.read_text(encoding="utf-8")
    assert documents.fill(text, make_tables.RESULTS) == text, (
        f"{path.name}: run benchmarks/make_tables.py"
    )
    assert documents.without_figures(text) != text


def by_hand(text: str) -> list[str]:
    """What a document has of figures besides those that are filled in."""
    text = documents.without_figures(text)
    text = re.sub(r"```.*?```|`[^`]*`|\]\([^)]*\)", "", text, flags=re.DOTALL)
    return re.findall(r"\S*\d\S*", NAMES.sub("", text))


def test_no_figure_is_typed_by_hand():
    assert by_hand(PAGE.read_text(encoding="utf-8")) == []


def test_a_figure_typed_by_hand_is_found():
    assert by_hand("it makes 467 images/s on an H200, 15x as many") == ["467", "15x"]
    assert by_hand("it makes <!--= a.json fused 8 miou -->467<!--/--> images/s with `fp16`") == []


def test_each_step_of_the_post_and_each_later_one_has_its_table():
    text = PAGE.read_text(encoding="utf-8")
    steps = dict(re.findall(r"^<!--# step h200_vit_b\.json 8 (\S+) (\S+) -->$", text, re.MULTILINE))
    reached = set(re.findall(r"^<!--# step h200_vit_b\.json 8 \S+ (\S+) -->$", text, re.MULTILINE))
    assert {"bf16", "compile", "sdpa", "triton", "nested", "int8", "2:4", "fused", "fp8"} == reached
    assert steps["triton"] == "nested"


def test_links_lead_somewhere():
    text = PAGE.read_text(encoding="utf-8")
    for target in re.findall(r"\]\(([^)#]+)", text):
        if "://" not in target:
            assert (PAGE.parent / target).exists(), target


# ------------------------------------------------------------------------------------------------
# the filling


@pytest.fixture
def fill(tmp_path):
    """A function: a document filled from the rows of a.json."""

    def make(text, *content):
        write(tmp_path / "a.json", list(content))
        return documents.fill(text, tmp_path)

    return make


def figure(key, recipe="fused", old=""):
    return f"so <!--= a.json {recipe} 8 {key} -->{old}<!--/--> it is"


def test_a_figure_comes_from_its_row(fill):
    one = row(rate=467.4, first_call_seconds=9.638, ratio_to={"segment-anything": 15.315})
    one["encoder_seconds"] = {"median": 0.01714}
    for key, words in (
        ("encoder_images_per_second", "467"),
        ("peak_memory_bytes", "1.00"),
        ("share_of_ceiling", "47 %"),
        ("max_relative_error", "1.0e-02"),
        ("first_call_seconds", "9.64"),
        ("ratio_to.segment-anything", "15.3"),
        ("encoder_seconds.median", "17.1 ms"),
        ("miou", "not measured yet"),
        ("ratio_to.other", "not measured yet"),
    ):
        filled = fill(figure(key, old="999"), one, row("fp8", 1.0), row(rate=1.0, batch_size=1))
        assert filled == figure(key, old=words)
        assert fill(filled, one) == filled
    assert fill(figure("miou", "fp32"), one) == figure("miou", "fp32", "not measured yet")
    assert fill(figure("miou"), row(rate=None)) == figure("miou", old="not measured yet")


def test_of_several_rows_the_newest_counts(fill):
    rows = row(rate=2.0, date="2027"), row(rate=1.0, date="2026")
    assert fill(figure("encoder_images_per_second"), *rows) == figure(
        "encoder_images_per_second", old="2.00"
    )


@pytest.mark.parametrize(
    "text",
    [
        "so <!--= a.json fused 8 --><!--/-->",
        "so <!--= a.json fusde 8 miou --><!--/-->",
        "so <!--= a.json fused 8 speed --><!--/-->",
        "so <!--= a.json fused eight miou --><!--/-->",
        "so <!--= a.json fused 8 miou -->",
        "<!--= a.json fused 8 miou --><!--/--> begins a line",
        "<!--# rows a.json 8 fusde -->\n<!--/-->",
        "<!--# lines a.json 8 fused -->\n<!--/-->",
        "<!--# step a.json 8 fused -->\n<!--/-->",
        "<!--# verdicts a.json 8 fused -->\n<!--/-->",
        "<!--# rows a.json 8 fused --><!--/-->",
    ],
)
def test_a_marker_that_means_nothing(fill, text):
    with pytest.raises(ValueError):  # noqa: PT011 - each says something else
        fill(text, row())


def test_a_file_that_is_not_there(fill):
    with pytest.raises(InputError, match="there is no such file"):
        fill("so <!--= b.json fused 8 miou --><!--/-->", row())


def test_rows_of_several_devices_are_no_figure(fill):
    with pytest.raises(ValueError, match="several models or devices"):
        fill(figure("miou"), row(), row(gpu="Card B"))


def table(fill, words, *content):
    text = f"before\n\n<!--# {words} -->\nold\n<!--/-->\n\nafter\n"
    filled = fill(text, *content)
    assert fill(filled, *content) == filled
    before, _, rest = filled.partition(f"<!--# {words} -->\n")
    inside, _, after = rest.partition("<!--/-->")
    assert (before, after) == ("before\n\n", "\n\nafter\n")
    lines = [[cell.strip() for cell in line.strip("|").split("|")] for line in inside.splitlines()]
    assert len({len(line) for line in lines}) == 1 and set(lines[1]) <= {"---", "---:"}
    return [lines[0], *lines[2:]]


def test_a_step_has_two_rows_and_their_ratio(fill):
    old, new = (
        row("fp32", 100.0, spread=0.1),
        row("bf16", 300.0, spread=0.1, peak_memory_bytes=2**29),
    )
    _, first, second, ratio = table(fill, "step a.json 8 fp32 bf16", old, new)
    assert first[:4] == ["`fp32`", "100", "80.0", "1.00"]
    assert second[:4] == ["`bf16`", "300", "240", "0.500"]
    assert ratio[:4] == ["ratio", "× 3.00", "× 3.00", "× 0.500"]
    assert first[4] == "8.0e-03" and ratio[4] == "× 1.00"
    near = row("bf16", 105.0, spread=0.1)
    assert table(fill, "step a.json 8 fp32 bf16", old, near)[3][1] == "× 1.05 (within the spread)"


def test_a_step_between_rows_that_were_not_measured_alike(fill):
    old, new = (row(name, first_call_seconds=9.0, cache="cold") for name in ("fp32", "bf16"))
    assert table(fill, "step a.json 8 fp32 bf16", old, new)[3][5] == "× 1.00"
    assert table(fill, "step a.json 8 fp32 bf16", old, new | {"cache": "warm"})[3][5] == "–"
    other = row("bf16", commit="fff", torch="2.13")
    assert (
        table(fill, "step a.json 8 fp32 bf16", old, other)[3][0]
        == "ratio (another commit and torch)"
    )
    assert table(fill, "verdicts a.json 8 fp32>bf16", old, other)[1][0].endswith(
        "(another commit and torch)"
    )


def test_a_step_that_is_not_measured(fill):
    _, first, second, ratio = table(
        fill, "step a.json 8 fp32 int8", row("fp32", 100.0), row("int8", None)
    )
    assert first[1] == "100" and second[1:3] == ["refused", "–"] and set(ratio[1:]) == {"–"}
    assert table(fill, "rows a.json 8 fp8", row("fp32"))[1][1:3] == ["not measured yet", "–"]


def test_verdicts(fill):
    rows = (
        row("fp32", 100.0),
        row("bf16", 300.0),
        row("sdpa", 290.0),
        row("int8", 200.0),
        row("fp8", None),
    )
    lines = table(fill, "verdicts a.json 8 fp32>bf16 bf16>sdpa bf16>int8 bf16>fp8", *rows)
    assert lines[1:] == [
        ["`bf16` instead of `fp32`", "× 3.00, faster", "× 3.00, faster"],
        ["`sdpa` instead of `bf16`", *["× 0.967, slower (within the spread)"] * 2],
        ["`int8` instead of `bf16`", "× 0.667, slower", "× 0.667, slower"],
        ["`fp8` instead of `bf16`", "not measured yet", "not measured yet"],
    ]


def test_sizes_kernels_and_scores(fill):
    kernels = {"classes": {"matmul": {"ms": 7.808, "share": 0.5}}}
    rows = row(rate=400.0, batch_size=1), row(rate=470.0, kernels=kernels)
    assert table(fill, "sizes a.json 1,8,32 fused rival:transformers", *rows)[1:] == [
        ["`fused`", "400", "470", "not measured yet"],
        ["transformers", *["not measured yet"] * 3],
    ]
    assert table(fill, "kernels a.json 8 fused fp8", *rows)[1:] == [
        ["`fused`", "7.81 ms", "–", "–", "–", "–"],
        ["`fp8`", *["not measured yet"] * 5],
    ]


def test_scores_are_those_of_eval(tmp_path):
    write(tmp_path / "a.json", score("fused", 0.6888))
    lines = documents.fill("<!--# scores a.json -->\n<!--/-->\n", tmp_path).splitlines()
    assert [cell.strip() for cell in lines[3].strip("|").split("|")] == [
        *("`fused`", "vit_xs", "165", "1361", "0.6888", "0.8090", "Card A"),
    ]


def test_scores_of_pruned_weights_are_those_of_the_farthest_clicks(tmp_path):
    rows = [{"recipe": "2:4", "edt": score("2:4", 0.7), "seed": score("2:4", 0.6)}]
    write(tmp_path / "a.json", rows)
    lines = documents.fill("<!--# scores a.json -->\n<!--/-->\n", tmp_path).splitlines()
    assert lines[3].split("|")[1].strip() == "`2:4`" and "0.7000" in lines[3]
    assert len(lines) == 5


def test_automatic_masks(fill):
    thresholds = {"pred_iou_thresh": 0.6, "box_nms_thresh": 0.9}
    original = {
        "what": "rival:segment-anything",
        "status": "ok",
        "thresholds": thresholds,
        "seconds_a_photo": 1.0,
        "ratio_to": {"rival:segment-anything": 1.0},
        "peak_memory_bytes": 2 << 30,
        "masks_a_photo": 40,
        "agreement": {},
    }
    ours = {
        **original,
        "what": "fused",
        "seconds_a_photo": 0.0625,
        "stream": {"seconds_a_photo": 0.05, "peak_memory_bytes": 3 << 28},
        "ratio_to": {"rival:segment-anything": 16.0},
        "peak_memory_bytes": 1 << 29,
        "masks_a_photo": 39.5,
        "agreement": {
            "masks": 79,
            "original_masks": 80,
            "photos": 2,
            "photos_of_equal_count": 1,
            "matched_iou": 0.9912,
        },
    }
    failed = {"what": "fp8", "status": "failed: x"}
    assert table(fill, "everything a.json", original, failed, ours) == [
        [
            *("", "s a photo", "in a stream", "against segment-anything"),
            *("peak GiB", "in a stream", "masks a photo"),
        ],
        ["segment-anything", "1.00", "–", "× 1.00", "2.00", "–", "40.0"],
        ["`fused`", "0.0625", "0.0500", "× 16.0", "0.500", "0.750", "39.5"],
    ]
    assert table(fill, "agreement a.json", original, failed, ours) == [
        [
            "0.6 / 0.9",
            "masks, of the original's",
            "photos with as many",
            "mean IoU with the original's",
        ],
        ["`fused`", "79 of 80", "1 of 2", "0.9912000"],
    ]


def test_the_script_fills_and_checks(tmp_path, monkeypatch, capsys):
    write(tmp_path / "a.json", [row(rate=467.0)])
    document = tmp_path / "page.md"
    document.write_text(figure("encoder_images_per_second", old="400"), encoding="utf-8")
    for name, value in (("RESULTS", tmp_path), ("ROOT", tmp_path), ("DOCUMENTS", (document,))):
        monkeypatch.setattr(make_tables, name, value)
    monkeypatch.setattr(make_tables, "tables", lambda results: {})
    monkeypatch.setattr("sys.argv", ["make_tables.py", "--check"])
    assert make_tables.main() == 1
    assert "page.md is not what" in capsys.readouterr().err
    monkeypatch.setattr("sys.argv", ["make_tables.py"])
    assert make_tables.main() == 0
    assert document.read_text(encoding="utf-8") == figure("encoder_images_per_second", old="467")
    monkeypatch.setattr("sys.argv", ["make_tables.py", "--check"])
    assert make_tables.main() == 0
