"""What was measured: the packaged tables, and those in the user's cache, which count only while
they hold."""

from __future__ import annotations

import json
import logging
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import samfast
from samfast.errors import OutputError
from samfast.linear.encoder_layers import LAYERS
from samfast.recipes import RECIPES, evidence
from samfast.recipes.evidence import Evidence, Speed, checkpoint_fingerprint, rounding
from tests.model.tiny import applied, random_sam

CHECKPOINT = "ab" * 32


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("SAMFAST_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def row(recipe: str = "fp8", **changes) -> Evidence:
    made = Evidence(
        fingerprint=CHECKPOINT,
        checkpoint="mine.pth",
        model="vit_b",
        recipe=recipe,
        rounding=rounding(RECIPES[recipe]),
        kind="agreement",
        loss_points=0.25,
        photos=9,
        photo_set="holiday",
        details={"agreement_miou": 0.99},
        environment={"samfast": samfast.__version__, "date": "2030-01-02T00:00:00+00:00"},
    )
    return replace(made, **changes)


def test_saved_rows_come_back_and_replace_older_ones_of_the_same_rounding():
    path = evidence.save_calibrated([row("fp8", loss_points=0.5), row("int8")])
    assert path == evidence.calibrated_dir() / f"{CHECKPOINT}.json"
    again = evidence.save_calibrated([row("fp8", loss_points=0.1)])
    assert again == path
    rows = evidence.calibrated(CHECKPOINT)
    assert {(each.recipe, each.loss_points) for each in rows} == {("fp8", 0.1), ("int8", 0.25)}
    assert {each.source for each in rows} == {str(path)}
    assert [replace(each, source="packaged") for each in rows if each.recipe == "int8"] == [
        row("int8")
    ]
    assert list(path.parent.iterdir()) == [path]
    assert CHECKPOINT in evidence.known_fingerprints()
    assert evidence.evidence(CHECKPOINT) == rows


def test_an_unknown_checkpoint_has_no_evidence_and_nothing_is_said(caplog):
    assert evidence.evidence(CHECKPOINT) == ()
    assert not caplog.records


@pytest.mark.parametrize(
    ("stale", "said"),
    [
        (row("fp8", rounding="bfloat16, fp8 as it once was"), "fp8 has changed"),
        (replace(row(), recipe="fp9"), "fp9 has changed"),
        (row("fp8", fingerprint="cd" * 32), "another checkpoint"),
        (row("fp8", environment={"samfast": "0.0.0"}), "samfast 0.0.0"),
        (row("fp8", environment={}), "samfast None"),
    ],
)
def test_a_stale_row_is_left_out_with_one_line_and_its_neighbours_stay(stale, said, caplog):
    path = evidence.save_calibrated([row("int8")])
    content = json.loads(path.read_text())
    content["rows"].append({key: value for key, value in vars(stale).items() if key != "source"})
    path.write_text(json.dumps(content))
    with caplog.at_level(logging.WARNING):
        assert [each.recipe for each in evidence.evidence(CHECKPOINT)] == ["int8"]
    assert len(caplog.records) == 1
    message = caplog.records[0].getMessage()
    assert said in message and str(path) in message and "samfast calibrate" in message


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[]",
        "null",
        '{"format": 0, "rows": []}',
        '{"format": 1, "rows": [{}]}',
        '{"format": 1, "rows": [3, null]}',
        '{"format": 1, "rows": 7}',
        '{"format": 1}',
    ],
)
def test_a_file_that_is_none_is_one_line_and_no_evidence(text, caplog):
    path = evidence.save_calibrated([row()])
    path.write_text(text)
    assert evidence.evidence(CHECKPOINT) == ()
    assert len(caplog.records) == 1
    assert str(path) in caplog.records[0].getMessage()


@pytest.mark.parametrize(
    "damage",
    [
        {"loss_points": "0.1"},
        {"loss_points": float("nan")},
        {"photos": "9"},
        {"photos": True},
        {"kind": "hearsay"},
        {"recipe": 8},
        {"rounding": None},
        {"details": []},
        {"environment": None},
        {"more": 1},
    ],
)
def test_a_damaged_row_is_not_evidence(damage, caplog):
    path = evidence.save_calibrated([row()])
    content = json.loads(path.read_text())
    content["rows"][0] |= damage
    path.write_text(json.dumps(content))
    assert evidence.evidence(CHECKPOINT) == ()
    assert len(caplog.records) == 1


def test_a_cache_that_cannot_be_written(cache):
    cache.write_text("a file, where the folder should be")
    with pytest.raises(OutputError):
        evidence.save_calibrated([row()])
    assert evidence.known_fingerprints() == tuple(
        dict.fromkeys(each.fingerprint for each in evidence.packaged_evidence())
    )


def test_rounding_names_what_rounds_and_nothing_else():
    base = RECIPES["fp8"]
    same = replace(base, attention="sdpa", fuse=False, graph=False, compile="default")
    assert rounding(same) == rounding(base)
    others = (
        replace(base, dtype=torch.float16),
        replace(base, quantize="int8"),
        replace(base, quantize=None, quantized_layers=LAYERS),
        replace(base, sparsify="2:4", sparse_layers=("proj",)),
        replace(base, quantized_layers=("qkv",)),
    )
    assert len({rounding(each) for each in (base, *others)}) == len(others) + 1
    turned = replace(base, quantized_layers=tuple(reversed(base.quantized_layers)))
    assert rounding(turned) == rounding(base)


def test_new_arithmetic_makes_old_evidence_stale(monkeypatch):
    evidence.save_calibrated([row("fp8"), row("int8")])
    monkeypatch.setitem(evidence.ARITHMETIC, "fp8", evidence.ARITHMETIC["fp8"] + 1)
    assert [each.recipe for each in evidence.calibrated(CHECKPOINT)] == ["int8"]


def test_a_checkpoint_is_its_decoder_too_and_the_same_in_half_precision():
    sam = random_sam()
    print_of = checkpoint_fingerprint(sam, "encoder")
    assert checkpoint_fingerprint(sam, "another encoder") != print_of
    assert checkpoint_fingerprint(applied(sam, RECIPES["bf16_sdpa"]), "encoder") == print_of
    with torch.no_grad():
        sam.mask_decoder.iou_token.weight += 1
    assert checkpoint_fingerprint(sam, "encoder") != print_of


def test_speeds_of_a_recipe_that_has_changed_are_left_out(monkeypatch):
    now = Speed(
        "fp32", RECIPES["fp32"].encoder_settings, "vit_b", 1, None, None, 1.0, None, 0.0, {}
    )
    rows = (now, replace(now, definition={"dtype": "float8"}), replace(now, recipe="fp9"))
    monkeypatch.setattr(evidence, "packaged_speeds", lambda: rows)
    assert evidence.speeds() == (now,)


def test_speeds_are_of_the_encoder_however_prompts_are_decoded(monkeypatch):
    """The H200's rows of fused and fp8 are older than packed prompts, and as true of them."""
    definition = replace(RECIPES["fused"], prompts="looped").encoder_settings
    row = Speed("fused", definition, "vit_b", 8, "Card", "9.0", 1.0, None, 0.0, {})
    monkeypatch.setattr(evidence, "packaged_speeds", lambda: (row, replace(row, recipe="fp8")))
    assert evidence.speeds() == (row,)


def test_a_packaged_table_reads_as_it_was_written(tmp_path, monkeypatch):
    fast = Speed(
        "fp32",
        RECIPES["fp32"].encoder_settings,
        "vit_b",
        1,
        None,
        None,
        1.5,
        7,
        0.0,
        {"date": "2030-01-01"},
    )
    for name, rows in (("speed.json", [fast, fast]), ("accuracy.json", [row()])):
        (tmp_path / name).write_text(evidence.packaged_text(rows))
    monkeypatch.setattr(evidence, "DATA", tmp_path)
    assert evidence.packaged_speeds.__wrapped__() == (fast, fast)
    assert evidence.packaged_evidence.__wrapped__() == (row(),)


def test_the_packaged_tables_are_what_the_committed_results_say():
    """No figure in them is typed by hand: `python benchmarks/make_tables.py` writes them."""
    from benchmarks import make_tables

    made = make_tables.tables(make_tables.RESULTS)
    for name, text in made.items():
        assert (evidence.DATA / name).read_text(encoding="utf-8") == text, (
            f"{name}: run benchmarks/make_tables.py"
        )
    stamps = [each.environment for each in evidence.packaged_speeds()]
    stamps += [each.environment for each in evidence.packaged_evidence()]
    assert all({"torch", "commit", "date"} <= stamp.keys() for stamp in stamps)


def test_the_packaged_evidence_is_of_the_packaged_weights():
    sam = samfast.load("vit_xs", device="cpu", recipe="fp32")
    known = evidence.evidence(checkpoint_fingerprint(sam.model, sam.fingerprint))
    exact = next(each for each in known if each.rounding == rounding(RECIPES["bf16_blocked"]))
    assert exact.kind == "miou" and exact.photos > 100
    assert abs(exact.loss_points) < 0.1


def test_tables_take_the_newest_speed_and_the_worst_loss():
    from benchmarks import make_tables

    def bench(images, date, **changes):
        stamp = {
            "gpu": "Card",
            "capability": "9.0",
            "torch": "2",
            "commit": "c",
            "date": date,
            "secret": 1,
        }
        return {
            "recipe": "fused",
            "model": "vit_b",
            "batch_size": 8,
            "encoder_images_per_second": images,
            "peak_memory_bytes": 5,
            "compile_seconds": 0.0,
            "status": "ok",
            "environment": stamp,
        } | changes

    rows = [
        bench(20.0, "2031"),
        bench(10.0, "2030"),
        bench(9.0, "2032", status="wrong: so far off"),
    ]
    rows += [
        bench(9.0, "2032", recipe="rival:x"),
        bench(9.0, "2032", encoder_images_per_second=None),
    ]
    rows += [
        bench(9.0, "2032", definition="another recipe of that name"),
        bench(7.0, "2030", batch_size=1),
    ]
    speeds = make_tables.speeds([("a.json", rows)])
    assert [(each.batch_size, each.images_per_second) for each in speeds] == [(1, 7.0), (8, 20.0)]
    assert "secret" not in speeds[0].environment and speeds[0].capability == "9.0"

    def score(recipe, points, **changes):
        prompts = {"miou": points / 100, "filled_box": 0.5}
        return {
            "model": make_tables.PACKAGED,
            "recipe": recipe,
            "images": 9,
            "masks": 30,
            "point": prompts | {"miou_oracle": 0.9},
            "box": prompts,
            "environment": {"date": "2030", "commit": "c", "torch": "2"},
        } | changes

    contents = [("fp32.json", score("fp32_blocked", 80.0)), ("gpu.json", [score("fp8", 79.9)])]
    contents += [
        ("cpu.json", {"rows": [score("fp8", 79.0)]}),
        ("few.json", score("int8", 79.0, masks=3)),
    ]
    contents += [("other.json", score("int8", 79.0, model="vit_b"))]
    layers = list(RECIPES["fused_int8"].quantized_layers)
    by_fields = score(None, 79.5) | {"quantize": "int8", "quantized_layers": layers, "prune": None}
    pruned = by_fields | {"prune": "magnitude"}
    lost, rounded = make_tables.accuracies([*contents, ("q.json", [by_fields, pruned])])
    assert rounded.rounding == rounding(RECIPES["fused_int8"])
    assert rounded.loss_points == pytest.approx(0.5)
    assert make_tables.accuracies([contents[0], ("q.json", [pruned])]) == []
    assert (lost.recipe, lost.photos) == ("fp8", 9)
    assert lost.loss_points == pytest.approx(1.0)
    assert lost.details["reference"] == "fp32_blocked"


def test_the_data_are_in_the_package():
    project = Path(samfast.__file__).parents[1] / "pyproject.toml"
    assert "recipes/data/*.json" in project.read_text(encoding="utf-8")
