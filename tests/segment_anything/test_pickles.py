"""Models and predictors that the original has pickled, loaded where samfast stands in for it."""

from __future__ import annotations

import io
import pickle
import sys
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch

from samfast.attention import auto
from samfast.model.sam import Sam
from samfast.segment_anything import SamPredictor
from samfast.segment_anything.install import install_as_segment_anything
from tests import oracle
from tests.pairs import SMALL, forget_original, original, picture, randomise, relative_error


@pytest.fixture
def files() -> Iterator[dict[str, bytes]]:
    """What the original's `torch.save` and pickle write; then samfast is installed."""
    package = oracle.load()
    sam = original(SMALL)
    randomise(sam)
    predictor = package.SamPredictor(sam)
    predictor.set_image(picture(60, 90))
    stream = io.BytesIO()
    torch.save(sam, stream)
    plain = package.modeling.ImageEncoderViT(img_size=64, embed_dim=32, depth=1, num_heads=2)
    with torch.no_grad():
        embedding = plain(torch.ones(1, 3, 64, 64))
    low_res = predictor.predict(box=np.array([5, 5, 60, 50]))[2]
    written = {
        "model": stream.getvalue(),
        "predictor": pickle.dumps(predictor),
        "without positions": pickle.dumps((plain, embedding)),
        "result": pickle.dumps(low_res),
    }
    saved = forget_original()
    install_as_segment_anything()
    yield written
    forget_original()
    sys.modules.update(saved)


def low_res_of(predictor: Any) -> np.ndarray:
    low_res: np.ndarray = predictor.predict(box=np.array([5, 5, 60, 50]))[2]
    return low_res


def test_a_whole_model(files: dict[str, bytes]) -> None:
    sam = torch.load(io.BytesIO(files["model"]), weights_only=False)
    assert type(sam) is Sam
    assert all(block.attn.attend is auto.attend for block in sam.image_encoder.blocks)
    predictor = SamPredictor(sam)
    predictor.set_image(picture(60, 90))
    expected = pickle.loads(files["result"])
    assert relative_error(low_res_of(predictor), expected) <= 1e-4
    again = pickle.loads(pickle.dumps(sam))
    assert all(block.attn.attend is auto.attend for block in again.image_encoder.blocks)


def test_a_predictor_with_its_image(files: dict[str, bytes]) -> None:
    predictor = pickle.loads(files["predictor"])
    assert type(predictor) is SamPredictor
    expected = pickle.loads(files["result"])
    assert relative_error(low_res_of(predictor), expected) <= 1e-4
    predictor.set_image(picture(60, 90))
    again = pickle.loads(pickle.dumps(predictor))
    assert relative_error(low_res_of(again), expected) <= 1e-4


def test_an_encoder_without_relative_positions(files: dict[str, bytes]) -> None:
    encoder, expected = pickle.loads(files["without positions"])
    assert type(encoder).__module__ == "samfast.segment_anything.modeling.image_encoder"
    with torch.no_grad():
        assert relative_error(encoder(torch.ones(1, 3, 64, 64)), expected) <= 1e-5
