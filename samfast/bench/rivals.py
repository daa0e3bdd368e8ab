"""Other implementations of the same model, with the same weights, where they are installed or
checked out.

Each is run as its own users run it: its modules and its compilation, its kernels on. Their input is
in their own dtype already when the clock starts.
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
from torch import Tensor

from samfast.bench.samples import IMAGE_SIZE
from samfast.checkpoints.transformers_keys import to_transformers
from samfast.errors import MissingExtraError, UnsupportedRecipeError
from samfast.images import input_size
from samfast.model.config import CONFIGS, SamConfig

Encoder = Callable[[Tensor], Tensor]
Decode = Callable[[Tensor, list[Tensor], list[Tensor]], list[Tensor]]


@dataclass(frozen=True)
class Loaded:
    """A rival with our weights.

    encoder    uncompiled
    decode     its features (B, C, h, w), and each image's points (N, K, 2) in pixels of its input
               and labels (N, K)
               -> each image's masks (N, 3, H, W) bool, of the size `samples.IMAGE_SIZE`; None: not
               measured
    predictor  its own SamPredictor, or None
    """

    encoder: Encoder
    decode: Decode | None = None
    predictor: Any = None


@dataclass(frozen=True)
class Rival:
    """How a rival is loaded and run.

    load      (model, state dict with Meta's keys, device, dtype) -> it
    dtype     of weights, activations and the pixels it is given
    compile   the torch.compile mode of the whole encoder, or None
    checkout  the package that a checkout in --rivals-path may hold, or None
    """

    load: Callable[[str, dict[str, Tensor], torch.device, torch.dtype], Loaded]
    dtype: torch.dtype = torch.float32
    compile: str | None = None
    checkout: str | None = None


def segment_anything(
    model: str, state: dict[str, Tensor], device: torch.device, dtype: torch.dtype = torch.float32
) -> Loaded:
    """The original."""
    return _built("segment_anything", model, state, device, dtype)


def segment_anything_fast(
    model: str, state: dict[str, Tensor], device: torch.device, dtype: torch.dtype = torch.bfloat16
) -> Loaded:
    """segment-anything-fast, with its Triton attention where that takes the shapes.

    The package decides by this variable when it is imported, and by the flag when it runs; at batch
    1 with heads of 64 it falls back to PyTorch's attention by itself. Its prompts are looped: on
    these versions of PyTorch its nested tensors raise IndexError.

    Its tuner tries sixty configurations. Those of one or two warps hold more than the registers do:
    they take minutes to compile and a second a launch, and can't win, so they are left out.
    """
    os.environ["SEGMENT_ANYTHING_FAST_USE_FLASH_4"] = "1"
    loaded = _built("segment_anything_fast", model, state, device, dtype)
    flash = _package("segment_anything_fast.flash_4")
    flash.USE_CUSTOM_KERNEL = True
    tune = flash._autotune
    if not hasattr(tune, "all"):

        def some(configs: list[tuple[int, int, int, int]], function: Any) -> Any:
            return tune([each for each in configs if each[2] >= 4 and each[3] <= 3], function)

        some.all = tune  # type: ignore[attr-defined]
        flash._autotune = some
    return loaded


def transformers(
    model: str, state: dict[str, Tensor], device: torch.device, dtype: torch.dtype = torch.float32
) -> Loaded:
    """transformers' SamModel's vision encoder, with SDPA, which is its own choice."""
    package = _package("transformers")
    config = CONFIGS[model]
    vision = package.SamVisionConfig(
        hidden_size=config.embed_dim,
        output_channels=config.out_chans,
        num_hidden_layers=config.depth,
        num_attention_heads=config.num_heads,
        global_attn_indexes=list(config.global_attn_indexes),
        mlp_ratio=config.mlp_ratio,
        image_size=config.image_size,
        patch_size=config.patch_size,
        window_size=config.window_size,
    )
    with device:
        sam = package.SamModel(package.SamConfig(vision_config=vision, attn_implementation="sdpa"))
    sam.load_state_dict(
        to_transformers(state), strict=False
    )  # its two names of one tensor differ by version
    encoder = sam.vision_encoder.to(device, dtype).eval()

    def encode(pixels: Tensor) -> Tensor:
        features: Tensor = encoder(pixels).last_hidden_state
        return features

    return Loaded(encode)


RIVALS: dict[str, Rival] = {
    "rival:segment-anything": Rival(segment_anything, checkout="segment_anything"),
    "rival:segment-anything-fast": Rival(
        segment_anything_fast, torch.bfloat16, "max-autotune", "segment_anything_fast"
    ),
    "rival:transformers": Rival(transformers),
    "rival:transformers-compiled": Rival(transformers, torch.bfloat16, "max-autotune"),
}


def load(
    name: str, model: str, state: dict[str, Tensor], device: torch.device, path: str | None = None
) -> Loaded:
    """The rival of that name.

    path  a checkout of the rival, or a folder that holds checkouts; what is found there joins
          sys.path

    Raises MissingExtraError if it cannot be imported, UnsupportedRecipeError if it knows no such
    model.
    """
    rival = RIVALS[name]
    if rival.checkout is not None and path is not None:
        found = _checkout(Path(path), rival.checkout)
        if found is not None and found not in sys.path:
            sys.path.insert(0, found)
    with torch.no_grad():
        return rival.load(model, state, device, rival.dtype)


def compiled(name: str, encoder: Encoder) -> Encoder:
    """The encoder as the rival's users run it: compiled anew, if it is compiled at all.

    What was compiled before for another batch size is forgotten: PyTorch would otherwise compile
    the second one for sizes that vary, which is slower.
    """
    mode = RIVALS[name].compile
    if mode is None:
        return encoder
    torch._dynamo.reset()
    faster: Encoder = torch.compile(encoder, mode=mode)
    return faster


def _checkout(path: Path, package: str) -> str | None:
    for folder in (path, *sorted(child for child in path.glob("*") if child.is_dir())):
        if (folder / package / "__init__.py").is_file():
            return str(folder.absolute())
    return None


def _built(
    name: str, model: str, state: dict[str, Tensor], device: torch.device, dtype: torch.dtype
) -> Loaded:
    """A package that is the original or descends from it, of any of our sizes."""
    config = CONFIGS[model]
    if not _fits(config):
        raise UnsupportedRecipeError(
            f"{name} builds only the original's sizes (1024 px, patches of 16, windows of 14), not "
            f"{model}'s"
        )
    builder = _package(f"{name}.build_sam")
    with device:  # random weights are drawn, to be overwritten: for ViT-H that takes a CPU long
        sam = builder._build_sam(
            encoder_embed_dim=config.embed_dim,
            encoder_depth=config.depth,
            encoder_num_heads=config.num_heads,
            encoder_global_attn_indexes=list(config.global_attn_indexes),
        )
    sam.load_state_dict(state)
    sam.to(device).eval()
    for part in (
        sam.image_encoder,
        sam.prompt_encoder,
        sam.mask_decoder,
    ):  # as the seed does: pixels' mean stays
        part.to(dtype)
    predictor = _package(f"{name}.predictor").SamPredictor(sam)
    return Loaded(sam.image_encoder, _looped(predictor), predictor)


def _looped(predictor: Any) -> Decode:
    """A predictor's answers, image by image."""
    side = predictor.model.image_encoder.img_size

    def decode(features: Tensor, points: list[Tensor], labels: list[Tensor]) -> list[Tensor]:
        found = []
        for i, (own, kinds) in enumerate(zip(points, labels, strict=True)):
            predictor.reset_image()
            predictor.is_image_set = True
            predictor.original_size, predictor.input_size = IMAGE_SIZE, input_size(IMAGE_SIZE, side)
            predictor.features = features[i : i + 1]
            found.append(predictor.predict_torch(own, kinds, multimask_output=True)[0])
        return found

    return decode


def _fits(config: SamConfig) -> bool:
    return (
        config.image_size,
        config.patch_size,
        config.window_size,
        config.mlp_ratio,
        config.out_chans,
    ) == (1024, 16, 14, 4.0, 256)


def _package(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise MissingExtraError(
            f"{name.partition('.')[0]} cannot be imported ({error}); install it to measure it, or "
            "give "
            "its checkout by --rivals-path"
        ) from error
