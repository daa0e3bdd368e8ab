"""How clients of segment_anything call it, written anew: the original and samfast answer alike.

A pattern takes the package (the original, or samfast under its name) and a model of it, and returns
numbers, which must be the same. Clients whose code can be installed are run by the other files of
this folder.
"""

from __future__ import annotations

import pickle
import sys
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import samfast
import samfast.segment_anything as samfast_package
from tests import oracle
from tests.pairs import SMALL, forget_original, pair, picture, relative_error, undecided

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


def samed_training_step(package: Any, sam: Any) -> Numbers:
    """SAMed: images without prompts, low-rank updates of q and v, the decoder trained."""

    class LowRankQkv(nn.Module):
        def __init__(self, qkv: nn.Linear, seed: int) -> None:
            super().__init__()
            self.qkv, self.dim = qkv, qkv.in_features
            generator = torch.Generator().manual_seed(seed)
            draws = [0.2 * torch.randn(4, self.dim, generator=generator) for _ in range(4)]
            self.down_q, self.up_q, self.down_v, self.up_v = map(nn.Parameter, draws)

        def forward(self, x: Tensor) -> Tensor:
            qkv = self.qkv(x)
            qkv[..., : self.dim] += x @ self.down_q.T @ self.up_q
            qkv[..., -self.dim :] += x @ self.down_v.T @ self.up_v
            return qkv

    for parameter in sam.image_encoder.parameters():
        parameter.requires_grad = False
    for seed, block in enumerate(sam.image_encoder.blocks):
        block.attn.qkv = LowRankQkv(block.attn.qkv, seed)
    sam.train()
    answer = decode(sam, sam.image_encoder(pixels(3)))
    labels = (pixels(3)[:, 0, ::4, ::4] > 0).long()
    F.cross_entropy(answer["logits"], labels).backward()
    return {**answer, **gradients(sam)}


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


def frozen_encoder_of_a_batch(package: Any, sam: Any) -> Numbers:
    """A batch of images with one box for all of them, as in a loop that crops to one organ."""
    with torch.no_grad():
        features = sam.image_encoder(pixels(3))
    answer = decode(sam, features, boxes=torch.tensor([[30.0, 40, 200, 180]]), multimask=False)
    answer["logits"].square().mean().backward()
    return {**answer, **gradients(sam.mask_decoder)}


def one_click_with_three_masks(package: Any, sam: Any) -> Numbers:
    """Candidate masks of one click, refined side by side."""
    with torch.no_grad():
        features = sam.image_encoder(pixels(1))
        click = torch.tensor([[[100.0, 120.0]]]), torch.ones(1, 1)
        first = decode(sam, features, points=click)
        masks = first["logits"].permute(1, 0, 2, 3)
        return decode(sam, features, points=click, masks=masks)


def micro_sam_volume(package: Any, sam: Any) -> Numbers:
    """micro-sam in 3D: an adapter that mixes the slices of a volume before each block."""

    class SliceBlock(nn.Module):
        def __init__(self, block: nn.Module, seed: int) -> None:
            super().__init__()
            self.block = block
            self.mix = nn.Conv3d(SMALL.embed_dim, SMALL.embed_dim, (3, 1, 1), padding="same")
            draw = torch.randn(self.mix.weight.shape, generator=torch.Generator().manual_seed(seed))
            self.mix.weight.data = 0.05 * draw
            nn.init.zeros_(self.mix.bias)

        def forward(self, x: Tensor) -> Tensor:
            volume = x.permute(3, 0, 1, 2)[None]
            x = x + self.mix(volume)[0].permute(1, 2, 3, 0)
            partition = package.modeling.image_encoder.window_partition
            unpartition = package.modeling.image_encoder.window_unpartition
            shortcut, x, window = x, self.block.norm1(x), self.block.window_size
            if window > 0:
                size = (x.shape[1], x.shape[2])
                x, padded = partition(x, window)
            x = self.block.attn(x)
            if window > 0:
                x = unpartition(x, window, padded, size)
            x = shortcut + x
            return x + self.block.mlp(self.block.norm2(x))

    encoder = sam.image_encoder
    for index, block in enumerate(encoder.blocks):
        encoder.blocks[index] = SliceBlock(block, index)
    side = SMALL.image_size
    answer = decode(sam, encoder(pixels(4)), multimask=False)
    masks = sam.postprocess_masks(answer["logits"], (side, side), PIXELS)
    masks.square().mean().backward()
    return {**answer, "masks": masks, **gradients(encoder)}


# ------------------------------------------------------------------------------------------------
# explanations


def attention_rollout_with_gradients(package: Any, sam: Any) -> Numbers:
    """Interpretability: attention maps and their gradients, by a forward put into the class."""
    functions = package.modeling.image_encoder
    kept: list[Tensor] = []

    def forward(self: Any, x: Tensor) -> Tensor:
        batch, height, width, _ = x.shape
        qkv = self.qkv(x).reshape(batch, height * width, 3, self.num_heads, -1)
        q, k, v = qkv.permute(2, 0, 3, 1, 4).flatten(1, 2).unbind(0)
        scores = (q * self.scale) @ k.transpose(-2, -1)
        if self.use_rel_pos:
            size = (height, width)
            scores = functions.add_decomposed_rel_pos(
                scores, q, self.rel_pos_h, self.rel_pos_w, size, size
            )
        weights = scores.softmax(dim=-1)
        weights.retain_grad()
        kept.append(weights)
        mixed = (weights @ v).reshape(batch, self.num_heads, height, width, -1)
        return self.proj(mixed.permute(0, 2, 3, 1, 4).flatten(3))

    kind, before = functions.Attention, functions.Attention.forward
    kind.forward = forward
    try:
        features = sam.image_encoder(pixels(1))
        decode(sam, features, points=(torch.tensor([[[90.0, 70.0]]]), torch.ones(1, 1)))[
            "iou"
        ].sum().backward()
    finally:
        kind.forward = before
    assert len(kept) == SMALL.depth
    heads = SMALL.num_heads
    rollout = torch.eye(SMALL.grid**2)
    for index in SMALL.global_attn_indexes:
        weights, slope = kept[index], kept[index].grad
        assert slope is not None
        saliency = (weights * slope).clamp(min=0).reshape(heads, *rollout.shape).mean(0)
        rollout = rollout + saliency.detach() @ rollout
    return {"features": features, "rollout": rollout - torch.eye(len(rollout))}


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


def label_studio_box(package: Any, sam: Any) -> Numbers:
    """Label Studio's backend: a box, and the empty list of the keypoints' labels."""
    predictor = package.SamPredictor(sam)
    predictor.set_image(picture(*PIXELS))
    box = np.array([10.0, 12.0, 90.0, 70.0], dtype=np.float32)
    masks, scores, low = predictor.predict(
        point_coords=None, point_labels=np.array([]), box=box, multimask_output=False
    )
    return {**decided(masks, low), "scores": tensor(scores), "low": tensor(low)}


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


def predictor_with_its_own_constructor(package: Any, sam: Any) -> Numbers:
    """A subclass that sets the attributes itself and does not call the original's constructor."""

    class Own(package.SamPredictor):  # type: ignore[misc,name-defined]
        def __init__(self, model: Any) -> None:
            self.model = model
            self.transform = package.predictor.ResizeLongestSide(model.image_encoder.img_size)
            self.reset_image()

    predictor = Own(sam)
    predictor.set_image(picture(*PIXELS))
    masks, scores, low = predictor.predict(box=np.array([10, 12, 90, 70]))
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
        samed_training_step,
        frozen_encoder_of_a_batch,
        one_click_with_three_masks,
        micro_sam_volume,
        attention_rollout_with_gradients,
        label_studio_box,
        predictor_over_an_engine,
        predictor_with_its_own_constructor,
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
            differ = (answer[name] > 0) != (value > 0)
            assert float(differ.float().mean()) <= 2 * TOLERANCE, name
        elif name != "undecided":
            assert relative_error(answer[name].detach(), value.detach()) <= TOLERANCE, name


@pytest.mark.parametrize("name", PATTERNS)
def test_pattern(name: str) -> None:
    theirs, ours = pair()
    expected = PATTERNS[name](oracle.load(), theirs)
    compare(PATTERNS[name](samfast_package, ours), expected)


def test_a_predictor_pickled_by_the_original_is_loaded_as_samfasts() -> None:
    """Servers keep whole predictors, and training loops whole models, as pickles."""
    theirs, _ = pair()
    predictor = oracle.load().SamPredictor(theirs)
    predictor.set_image(picture(*PIXELS))
    pickled = pickle.dumps(predictor)
    saved = forget_original()
    try:
        samfast.install_as_segment_anything()
        loaded = pickle.loads(pickled)
    finally:
        forget_original()
        sys.modules.update(saved)
    assert type(loaded) is samfast.SamPredictor
    assert type(loaded.model) is type(pair()[1])
    click = np.array([[60, 40]]), np.array([1])
    loaded.set_image(picture(*PIXELS, 1))
    predictor.set_image(picture(*PIXELS, 1))
    _, expected, expected_low = predictor.predict(*click)
    _, scores, low = loaded.predict(*click)
    assert relative_error(scores, expected) <= TOLERANCE
    assert relative_error(low, expected_low) <= TOLERANCE
