"""Whatever a caller hands over, only exceptions of `samfast.errors` come out, in one line."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import samfast
from samfast import outputs
from samfast.automatic_masks.options import AutomaticOptions
from samfast.errors import InputError, PromptError, SamfastError, shown
from samfast.types import PackedPrompts, Prompts


class Weird:
    """Nothing that samfast knows, with a repr of two lines."""

    def __repr__(self) -> str:
        return "<weird\nobject>"


def wrong_values() -> dict[str, Any]:
    rows = [torch.zeros(2, 3), torch.zeros(1, 3)]
    jagged = torch.nested.nested_tensor(rows, layout=torch.jagged)
    return {
        "None": None,
        "True": True,
        "0": 0,
        "-1": -1,
        "5": 5,
        "2**40": 2**40,
        "10**400": 10**400,
        "1.5": 1.5,
        "NaN": float("nan"),
        "text": "abc",
        "digits": "1024",
        "no text": "",
        "a text with a null": "a\0b",
        "a long text": "a" * 5000,
        "bytes": b"abc",
        "[]": [],
        "[[]]": [[]],
        "ragged": [[1], [1, 2]],
        "deep": [[[[[1]]]]],
        "dict": {"a": 1},
        "set": {1},
        "generator": (number for number in range(0)),
        "object": Weird(),
        "[object]": [Weird()],
        "[None]": [None],
        "type": int,
        "complex": 1j,
        "path": Path("/nowhere"),
        "folder": Path("/"),
        "NumPy scalar": np.float32(3),
        "NumPy integer": np.int64(1),
        "array ()": np.zeros(()),
        "array (2, 2)": np.zeros((2, 2)),
        "complex array": np.zeros((1, 1, 2), complex),
        "bool array": np.ones((1, 1, 2), bool),
        "text array": np.array(["a"]),
        "object array": np.array([Weird()], object),
        "dates": np.array(["2020-01-01"], "datetime64[D]"),
        "tensor ()": torch.tensor(1.0),
        "sparse": torch.zeros(1, 1, 2).to_sparse(),
        "[sparse]": [torch.zeros(1, 2).to_sparse()],
        "sparse image": torch.zeros(3, 8, 8, dtype=torch.uint8).to_sparse(),
        "meta": torch.zeros(1, 1, 2, device="meta"),
        "meta image": torch.zeros(3, 8, 8, dtype=torch.uint8, device="meta"),
        "jagged": jagged,
        "[jagged]": [jagged],
        "nested": torch.nested.nested_tensor(rows),
        "complex tensor": torch.zeros(1, 1, 2, dtype=torch.complex64),
        "with gradients": torch.zeros(1, 1, 2, requires_grad=True),
        "image": Image.new("RGB", (8, 8)),
        "Prompts": Prompts(boxes=[[1, 1, 3, 3]]),
    }


# "The PyTorch API of nested tensors is in prototype stage"
pytestmark = pytest.mark.filterwarnings("ignore:.*nested tensors:UserWarning")


def problems(calls: dict[str, Callable[[Any], object]]) -> list[str]:
    """The calls that raise anything else than a SamfastError of one line, with every value."""
    found = []
    for value_name in wrong_values():
        for name, call in calls.items():
            try:
                call(wrong_values()[value_name])
            except SamfastError as error:
                if "\n" in str(error):
                    found.append(f"{name} of {value_name}: two lines: {error}")
            except Exception as error:
                found.append(f"{name} of {value_name}: {type(error).__name__}: {error}")
    return found


@pytest.fixture(scope="module")
def sam():
    return samfast.load("vit_xs", device="cpu", recipe="fp32", image_size=64)


@pytest.fixture(scope="module")
def embeddings(sam):
    return sam.embed([np.zeros((40, 60, 3), np.uint8)])


def test_load(monkeypatch):
    monkeypatch.setattr("samfast.checkpoints.hugging_face.is_hub_id", lambda source: False)
    good = {"device": "cpu", "recipe": "fp32", "image_size": 64, "checkpoint": "random"}

    def loads(argument: str) -> Callable[[Any], object]:
        return lambda value: samfast.load(**({"name": "vit_xs"} | good | {argument: value}))

    arguments = ("name", *good, "batch_size", "accuracy_budget")
    assert problems({name: loads(name) for name in arguments}) == []


def test_embed_and_segment(sam):
    calls = {
        "embed": sam.embed,
        "embed of a list": lambda value: sam.embed([value]),
        "segment": lambda value: sam.segment(value, points_per_side=1),
        "segment of a list": lambda value: sam.segment([value], points_per_side=1),
    }
    assert problems(calls) == []


def test_prompts(sam, embeddings):
    def asks(**prompts: Any) -> object:
        return sam.predict(embeddings, [Prompts(**prompts)])

    point = [[[3, 3]]]
    calls = {
        "points": lambda value: asks(points=value, labels=[[1]]),
        "points of an object": lambda value: asks(points=[value], labels=[[1]]),
        "a point": lambda value: asks(points=[[value]], labels=[[1]]),
        "labels": lambda value: asks(points=point, labels=value),
        "labels of an object": lambda value: asks(points=point, labels=[value]),
        "boxes": lambda value: asks(boxes=value),
        "a box": lambda value: asks(boxes=[value]),
        "masks": lambda value: asks(masks=value),
        "a mask": lambda value: asks(masks=[value]),
        "prompts": lambda value: sam.predict(embeddings, value),
        "prompts of an image": lambda value: sam.predict(embeddings, [value]),
        "embeddings": lambda value: sam.predict(value, [Prompts(points=point, labels=[[1]])]),
        "multimask": lambda value: sam.predict(
            embeddings, [Prompts(points=point, labels=[[1]])], multimask=value
        ),
    }
    assert problems(calls) == []


def test_packed_prompts(sam, embeddings):
    good = {
        "coords": torch.ones(1, 1, 2),
        "labels": torch.ones(1, 1, dtype=torch.int64),
        "boxes": None,
        "masks": None,
        "offsets": (0, 1),
        "images": None,
    }
    sam.predict_batch(embeddings, PackedPrompts(**good))

    def asks(field: str) -> Callable[[Any], object]:
        return lambda value: sam.predict_batch(embeddings, PackedPrompts(**good | {field: value}))

    calls = {field: asks(field) for field in good}
    jagged = torch.nested.nested_tensor([torch.ones(2, 1, 2)], layout=torch.jagged)
    calls["prompts"] = lambda value: sam.predict_batch(embeddings, value)
    calls["labels of jagged points"] = lambda value: sam.predict_batch(embeddings, jagged, value)
    assert problems(calls) == []


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"coords": torch.ones(1, 2)}, r"coords .* shape \(1, 2\) instead of \(P, K, 2\)"),
        ({"labels": torch.ones(1, 2)}, "different numbers of points"),
        ({"labels": None}, "go together"),
        ({"boxes": torch.ones(2, 4)}, "1 coords, 1 labels, 2 boxes"),
        ({"masks": torch.ones(1, 1, 9, 9)}, r"instead of \(P, 1, 16, 16\)"),
        ({"offsets": (0, 2)}, "ascend from 0 to its 1 objects"),
        ({"offsets": torch.tensor([1, 1])}, "ascend from 0"),
        ({"images": (1,)}, "numbers below 1"),
    ],
)
def test_packed_prompts_that_do_not_fit(sam, embeddings, change, said):
    good = {"coords": torch.ones(1, 1, 2), "labels": torch.ones(1, 1), "boxes": None, "masks": None}
    with pytest.raises(PromptError, match=said):
        sam.predict_batch(embeddings, PackedPrompts(**good | {"offsets": (0, 1)} | change))


def test_options_and_recipes():
    def option(name: str) -> Callable[[Any], object]:
        more = {"points_per_side": None} if name == "point_grids" else {}
        return lambda value: AutomaticOptions(**{name: value} | more)

    def recipe(name: str) -> Callable[[Any], object]:
        return lambda value: samfast.Recipe(**{name: value})

    calls = {each.name: option(each.name) for each in dataclasses.fields(AutomaticOptions)}
    calls |= {each.name: recipe(each.name) for each in dataclasses.fields(samfast.Recipe)}
    calls["a grid"] = lambda value: AutomaticOptions(points_per_side=None, point_grids=[value])
    assert problems(calls) == []


def test_embeddings(embeddings, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    samfast.save_embeddings(embeddings, "good")
    calls = {
        "save": lambda value: samfast.save_embeddings(value, "new"),
        "save to": lambda value: samfast.save_embeddings(embeddings, value),
        "load": samfast.load_embeddings,
        "load to": lambda value: samfast.load_embeddings("good", value),
        "to": embeddings.to,
        "slice": lambda value: embeddings[value:] if value is None else None,
    }
    assert problems(calls) == []


def test_embeddings_by_number(sam):
    two = sam.embed([np.full((40, 60, 3), value, np.uint8) for value in (10, 200)])
    for number in (1, -1, np.int64(1), np.uint8(1), torch.tensor(1)):
        assert torch.equal(two[number].features, two.features[1:])
    with pytest.raises(IndexError):
        two[2]
    for wrong in (1.0, "1", None, [0]):
        with pytest.raises(InputError, match="give a number or a slice"):
            two[wrong]  # type: ignore[index]


@pytest.mark.parametrize("size", ["1024", 1024.0, True, 0, -16, 17, 2**40, 8208])
def test_image_sizes(size):
    with pytest.raises(InputError, match="image_size="):
        samfast.load("vit_xs", device="cpu", recipe="fp32", image_size=size)


@pytest.mark.parametrize("device", ["meta", torch.device("meta"), "vulkan", "gpu", "cpu:x", 0])
def test_devices_that_run_nothing(device):
    with pytest.raises(InputError, match="device"):
        samfast.load("vit_xs", device=device)


def test_shown():
    assert shown(1.5) == "1.5"
    assert shown(Weird()) == "a Weird"
    assert shown("a" * 500) == "a str"
    assert shown(10**5000) == "a int"
    assert shown(np.zeros((50, 50))) == "a ndarray of shape (50, 50)"


def test_outputs(sam, embeddings, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    masks = sam.predict(embeddings, [Prompts(points=[[[3, 3]]], labels=[[1]])])[0]
    stability = torch.zeros(masks.iou.shape)
    records = outputs.records_of(masks, stability)
    dense, size, pixels = masks.best(), (40, 60), np.zeros((40, 60, 3), np.uint8)
    outputs.write_overlay("good.png", pixels, dense)
    calls = {
        "records_of": lambda value: outputs.records_of(value, stability),
        "stability": lambda value: outputs.records_of(masks, value),
        "points": lambda value: outputs.records_of(masks, stability, value),
        "write_records": lambda value: outputs.write_records("r.json", value),
        "write_records to": lambda value: outputs.write_records(value, records),
        "write_records_npz": lambda value: outputs.write_records_npz("r.npz", value, size),
        "write_records_npz, size": lambda value: outputs.write_records_npz("r.npz", [], value),
        "write_masks_npz": lambda value: outputs.write_masks_npz("m.npz", value),
        "read_npz": outputs.read_npz,
        "write_labels": lambda value: outputs.write_labels("l.png", value, size),
        "write_labels, size": lambda value: outputs.write_labels("l.png", dense, value),
        "write_overlay to": lambda value: outputs.write_overlay(value, pixels, dense),
        "write_overlay": lambda value: outputs.write_overlay("o.png", value, dense),
        "write_overlay, masks": lambda value: outputs.write_overlay("o.png", pixels, value),
        "encode": outputs.encode,
        "decode": outputs.decode,
    }
    assert problems(calls) == []
