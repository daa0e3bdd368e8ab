"""benchmarks/cpu_vit_xs.py: the photo's size, how it says that two agree, and what it need not
measure again."""

from __future__ import annotations

import json

import numpy as np
import pytest

from samfast.bench.environment import stamp
from tests.bench.benchmark_scripts import imported


@pytest.fixture(scope="module")
def script():
    with imported("cpu_vit_xs") as module:
        yield module


@pytest.mark.parametrize(("pixels", "wanted"), [(None, 240_000), (1_000_000, 1_000_000)])
def test_the_photo_has_the_pixels_asked_for(script, pixels, wanted):
    photo = script.coffee(pixels)
    assert abs(photo.shape[0] * photo.shape[1] / wanted - 1) < 2e-3
    assert abs(photo.shape[1] / photo.shape[0] - 1.5) < 2e-3


def record(rows, flipped=0):
    mask = np.zeros((80, 60), bool)
    mask[:rows] = True
    mask.reshape(-1)[:flipped] ^= True
    return {"bbox": [0, 0, 60, rows], "segmentation": mask}


def test_agreement_needs_the_same_boxes_and_masks(script):
    mine = [record(40), record(20)]
    agreement = script.agreement(mine, [record(40, flipped=1), record(20)])
    assert (
        agreement["parity"]
        and agreement["flipped_pixels"] == 1
        and 0.999 <= agreement["least_iou"] < 1
    )
    assert not script.agreement(mine, [record(40, flipped=30), record(20)])["parity"]
    for other in ([record(40)], [record(20), record(40)], [record(40), record(21)]):
        agreement = script.agreement(mine, other)
        assert (
            not agreement["parity"]
            and not agreement["same_boxes"]
            and agreement["flipped_pixels"] is None
        )


def test_a_step_that_was_done_is_not_done_again_unless_something_changed(script, tmp_path):
    path, clean = tmp_path / "x.json", {**stamp("cpu"), "dirty": False}
    done: list[str] = []

    def steps(asked, mine):
        log = script.Log(path, asked, mine)
        for name in ("a", "b"):
            log.step(name, lambda name=name: done.append(name) or {"n": len(done)})
        log.write(parity=True)
        return log.steps

    assert steps({"side": 2}, clean) == steps({"side": 2}, clean) == {"a": {"n": 1}, "b": {"n": 2}}
    assert done == ["a", "b"]
    assert json.loads(path.read_text())["parity"]
    for asked, mine in (
        ({"side": 3}, clean),
        ({"side": 3}, {**clean, "commit": "another"}),
        ({"side": 3}, {**clean, "dirty": True}),
        ({"side": 3}, {**clean, "dirty": True}),
    ):
        done.clear()
        steps(asked, mine)
        assert done == ["a", "b"]
    assert [file.name for file in tmp_path.iterdir()] == ["x.json"]


def test_what_was_done_before_an_error_is_kept(script, tmp_path):
    path, clean = tmp_path / "x.json", {**stamp("cpu"), "dirty": False}
    log = script.Log(path, {}, clean)
    log.step("a", lambda: {"n": 1})
    with pytest.raises(KeyboardInterrupt):
        log.step("b", _interrupted)
    assert script.Log(path, {}, clean).steps == {"a": {"n": 1}}


def _interrupted():
    raise KeyboardInterrupt
