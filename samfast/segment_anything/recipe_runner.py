"""The recipe that a `SamPredictor` runs, where that gives what the model's modules would."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from samfast.checkpoints.fingerprint import encoder_fingerprint
from samfast.decoding.image_masks import upscale_masks
from samfast.device.module_snapshot import ModuleSnapshot
from samfast.device.parameter_watcher import ParameterWatcher
from samfast.device.retry import FEWER_OBJECTS, RetryOnOOM
from samfast.engine import SamFast
from samfast.errors import UnsupportedRecipeError
from samfast.linear import QuantizedLinear
from samfast.masks.resize_geometry import ResizeGeometry
from samfast.model import image_encoder, layers, mask_decoder, prompt_encoder, transformer
from samfast.model.config import CONFIGS
from samfast.model.sam import Sam
from samfast.provenance import Provenance
from samfast.recipes import Recipe, apply, build_runtime, choose, get, refusal
from samfast.recipes.evidence import checkpoint_fingerprint
from samfast.recipes.precision import Float32Linear
from samfast.recipes.table import name_of
from samfast.segment_anything.modeling import ImageEncoderViT
from samfast.segment_anything.written_methods import WrittenMethods
from samfast.types import PackedPrompts

_LOG = logging.getLogger("samfast")

FASTEST_FP32 = {"cpu": ("fp32_onednn", "fp32_fused"), "cuda": ("fp32_sdpa",)}
"""The fastest named recipes in float32 for each type of device. The first that runs is taken: not
every torch has oneDNN."""

_UNKNOWN_LABEL = -2
"""A point label for which every prompt encoder adds no learned vector, as for any but 1, 0, -1."""

_CHANGED = "a module of the model was replaced or hooked"

SAM_METHODS = WrittenMethods(Sam, beside=("forward",))
_LAYERS = {
    kind: WrittenMethods(kind)
    for kind in (
        image_encoder.ImageEncoderViT,
        ImageEncoderViT,
        image_encoder.PatchEmbed,
        image_encoder.Block,
        image_encoder.Attention,
        layers.MLPBlock,
        layers.MLP,
        layers.LayerNorm2d,
        prompt_encoder.PromptEncoder,
        prompt_encoder.PositionEmbeddingRandom,
        mask_decoder.MaskDecoder,
        transformer.TwoWayTransformer,
        transformer.TwoWayAttentionBlock,
        transformer.Attention,
        nn.Conv2d,
        nn.ConvTranspose2d,
        nn.Embedding,
        nn.GELU,
        nn.LayerNorm,
        nn.Linear,
        nn.ModuleList,
        nn.ReLU,
        nn.Sequential,
    )
}
"""Every class of a SAM's modules, with its methods as they are written."""


@dataclass(frozen=True)
class AskedRecipe:
    """The recipe that a caller wants for a model of a registry.

    recipe   a name in `samfast.recipes.RECIPES`, a Recipe, or "auto"; once it is applied, a Recipe
    reason   for it, once it is applied
    """

    recipe: str | Recipe
    reason: str = "asked for"
    applied: bool = False


def ask_for(sam: Sam, recipe: str | Recipe) -> None:
    """Have `SamPredictor` apply the recipe to the model when it first runs it.

    Not before, because the model is built on the CPU and may then be moved to a GPU.
    """
    if isinstance(recipe, str) and recipe != "auto":
        recipe = get(recipe)
    sam.__dict__["asked_recipe"] = AskedRecipe(recipe)


def fastest_fp32(device: torch.device) -> str:
    """The name of the fastest recipe in float32 on a device whose type is in FASTEST_FP32."""
    names = FASTEST_FP32[device.type]
    return next((each for each in names if refusal(get(each), device) is None), names[-1])


class RecipeRunner:
    """Encodes images and decodes prompts for a `SamPredictor` as a recipe does.

    model  a SamFast, whose recipe runs; or another model. A plain Sam runs by the recipe that was
           asked for, or else by the fastest one in float32

    No recipe runs, and the caller is to call the model's modules, where the result could differ:
    the reason is logged once. A plain Sam is not copied: the recipe reads its present weights.
    Raises UnsupportedRecipeError for a recipe that was asked for and that the device cannot run.
    """

    def __init__(self, model: Any) -> None:
        self.given = model if isinstance(model, SamFast) else None
        self.model = model.model if isinstance(model, SamFast) else model
        self._fast = self.given
        self._decoded_by: SamFast | None = None
        self._watch: ParameterWatcher | None = None
        self._addresses: tuple[int, ...] = ()
        self._logged: set[str] = set()

    def current(self) -> SamFast | str:
        """The SamFast that runs, or the reason why the model's modules must be called."""
        if self.given is not None:
            return self.given if _unchanged(self.model, self.given.modules) else _CHANGED
        obstacle = self._mode()
        if obstacle is not None:
            return obstacle
        fast = self._fast
        if fast is None or self._watch is None or not _unchanged(self.model, fast.modules):
            return self._built()
        return fast if self._watch.addresses() == self._addresses else self._built()

    def encode(self, pixels: Tensor) -> Tensor | None:
        """Normalised pixels (B, 3, S, S) -> features, or None where the modules must be called."""
        fast = self.current()
        if isinstance(fast, SamFast) and not torch.is_grad_enabled():
            return fast.encode(pixels)
        self._log(fast if isinstance(fast, str) else "gradients are enabled")
        return None

    def decode(
        self,
        features: Any,
        coords: Tensor | None,
        labels: Tensor | None,
        boxes: Tensor | None,
        masks: Tensor | None,
        *,
        multimask: bool,
    ) -> tuple[Tensor, Tensor] | None:
        """Logits (P, M, 256, 256) and predicted IoU (P, M), both float32.

        None where the modules must be called. Arguments are those of `SamPredictor.predict_torch`,
        and the features of the image.
        """
        self._decoded_by = None
        fast = self.current()
        reason = fast if isinstance(fast, str) else _obstacle(fast, features, coords, boxes, masks)
        if isinstance(fast, str) or reason is not None:
            self._log(str(reason))
            return None
        count = next(len(each) for each in (coords, boxes, masks) if each is not None)
        if coords is not None and labels is not None:
            known = (labels == 1) | (labels == 0) | (labels == -1)
            labels = torch.where(known, labels, _UNKNOWN_LABEL).to(torch.int32)
            # Where a not-a-point token lies has no effect, also if it is at infinity.
            coords = coords.to(torch.float32).masked_fill((labels == -1)[..., None], 0)
        packed = PackedPrompts(
            coords,
            labels,
            None if boxes is None else boxes.reshape(-1, 4).to(torch.float32),
            None if masks is None else masks.to(torch.float32).expand(count, -1, -1, -1),
            offsets=(0, count),
        )
        retry = RetryOnOOM(FEWER_OBJECTS)
        output = fast.decode(features, [packed], multimask=multimask, retry=retry)
        self._decoded_by = fast
        return output.low_res, output.iou

    def upscale(
        self, low_res: Tensor, input_size: tuple[int, ...], original_size: tuple[int, ...]
    ) -> Tensor | None:
        """Logits (P, M, 256, 256) -> masks (P, M, H, W) bool, as SamFast upscales.

        None where the model's `postprocess_masks` must be called: for logits that no recipe has
        decoded, and where it was replaced.
        """
        fast = self._decoded_by
        if fast is None or SAM_METHODS.replaced_in(self.model) is not None:
            return None
        (h, w), (height, width) = input_size, original_size
        geometry = ResizeGeometry((h, w), (height, width), fast.image_size)
        threshold, retry = fast.model.mask_threshold, RetryOnOOM(FEWER_OBJECTS)
        return upscale_masks(low_res, (0, len(low_res)), [geometry], threshold, retry)[0]

    def describe(self) -> str:
        """The model and the recipe that runs, or why none does, in lines for a person."""
        fast = self.current()
        if isinstance(fast, SamFast):
            return fast.describe()
        return f"recipe    none: the modules of the model are called, because {fast}"

    def _log(self, reason: str) -> None:
        if reason not in self._logged:
            _LOG.info("SamPredictor calls the modules of the model, no recipe: %s", reason)
        self._logged.add(reason)

    def _mode(self) -> str | None:
        """What the caller does just now for which the model's modules must be called."""
        model = self.model
        replaced = SAM_METHODS.replaced_in(model)
        if replaced is not None:
            return replaced
        if any(module.training for module in (model, *_parts(model))):
            return "the model is in training mode"
        device = model.device.type
        if torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device):
            return "autocast is enabled"
        return None

    def _built(self) -> SamFast | str:
        """A SamFast of the model as it is now, or the reason why there is none."""
        self._fast = None
        sam: Sam = self.model
        asked: AskedRecipe | None = vars(sam).get("asked_recipe")
        if not _unchanged(sam, ModuleSnapshot(*_parts(sam))):
            return _CHANGED
        obstacle = _weights_obstacle(sam, asked)
        if obstacle is not None:
            return obstacle
        if asked is not None:
            fast = _as_asked(sam, asked)
        else:
            try:
                fast = _in_float32(sam)
            except UnsupportedRecipeError as error:  # of modules in sizes that are no SAM's
                return str(error)
        _LOG.info("SamPredictor runs the recipe %s: %s", fast.recipe_name, fast.reason)
        self._watch = ParameterWatcher(sam)
        self._addresses = self._watch.addresses()
        self._fast = fast
        return fast


def _parts(sam: Sam) -> tuple[nn.Module, ...]:
    return sam.image_encoder, sam.prompt_encoder, sam.mask_decoder


def _unchanged(sam: Sam, modules: ModuleSnapshot) -> bool:
    """Whether no module of the model, and no method of its classes, was replaced or hooked."""
    return all(each.unchanged for each in _LAYERS.values()) and modules.matches(*_parts(sam))


def _weights_obstacle(sam: Sam, asked: AskedRecipe | None) -> str | None:
    """What of the model's modules and weights is not a plain SAM's, or not as the recipe left it.

    A model to which a recipe was applied has its dtype, and layers in its formats.
    """
    recipe = asked.recipe if asked is not None and asked.applied else Recipe()
    dtype = recipe.dtype if isinstance(recipe, Recipe) else torch.float32
    precise: set[nn.Parameter] = set()
    for module in sam.modules():
        by_recipe = asked is not None and isinstance(module, QuantizedLinear | Float32Linear)
        if type(module) not in _LAYERS and not by_recipe and module is not sam:
            return f"{type(module).__qualname__} is no layer of a plain SAM"
        if isinstance(module, Float32Linear):
            precise.update(module.parameters())
    for name, parameter in sam.named_parameters():
        wanted = torch.float32 if parameter in precise else dtype
        if type(parameter) is not nn.Parameter or parameter.dtype != wanted:
            return f"{name} is {type(parameter).__name__} in {parameter.dtype}, not {wanted}"
        if parameter.device != sam.device:
            return f"{name} is on {parameter.device}, the model on {sam.device}"
    if asked is None and sam.device.type not in FASTEST_FP32:
        return f"none in float32 is for {sam.device.type}"
    return None


def _in_float32(sam: Sam) -> SamFast:
    """The fastest recipe in float32. The attention of the blocks stays that of the registry, which
    is the fastest for the device, also in training.
    """
    device = sam.device
    name = fastest_fp32(device)
    runtime = build_runtime(sam, get(name), device, name=_name(sam))
    reason = f"the fastest in float32 for {device.type}"
    return SamFast(sam, runtime, Provenance(_name(sam), name, reason))


@torch.inference_mode(False)
def _as_asked(sam: Sam, asked: AskedRecipe) -> SamFast:
    """The recipe that was asked for, applied to the model in place unless it was before."""
    device, recipe, reason = sam.device, asked.recipe, asked.reason
    if recipe == "auto":
        fingerprint = checkpoint_fingerprint(sam, encoder_fingerprint(sam))
        choice = choose(device, fingerprint=fingerprint, model=_name(sam), batch_size=1)
        recipe, reason = get(choice.name), f"auto: {choice.reason}"
    assert isinstance(recipe, Recipe), "names were looked up when it was asked for"
    run = build_runtime if asked.applied else apply
    runtime = run(sam, recipe, device, name=_name(sam))
    sam.__dict__["asked_recipe"] = AskedRecipe(recipe, reason, applied=True)
    return SamFast(sam, runtime, Provenance(_name(sam), name_of(recipe), reason))


def _name(sam: Sam) -> str:
    """The model's name by the width and depth of its encoder."""
    encoder = sam.image_encoder
    size = encoder.patch_embed.proj.out_channels, len(encoder.blocks)
    names = (name for name, c in CONFIGS.items() if (c.embed_dim, c.depth) == size)
    return next(names, "a SAM")


def _obstacle(
    fast: SamFast,
    features: Any,
    coords: Tensor | None,
    boxes: Tensor | None,
    masks: Tensor | None,
) -> str | None:
    """The reason why the modules must decode these prompts, if there is one."""
    if torch.is_grad_enabled():
        return "gradients are enabled"
    if not isinstance(features, Tensor) or features.dim() != 4 or len(features) != 1:
        return "the features are not those of one image"
    if coords is not None and coords.shape[1] == 0:
        return "objects without points are prompted by points"
    given = [each for each in (coords, boxes, masks) if each is not None]
    if not given:
        return "there are no prompts"
    if masks is not None and len(masks) not in (1, len(given[0])):
        return "one prompt has several masks"
    size = fast.model.prompt_encoder.mask_input_size
    if masks is not None and masks.shape[1:] != (1, *size):
        return "the mask prompts are not of the model's size"
    return None
