"""How clients of segment_anything call it, written anew: the original and samfast answer alike.

A pattern takes the package (the original, or samfast under its name) and a model of it, and returns
numbers, which must be the same. Clients whose code can be installed are run by the other files of
this folder.
"""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import samfast.segment_anything as samfast_package
from tests import oracle
from tests.pairs import SMALL, pair, picture, relative_error, undecided

Numbers = dict[str, Tensor]
Pattern = Callable[[Any, Any], Numbers]

TOLERANCE = 1e-4
"""Of float32, relative; gradients of few numbers included."""

PIXELS = (96, 128)
"""The height and width of the pictures."""


def pixels(count: int) -> Tensor:
    """Input of an encoder of SMALL, (count, 3, 256, 256)."""
    stacked = np.stack([picture(SMALL.image_size, SMALL.image_size, seed) for seed in range(count)])
    return torch.from_numpy(stacked).permute(0, 3, 1, 2).float() / 64 - 2


def gradients(module: nn.Module) -> Numbers:
    return {
        f"grad {name}": parameter.grad.clone()
        for name, parameter in module.named_parameters()
        if parameter.grad is not None
    }


def decode(sam: Any, features: Tensor, *, multimask: bool = True, **prompts: Any) -> Numbers:
    """The decoder's answer for features of N images and prompts as the prompt encoder takes."""
    sparse, dense = sam.prompt_encoder(**{"points": None, "boxes": None, "masks": None, **prompts})
    logits, iou = sam.mask_decoder(
        image_embeddings=features,
        image_pe=sam.prompt_encoder.get_dense_pe(),
        sparse_prompt_embeddings=sparse,
        dense_prompt_embeddings=dense,
        multimask_output=multimask,
    )
    return {"logits": logits, "iou": iou}


# ------------------------------------------------------------------------------------------------
# training


def sam_med2d_clicks(package: Any, sam: Any) -> Numbers:
    """SAM-Med2D: rounds of training, each with one click more and the last round's logits."""
    with torch.no_grad():
        features = sam.image_encoder(pixels(1))
    target = (pixels(1)[:, :1, ::4, ::4] > 0.2).float()
    clicks = torch.tensor([[[40.0, 60.0]], [[180.0, 90.0]]])
    labels = torch.ones(2, 1)
    logits: Tensor | None = None
    out: Numbers = {}
    for number in range(3):
        answer = decode(sam, features, points=(clicks, labels), masks=logits, multimask=number == 0)
        best = answer["iou"].argmax(dim=1)
        logits = answer["logits"][torch.arange(2), best][:, None]
        loss = F.binary_cross_entropy_with_logits(logits, target.expand_as(logits))
        loss.backward()
        out |= {f"{name} {number}": value for name, value in answer.items()}
        logits = logits.detach()
        clicks = torch.cat([clicks, clicks[:, -1:] + 25], dim=1)
        labels = torch.cat([labels, torch.full((2, 1), float(number % 2))], dim=1)
    return {**out, **gradients(sam.mask_decoder), **gradients(sam.prompt_encoder)}


# ------------------------------------------------------------------------------------------------
# explanations


def gradient_of_the_image(package: Any, sam: Any) -> Numbers:
    """Adversarial examples: the gradient of a mask with respect to the image."""
    image = pixels(1).requires_grad_()
    points = torch.tensor([[[90.0, 70.0], [120.0, 200.0]]]), torch.tensor([[1.0, 0.0]])
    answer = decode(sam, sam.image_encoder(image), points=points)
    answer["logits"].sigmoid().mean().backward()
    assert image.grad is not None
    return {**answer, "grad image": image.grad}


# ------------------------------------------------------------------------------------------------
# predictors


def label_studio_clicks(package: Any, sam: Any) -> Numbers:
    """Label Studio's backend: positive and negative keypoints with a box, one mask."""
    predictor = package.SamPredictor(sam)
    predictor.set_image(picture(*PIXELS))
    masks, scores, low = predictor.predict(
        point_coords=np.array([[60, 40], [20, 80]], dtype=np.float32),
        point_labels=np.array([1, 0], dtype=np.float32),
        box=np.array([10, 12, 90, 70], dtype=np.float32),
        multimask_output=False,
    )
    return {**decided(masks, low), "scores": tensor(scores), "low": tensor(low)}


def predictor_over_an_engine(package: Any, sam: Any) -> Numbers:
    """TensorRT wrappers: the model is an object that is no nn.Module."""

    class Engine:
        """Callable, as a compiled encoder is."""

        img_size = SMALL.image_size

        def __call__(self, x: Tensor) -> Tensor:
            return sam.image_encoder(x)

    engine = SimpleNamespace(
        image_encoder=Engine(),
        prompt_encoder=sam.prompt_encoder,
        mask_decoder=sam.mask_decoder,
        preprocess=sam.preprocess,
        postprocess_masks=sam.postprocess_masks,
        mask_threshold=sam.mask_threshold,
        image_format=sam.image_format,
        device=sam.device,
    )
    predictor = package.SamPredictor(engine)
    predictor.set_image(picture(*PIXELS))
    masks, scores, low = predictor.predict(np.array([[60, 40]]), np.array([1]))
    return {**decided(masks, low), "scores": tensor(scores), "low": tensor(low)}


def micro_sam_embeddings(package: Any, sam: Any) -> Numbers:
    """micro-sam: features computed in a batch, and set on the predictor by the caller."""
    predictor = package.SamPredictor(sam)
    images = [picture(*PIXELS, seed) for seed in range(3)]
    resized = [predictor.transform.apply_image(image) for image in images]
    inputs = [torch.as_tensor(each).permute(2, 0, 1).contiguous()[None] for each in resized]
    with torch.no_grad():
        features = sam.image_encoder(torch.cat([sam.preprocess(each) for each in inputs]))
    out: Numbers = {"features": features}
    for index in range(3):
        predictor.features = features[index : index + 1]
        predictor.original_size, predictor.input_size = PIXELS, tuple(inputs[index].shape[-2:])
        predictor.is_image_set = True
        boxes = predictor.transform.apply_boxes(np.array([[8, 9, 70, 60], [3, 3, 99, 90]]), PIXELS)
        logits, scores, low = predictor.predict_torch(
            point_coords=None,
            point_labels=None,
            boxes=torch.tensor(boxes, dtype=torch.float32),
            multimask_output=True,
            return_logits=True,
        )
        out |= {
            f"{name} {index}": value
            for name, value in zip("lsr", (logits, scores, low), strict=True)
        }
    return out


def tensor(values: Any) -> Tensor:
    return torch.as_tensor(np.array(values))


def decided(masks: Any, logits: Any) -> Numbers:
    """Masks as numbers; they may differ only where the logits are as good as zero."""
    return {"masks": tensor(masks).float(), "undecided": tensor(undecided(logits).mean())}


PATTERNS: dict[str, Pattern] = {
    pattern.__name__: pattern
    for pattern in (
        sam_med2d_clicks,
        gradient_of_the_image,
        label_studio_clicks,
        micro_sam_embeddings,
        predictor_over_an_engine,
    )
}


def compare(answer: Numbers, expected: Numbers) -> None:
    assert answer.keys() == expected.keys()
    steps = [value.norm() for name, value in expected.items() if name.startswith("grad ")]
    largest = float(max(steps)) if steps else 0.0
    for name, value in expected.items():
        if name.startswith("grad "):
            error = float((answer[name] - value).norm())
            assert error <= TOLERANCE * float(value.norm()) + 1e-6 * largest, name
        elif name == "masks":
            assert float((answer[name] != value).float().mean()) <= 2 * TOLERANCE, name
        elif name != "undecided":
            assert relative_error(answer[name].detach(), value.detach()) <= TOLERANCE, name


@pytest.mark.parametrize("name", PATTERNS)
def test_pattern(name: str) -> None:
    theirs, ours = pair()
    expected = PATTERNS[name](oracle.load(), theirs)
    compare(PATTERNS[name](samfast_package, ours), expected)
