from __future__ import annotations

import json
from itertools import pairwise

import numpy as np
import pytest
import torch

from samfast.bench.profile import REGIONS, profile
from samfast.engine import SamFast
from samfast.errors import ImageError, InputError, OutputError
from samfast.recipes import get
from tests.model.tiny import random_sam


@pytest.fixture(scope="module")
def sam():
    torch.set_num_threads(1)
    return SamFast(random_sam(), name="tiny", recipe=get("fp32_sdpa"), recipe_name="fp32_sdpa")


def test_trace_and_tables(sam, tmp_path):
    out = tmp_path / "deep" / "folder"
    result = profile(sam, out, image=np.zeros((40, 60, 3), np.uint8), points=2, warmup=0, top=5)
    assert sorted(path.name for path in out.iterdir()) == ["profile.json", "profile.txt", "trace.json"]
    assert json.loads((out / "profile.json").read_text()) == result
    assert tuple(result["regions"]) == REGIONS
    assert all(seconds > 0 for seconds in result["regions"].values())
    assert len(result["operators"]) == 5
    assert result["operators"][0]["cpu_seconds"] >= result["operators"][-1]["cpu_seconds"] > 0
    events = json.loads((out / "trace.json").read_text())["traceEvents"]
    spans = {e["name"]: (e["ts"], e["ts"] + e["dur"]) for e in events if e.get("cat") == "user_annotation"}
    order = [spans[name] for name in ("preprocess", "encoder", "decoder", "masks")]
    assert order == sorted(order)
    assert all(ended <= began for (_, ended), (began, _) in pairwise(order))
    convolutions = [e["ts"] for e in events if e.get("name") == "aten::conv2d"]
    assert any(spans["encoder"][0] <= ts <= spans["encoder"][1] for ts in convolutions)
    text = (out / "profile.txt").read_text()
    assert all(name in text for name in (*REGIONS, "aten::", "one encoder call"))
    by_name = {row["name"]: row for row in result["encoder_kernels"]["rows"]}
    assert by_name["aten::addmm"]["class"] == "matmul"


def test_an_encoder_that_is_not_the_module_is_traced(tmp_path):
    """As a compiled or captured one is not: the engine calls `encode`, whatever that calls."""
    other = SamFast(random_sam(), name="tiny", recipe=get("fp32_sdpa"), recipe_name="fp32_sdpa")
    features = other.encode(torch.zeros(1, 3, 128, 128))
    other.encode = lambda pixels: features.sin().asin()  # type: ignore[assignment]
    result = profile(other, tmp_path, image=np.zeros((40, 60, 3), np.uint8), warmup=0)
    assert result["regions"]["encoder"] > 0
    assert "aten::asin" in {row["name"] for row in result["encoder_kernels"]["rows"]}


def test_the_model_is_left_as_it_was(sam, tmp_path):
    encode = sam.encode
    profile(sam, tmp_path, warmup=0)
    with pytest.raises(ImageError):
        profile(sam, tmp_path, image=tmp_path / "absent.png", warmup=0)
    assert sam.encode is encode
    for module in sam.model.modules():
        assert not module._forward_hooks
        assert not module._forward_pre_hooks


def test_mistakes(sam, tmp_path):
    with pytest.raises(InputError, match="points=0"):
        profile(sam, tmp_path, points=0)
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="file"):
        profile(sam, tmp_path / "file")
