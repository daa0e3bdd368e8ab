"""SamOnnxModel exported by both of PyTorch's exporters: one graph for images of all sizes. And the
image encoder by the older one.
"""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.jit._trace import TracerWarning

from samfast.model.sam import build
from samfast.segment_anything.modeling import ImageEncoderViT
from samfast.segment_anything.utils.onnx import SamOnnxModel
from tests.pairs import SMALL, pair

onnxruntime = pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")

OUTPUTS = ["masks", "iou_predictions", "low_res_masks"]
POINTS = ("point_coords", "point_labels")


def inputs(points: int, size: tuple[int, int], mask: bool) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(points)
    return {
        "image_embeddings": torch.randn(1, 64, 16, 16, generator=generator),
        "point_coords": torch.rand(1, points, 2, generator=generator) * 256,
        "point_labels": torch.randint(-1, 4, (1, points), generator=generator).float(),
        "mask_input": torch.randn(1, 1, 64, 64, generator=generator),
        "has_mask_input": torch.tensor([float(mask)]),
        "orig_im_size": torch.tensor(size, dtype=torch.float32),
    }


def by_tracing(model: SamOnnxModel, example: dict[str, Tensor], path: Path) -> None:
    """As the original's export_onnx_model.py, with the exporter that PyTorch had then."""
    axes = {name: {1: "num_points"} for name in POINTS}
    with warnings.catch_warnings():
        # Two expected warnings: the exporter is deprecated, and the decoder reads the number of
        # objects, which stays constant. A tracer warning elsewhere fails the test.
        warnings.simplefilter("ignore", DeprecationWarning)
        warnings.filterwarnings("ignore", category=TracerWarning, module=r"samfast\.model\.")
        torch.onnx.export(
            model,
            tuple(example.values()),
            path,
            opset_version=17,
            input_names=list(example),
            output_names=OUTPUTS,
            dynamic_axes=axes,
            dynamo=False,
        )


def by_dynamo(model: SamOnnxModel, example: dict[str, Tensor], path: Path) -> None:
    """With today's exporter."""
    shapes: dict[str, Any] = dict.fromkeys(example)
    shapes |= {name: {1: torch.export.Dim.DYNAMIC} for name in POINTS}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the exporter
        torch.onnx.export(
            model,
            kwargs=example,
            f=path,
            dynamic_shapes=shapes,
            output_names=OUTPUTS,
            dynamo=True,
            verbose=False,
        )


@pytest.mark.parametrize(
    ("export", "single", "stability"),
    [(by_tracing, True, False), (by_tracing, False, True), (by_dynamo, True, False)],
)
def test_one_graph_answers_for_all_sizes(
    export, single: bool, stability: bool, tmp_path: Path
) -> None:
    _, sam = pair()
    model = SamOnnxModel(sam, single, stability)
    model.stability_score_offset = 0.02  # random weights give small logits
    export(model, inputs(5, (150, 225), True), tmp_path / "sam.onnx")
    session = onnxruntime.InferenceSession(
        tmp_path / "sam.onnx", providers=["CPUExecutionProvider"]
    )
    for points, size, mask in (
        (5, (150, 225), True),
        (2, (300, 70), False),
        (1, (64, 64), True),
        (7, (33, 257), False),
    ):
        given = inputs(points, size, mask)
        outputs = session.run(OUTPUTS, {name: value.numpy() for name, value in given.items()})
        for output, want in zip(outputs, model(**given), strict=True):
            assert output.shape == tuple(want.shape)
            np.testing.assert_allclose(
                output, want.numpy(), rtol=1e-3, atol=1e-4 * float(want.abs().max())
            )


@pytest.mark.filterwarnings(
    "ignore::DeprecationWarning",
    "ignore::torch.jit.TracerWarning",
    "ignore:Constant folding:UserWarning",
)
@pytest.mark.parametrize("grad", [True, False])
def test_the_image_encoder_is_traced(grad: bool, tmp_path: Path) -> None:
    """As samexporter exports it."""
    theirs, _ = pair()
    sam = build(SMALL, encoder=ImageEncoderViT)
    sam.load_state_dict(theirs.state_dict())
    pixels = torch.randn(1, 3, 256, 256, generator=torch.Generator().manual_seed(0))
    with torch.set_grad_enabled(grad):
        torch.onnx.export(
            sam.image_encoder,
            (pixels,),
            tmp_path / "encoder.onnx",
            opset_version=17,
            input_names=["images"],
            dynamo=False,
        )
    session = onnxruntime.InferenceSession(
        tmp_path / "encoder.onnx", providers=["CPUExecutionProvider"]
    )
    (embedding,) = session.run(None, {"images": pixels.numpy()})
    with torch.no_grad():
        expected = theirs.image_encoder(pixels).numpy()
    np.testing.assert_allclose(embedding, expected, atol=1e-4)
