"""`benchmarks/command_rate.py`: what it draws, what it reads from the command, and a whole run."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
from PIL import Image

from samfast.cli.prompt_files import read_prompts
from samfast.cli.segment_report import Tally
from tests.bench.benchmark_scripts import FOLDER, imported

SCRIPT = FOLDER / "command_rate.py"


@pytest.fixture
def script():
    with imported("command_rate") as module:
        yield module


def test_drawn_photos_have_boxes_that_the_command_reads(script, tmp_path):
    data = script.drawn(tmp_path, 2)
    names = sorted(path.name for path in (data / "images").iterdir())
    assert names == ["0000.jpg", "0001.jpg"]
    with Image.open(data / "images" / names[0]) as photo:
        assert photo.size == script.SIZE[::-1]
    boxes = script.boxes_of(data)
    assert {name: len(each) for name, each in boxes.items()} == dict.fromkeys(names, script.BOXES)
    assert all(0 <= x0 < x1 <= 640 and 0 <= y0 < y1 <= 480 for x0, y0, x1, y1 in boxes[names[0]])
    read_prompts(data / "annotations.json")


def test_some_photos_of_a_data_set_are_linked(script, tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    few = script.some_of(script.drawn(tmp_path / "a", 3), tmp_path / "b", 1)
    assert [path.name for path in (few / "images").iterdir()] == ["0000.jpg"]
    assert script.boxes_of(few) == {"0000.jpg": script.boxes_of(tmp_path / "a")["0000.jpg"]}


def test_the_rate_is_read_from_the_command_s_last_line(script):
    tally = Tally()
    tally.done, tally.masks = 12, 30
    match = script.RATE.search(f"samfast: a note, 3 images/s slow\nsamfast: {tally.describe()}\n")
    assert match is not None and float(match[1]) > 0


@pytest.mark.parametrize("fails", [False, True])
def test_the_first_file_is_seen_when_it_appears(script, tmp_path, fails):
    program = (
        "import sys, time, pathlib\n"
        "out = pathlib.Path(sys.argv[2]); out.mkdir()\n"
        "time.sleep(0.3); (out / 'a.json').write_text('[]'); time.sleep(0.5)\n"
        f"sys.exit({int(fails)})"
    )
    call = [sys.executable, "-c", program]
    if fails:
        with pytest.raises(RuntimeError):
            script.first_mask(call, tmp_path / "out", script.environment())
        return
    seen = script.first_mask(call, tmp_path / "out", script.environment(tmp_path))
    assert 0.3 <= seen["first_mask"] <= seen["ended"] - 0.4


@pytest.mark.slow
def test_a_whole_run(tmp_path):
    file = tmp_path / "rate.json"
    options = ["--files", "2", "--points-per-side", "1", "--repeats", "1", "--no-cold"]
    subprocess.run(
        [sys.executable, str(SCRIPT), "--json", str(file), *options], check=True, timeout=600
    )
    told = json.loads(file.read_text())
    assert {row["what"] for row in told["rates"]} == {"everything", "box", "coco"}
    assert all(row["files"] == 2 and row["share_of_first_pass"] > 0 for row in told["rates"])
    for row in told["first"]:
        assert 0 < row["beyond_base"] < row["first_mask"] <= row["ended"]
    for row in told["stages"]:
        names = [step["step"] for step in row["steps"]]
        assert {"import torch", "load", "first answer", "write files", "command"} <= set(names)
        assert all(step["begin"] <= step["end"] for step in row["steps"])
    assert told["environment"]["device"] == "cpu"
