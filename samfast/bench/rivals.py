"""Other implementations of SAM with the same weights, where they are installed or checked out.

Each runs as its users run it: its own modules, compilation and kernels. The pixels are in its own
dtype before the clock starts.
"""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from samfast.bench.samples import IMAGE_SIZE
from samfast.checkpoints.transformers_keys import to_transformers
from samfast.errors import MissingExtraError, UnsupportedRecipeError
from samfast.images import input_size
from samfast.model.config import CONFIGS

Encoder = Callable[[Tensor], Tensor]
Decode = Callable[[Tensor, list[Tensor], list[Tensor]], list[Tensor]]
State = dict[str, Tensor]


@dataclass(frozen=True)
class Loaded:
    """A rival with samfast's weights.

    encoder    not compiled
    decode     features (B, C, h, w), and each image's points (N, K, 2) in input pixels and labels
               (N, K), to each image's masks (N, 3, H, W) bool of `samples.IMAGE_SIZE`; None: not
               measured
    predictor  its own SamPredictor, or None
    """

    encoder: Encoder
    decode: Decode | None = None
    predictor: Any = None


@dataclass(frozen=True)
class Rival:
    """How a rival is loaded and run.

    load      (model, state dict with Meta's keys, device, dtype) -> Loaded
    dtype     of weights, activations and pixels
    compile   the torch.compile mode of the whole encoder, or None
    checkout  the package that a checkout may hold, or None
    """

    load: Callable[[str, State, torch.device, torch.dtype], Loaded]
    dtype: torch.dtype = torch.float32
    compile: str | None = None
    checkout: str | None = None


def segment_anything(
    model: str, state: State, device: torch.device, dtype: torch.dtype = torch.float32
) -> Loaded:
    """The original."""
    return _built("segment_anything", model, state, device, dtype)


def segment_anything_fast(
    model: str, state: State, device: torch.device, dtype: torch.dtype = torch.bfloat16
) -> Loaded:
    """segment-anything-fast, with its Triton attention where that supports the shapes.

    The package reads the variable when it is imported, and the flag when it runs; at batch 1 with
    heads of 64 it falls back to PyTorch's attention. Prompts are looped: on these versions of
    PyTorch its nested tensors raise IndexError. Of the sixty configurations of its tuner those of
    one or two warps exceed the registers, take minutes to compile and cannot win, so they are left
    out.
    """
    os.environ["SEGMENT_ANYTHING_FAST_USE_FLASH_4"] = "1"
    loaded = _built("segment_anything_fast", model, state, device, dtype)
    flash = _package("segment_anything_fast.flash_4")
    flash.USE_CUSTOM_KERNEL = True
    tune = getattr(flash._autotune, "original", flash._autotune)

    def tune_some(configs: list[tuple[int, int, int, int]], function: Any) -> Any:
        return tune([each for each in configs if each[2] >= 4 and each[3] <= 3], function)

    tune_some.original = tune  # type: ignore[attr-defined]
    flash._autotune = tune_some
    return loaded


def transformers(
    model: str, state: State, device: torch.device, dtype: torch.dtype = torch.float32
) -> Loaded:
    """transformers' SamModel, its vision encoder with SDPA, its default; masks image by image, as
    its processor's `post_process_masks` makes them.
    """
    package, config = _package("transformers"), CONFIGS[model]
    side = config.image_size
    vision = package.SamVisionConfig(
        hidden_size=config.embed_dim,
        output_channels=config.out_chans,
        num_hidden_layers=config.depth,
        num_attention_heads=config.num_heads,
        global_attn_indexes=list(config.global_attn_indexes),
        mlp_ratio=config.mlp_ratio,
        image_size=side,
        patch_size=config.patch_size,
        window_size=config.window_size,
    )
    prompts = package.SamPromptEncoderConfig(image_size=side, patch_size=config.patch_size)
    both = {"vision_config": vision, "prompt_encoder_config": prompts}
    with device:
        sam = package.SamModel(package.SamConfig(**both, attn_implementation="sdpa"))
    # Not strict: its two names of one tensor differ by version.
    sam.load_state_dict(to_transformers(state), strict=False)
    sam.to(device, dtype).eval()

    def encode(pixels: Tensor) -> Tensor:
        features: Tensor = sam.vision_encoder(pixels).last_hidden_state
        return features

    def decode(features: Tensor, points: list[Tensor], labels: list[Tensor]) -> list[Tensor]:
        height, width = input_size(IMAGE_SIZE, side)
        masks = []
        for i, (xy, label) in enumerate(zip(points, labels, strict=True)):
            low_res = sam(
                image_embeddings=features[i : i + 1],
                input_points=xy[None],
                input_labels=label[None],
                multimask_output=True,
            ).pred_masks[0]
            large = F.interpolate(low_res, (side, side), mode="bilinear", align_corners=False)
            inside = large[..., :height, :width]
            masks.append(F.interpolate(inside, IMAGE_SIZE, mode="bilinear") > 0)
        return masks

    return Loaded(encode, decode)


RIVALS: dict[str, Rival] = {
    "rival:segment-anything": Rival(segment_anything, checkout="segment_anything"),
    "rival:segment-anything-fast": Rival(
        segment_anything_fast, torch.bfloat16, "max-autotune", "segment_anything_fast"
    ),
    "rival:transformers": Rival(transformers),
    "rival:transformers-compiled": Rival(transformers, torch.bfloat16, "max-autotune"),
}


def load(
    name: str, model: str, state: State, device: torch.device, path: str | None = None
) -> Loaded:
    """The rival of that name.

    path  a checkout of the rival, or a folder that holds checkouts; it is added to sys.path

    Raises MissingExtraError if it cannot be imported, UnsupportedRecipeError for a model that it
    does not have.
    """
    rival = RIVALS[name]
    if rival.checkout is not None and path is not None:
        folders = (Path(path), *sorted(child for child in Path(path).glob("*") if child.is_dir()))
        for folder in folders:
            if (folder / rival.checkout / "__init__.py").is_file():
                sys.path.insert(0, str(folder.absolute()))
                break
    with torch.no_grad():
        return rival.load(model, state, device, rival.dtype)


def _built(name: str, model: str, state: State, device: torch.device, dtype: torch.dtype) -> Loaded:
    """The original, or a package that descends from it, at the sizes of a samfast model."""
    config = CONFIGS[model]
    fixed = (config.image_size, config.patch_size, config.window_size, config.mlp_ratio)
    if (*fixed, config.out_chans) != (1024, 16, 14, 4.0, 256):
        raise UnsupportedRecipeError(
            f"{name} builds only the original's sizes (1024 px, patches of 16, windows of 14), not "
            f"{model}'s"
        )
    builder = _package(f"{name}.build_sam")
    with device:  # a CPU takes long to draw ViT-H's random weights, which are overwritten
        sam = builder._build_sam(
            encoder_embed_dim=config.embed_dim,
            encoder_depth=config.depth,
            encoder_num_heads=config.num_heads,
            encoder_global_attn_indexes=list(config.global_attn_indexes),
        )
    sam.load_state_dict(state)
    sam.to(device).eval()
    for part in (sam.image_encoder, sam.prompt_encoder, sam.mask_decoder):
        part.to(dtype)  # the pixels' mean and spread stay float32, as in segment-anything-fast
    predictor = _package(f"{name}.predictor").SamPredictor(sam)
    return Loaded(sam.image_encoder, _looped(predictor), predictor)


def _looped(predictor: Any) -> Decode:
    """A predictor's answers, image by image."""
    side = predictor.model.image_encoder.img_size

    def decode(features: Tensor, points: list[Tensor], labels: list[Tensor]) -> list[Tensor]:
        masks = []
        for i, (xy, label) in enumerate(zip(points, labels, strict=True)):
            predictor.reset_image()
            predictor.is_image_set = True
            predictor.original_size, predictor.input_size = IMAGE_SIZE, input_size(IMAGE_SIZE, side)
            predictor.features = features[i : i + 1]
            masks.append(predictor.predict_torch(xy, label, multimask_output=True)[0])
        return masks

    return decode


def _package(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise MissingExtraError(
            f"{name.partition('.')[0]} cannot be imported ({error}); install it to measure it, or "
            "give its checkout by --rivals-path"
        ) from error
