"""The examples of docs/python.md run, one after another, with a small model of random weights."""

from __future__ import annotations

import copy
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import samfast
from samfast.recipes import RECIPES
from tests.model.tiny import fast, random_sam

TEXT = (Path(__file__).resolve().parents[2] / "docs" / "python.md").read_text(encoding="utf-8")
EXAMPLES = re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL)


def test_the_examples_run(tmp_path, monkeypatch, capsys):
    pytest.importorskip("matplotlib").use("agg")
    from matplotlib import pyplot

    model = copy.deepcopy(random_sam())
    with torch.no_grad():  # so that masks pass the filters: high predicted IoU, stable
        model.mask_decoder.iou_prediction_head.layers[-1].bias.add_(1)
        heads: Any = model.mask_decoder.output_hypernetworks_mlps
        for head in heads:
            for parameter in head.layers[-1].parameters():
                parameter.mul_(1000)
    sam = fast(model, RECIPES["fp32_sdpa"])
    monkeypatch.setattr(samfast, "load", lambda name: sam)
    monkeypatch.chdir(tmp_path)
    coarse = np.random.default_rng(0).integers(0, 255, (6, 8, 3), np.uint8)
    photo = Image.fromarray(coarse).resize((600, 400))
    for name in ("photo.jpg", "a.jpg", "b.jpg"):
        photo.save(name)
    names: dict[str, Any] = {}
    for example in EXAMPLES:
        exec(example, names)
    pyplot.close("all")
    shown = capsys.readouterr()
    assert "1 of 1 images" in shown.out
    assert "1024/1024" in shown.err
    assert Path("masks.png").is_file()


def test_every_method_of_an_answer_is_told():
    methods = [
        name
        for name, value in vars(samfast.Masks).items()
        if callable(value) and not name.startswith("_")
    ]
    told = set(re.findall(r"\w+", TEXT))
    assert [name for name in methods if name not in told] == []
