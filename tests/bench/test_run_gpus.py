"""`benchmarks/run_gpus.py` and `plan_scale.py`: what a row counts, and what a plan makes of it."""

from __future__ import annotations

import json
import sys

import pytest
from PIL import Image

from samfast.cluster.shard_files import ShardRecord
from samfast.cluster.sources import open_source
from tests.bench.benchmark_scripts import imported


@pytest.fixture
def script():
    with imported("run_gpus") as module:
        yield module


@pytest.fixture
def clock(script, monkeypatch):
    """Seconds, which a test sets."""
    now = [0.0]
    monkeypatch.setattr(script.time, "perf_counter", lambda: now[0])
    return now


def photo_folder(folder, count):
    folder.mkdir()
    for number in range(count):
        Image.new("RGB", (60 + number, 40), (number, 90, 30)).save(folder / f"{number}.jpg")
    return folder


def size_of(path):
    with Image.open(path) as photo:
        return photo.size


def shard(images=4):
    return ShardRecord(0, images, 0, 10 * images, 100 * images)


def a_shard_each_second(meter, clock, count=100):
    for second in range(count):
        clock[0] = float(second)
        meter.on_shard(shard())
        if meter._profiler is not None:
            meter._profiler.join()


def test_a_rate_is_of_the_images_after_the_warm_up_until_the_time_is_over(script, clock):
    meter = script.Meter(seconds=10, warm=2)
    with pytest.raises(script.Measured):
        a_shard_each_second(meter, clock)
    row = meter.figures()
    assert (row["images_per_second"], row["images"], row["seconds_measured"]) == (4.0, 40, 10.0)
    assert row["result_bytes_per_image"] == 100.0
    assert row["images_of_the_run"] == 48


def test_a_run_that_ends_early_is_measured_until_its_last_shard(script, clock):
    meter = script.Meter(seconds=1000, warm=1, settle=2)
    a_shard_each_second(meter, clock, 6)
    clock[0] = 60.0
    meter.finish()
    assert meter.figures()["images_per_second"] == 4.0
    assert meter.figures()["images"] == 12


def test_a_run_that_ends_in_its_warm_up_has_no_rate(script, clock):
    meter = script.Meter(seconds=1000, warm=3)
    meter.on_shard(shard())
    meter.finish()
    assert meter.figures()["images_per_second"] is None


def test_a_profile_is_taken_after_the_measured_time(script, clock):
    meter = script.Meter(seconds=5, warm=1, profile=lambda: {"samples": 3})
    with pytest.raises(script.Measured):
        a_shard_each_second(meter, clock)
    meter.finish()
    assert meter.figures()["profile"] == {"samples": 3}
    assert meter.figures()["seconds_measured"] == 5.0


def test_a_stack_is_of_the_first_stage_that_fits(script):
    frames = [
        "ShardStream._answer_waiting (samfast/cluster/shard_stream.py:46)",
        "EncodedRows.start_texts (samfast/prompted_masks/encoded_rows.py:100)",
        "AsyncHostCopy.wait (samfast/device/transfer.py:41)",
    ]
    stacks = [";".join(frames[:count]) for count in range(4)]
    found = [script.stage_of(stack) for stack in stacks]
    assert found == ["other", "shards", "RLE", "GPU waited for"]


def test_stages_are_known_by_functions_that_exist(script):
    for frame in script.STAGES.values():
        function, _, file = frame.rpartition("(")
        path = script.ROOT / file
        if file.endswith(".py"):
            definition = f"def {function.strip().rpartition('.')[2]}(" if function else ""
            assert definition in path.read_text(), frame
        elif not file.startswith("ray/"):
            assert path.is_dir(), frame


def test_the_slope_is_of_the_second_half(script):
    rising = [(float(at), 1000 + max(0, at - 10) * 50) for at in range(21)]
    figures = script.memory_figures(rising, rate=2.0)
    assert figures == {"resident_bytes": 1500, "slope_bytes_per_image": 25.0}


def test_photos_are_made_at_other_sizes_and_linked(script, tmp_path):
    photos = tmp_path / "photos"
    photos.mkdir()
    boxes = script.make_photos([photo_folder(tmp_path / "own", 3)], 12, 20, photos)
    made = sorted(photos.iterdir())
    assert [path.name for path in made] == [f"{number:06}.jpg" for number in range(20)]
    assert len(boxes) == 12
    assert made[13].samefile(made[1])
    sizes = [size_of(path) for path in made[:12]]
    assert len(set(sizes)) == 12
    for each, (width, height) in zip(boxes, sizes, strict=True):
        for x, y, u, v in each:
            assert 0 <= x < u <= width
            assert 0 <= y < v <= height


def test_engine_and_process_do_the_same_photos(script, tmp_path, monkeypatch, capsys):
    folder = photo_folder(tmp_path / "own", 3)
    result = tmp_path / "rows.json"
    arguments = ["--device", "cpu", "--model", "vit_xs", "--image-size", "64", "--photos", "6"]
    arguments += ["--recipe", "fp32_sdpa", "--shard-size", "2", "--entries", "6"]
    arguments += ["--data", str(folder), "--json", str(result)]
    photos = tmp_path / "photos"
    photos.mkdir()
    boxes = script.make_photos([folder], 6, 6, photos)
    asked = script.arguments_of(arguments)
    model = {"name": "vit_xs", "checkpoint": "random", "image_size": 64}
    model |= {"device": "cpu", "recipe": "fp32_sdpa"}
    source = open_source(str(photos))
    script.one_process(script.Rows(asked, model, source, boxes, float("inf")))
    rows = json.loads(result.read_text())
    assert rows["engine"]["images"] == rows["process"]["images"] == 2
    assert rows["engine"]["images_of_the_run"] == rows["process"]["images_of_the_run"] == 6
    assert rows["process"]["result_bytes_per_image"] > 0
    assert set(script.ratios(rows)) == {"process to engine"}


def test_a_row_for_which_no_time_is_left_is_named(script, tmp_path):
    asked = script.arguments_of(["--data", str(tmp_path), "--json", str(tmp_path / "rows.json")])
    rows = script.Rows(asked, {}, None, [], deadline=0.0)
    assert not rows.time_for("ray 2")
    assert json.loads((tmp_path / "rows.json").read_text())["ray 2"] == {
        "left_out": "the time was over"
    }


REPORT = {
    "model": "vit_b",
    "checkpoint": "random",
    "recipe": "fused",
    "cpus": 32,
    "environment": {"gpu": "a GPU", "cpu": "a CPU"},
    "process": {"images_per_second": 100.0, "devices": 0},
    "ray_start": {"ray": 5.0, "identity": 10.0},
    "ray 1": {
        "devices": 1,
        "images_per_second": 100.0,
        "seconds_to_first_shard": 10.0,
        "cpu_seconds_per_image": 0.03,
        "result_bytes_per_image": 3000.0,
    },
    "ray 2": {
        "devices": 2,
        "images_per_second": 190.0,
        "seconds_to_first_shard": 15.0,
        "cpu_seconds_per_image": 0.032,
        "result_bytes_per_image": 3000.0,
    },
    "ray 4": {"left_out": "the time was over"},
    "driver": {"shards": 100, "shard_size": 64, "shards_per_second": 50.0},
}


def test_ratios_of_what_is_measured(script):
    assert script.ratios(REPORT) == {
        "one to one": 1.0,
        "two to one": 1.9,
        "two to one of Ray": 1.9,
    }
    report = {**REPORT, "ratios": script.ratios(REPORT)}
    assert "two to one: 1.9 (must 1.85)" in script.summary(report)
    report["environment"] = {"gpu": None, "cpu": "a CPU"}
    assert "two to one: 1.9 (must 1.0)" in script.summary(report)


def test_a_plan_takes_what_was_measured(tmp_path, monkeypatch, capsys):
    measured, plans = tmp_path / "run.json", tmp_path / "plans.json"
    measured.write_text(json.dumps(REPORT))
    with imported("plan_scale") as script:
        figures = script.ROOT / "benchmarks" / "scale_figures.json"
        arguments = [str(figures), "--measured", str(measured), "--json", str(plans)]
        monkeypatch.setattr(sys, "argv", ["x", *arguments, "--images", "10000000", "--gpus", "8"])
        script.main()
    result = json.loads(plans.read_text())
    known = result["figures"]
    assert known["images_per_second_per_gpu"] == 100.0
    assert known["scaling"] == 0.95
    assert known["startup_seconds"] == 30.0
    assert known["cpu_seconds_per_image"] == 0.032
    assert known["cpus_per_gpu"] == 16
    assert known["result_bytes_per_image"] != 3000.0  # of masks that are noise
    assert known["shards_per_second_of_driver"] == 50.0
    assert result["from"]["scaling"].startswith("measured: run.json")
    (plan,) = result["plans"]
    assert plan["seconds_by_resource"]["gpu"] == pytest.approx(1e7 / (100 * 8 * 0.95))
    assert plan["run_seconds"] == pytest.approx(1e7 / (100 * 8 * 0.95) + 30)
    assert plan["saturates_first"] == "gpu"
    assert "images_per_second_per_gpu" not in capsys.readouterr().out
