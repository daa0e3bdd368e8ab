"""`SamPredictor`: embed one image, then predict masks for prompts (original: `predictor.py`)."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from samfast.device.checked_tensor import checked
from samfast.engine import SamFast
from samfast.errors import ImageError, PromptError, UsageError
from samfast.images.arrays import pixels_of_array
from samfast.masks.upscale import masks_per_chunk
from samfast.model.sam import Sam
from samfast.prompts.device_checks import DeviceChecks, non_finite
from samfast.segment_anything.recipe_runner import RecipeRunner
from samfast.segment_anything.utils.transforms import ResizeLongestSide
from samfast.segment_anything.written_methods import WrittenMethods

__all__ = ["ResizeLongestSide", "Sam", "SamPredictor"]


class SamPredictor:
    """Embeds an image once, then predicts masks for any number of prompts.

    sam_model  a SamFast, whose recipe encodes and decodes; or a Sam, for which the fastest recipe
               in float32 does, or that which was asked for; or any object with a Sam's attributes

    The modules of the model are called instead, which is logged at INFO, where the recipe's result
    could differ: where a caller has replaced, hooked, cast or compiled modules, trains, wants
    gradients or autocast, or has prompts that SamFast does not take. `describe` says what runs.

    Names, arguments and results are the original's; results are float32, whatever the model's
    dtype, and under autocast as the original's. Where the original asserts, this raises ImageError
    or PromptError (both ValueError and AssertionError), and UsageError (RuntimeError) if no image
    is set.

        predictor = SamPredictor(samfast.load("vit_b"))
        predictor.set_image(np.array(PIL.Image.open("photo.jpg").convert("RGB")))
        masks, iou, low_res = predictor.predict(np.array([[320, 240]]), np.array([1]))
    """

    model: Any
    features: Tensor | None
    original_size: tuple[int, ...]
    input_size: tuple[int, ...]

    _runner: RecipeRunner | None = None

    def __init__(self, sam_model: Any) -> None:
        # Of type Any, because projects' models differ from Sam.
        self._runner = RecipeRunner(sam_model)
        self.model = self._runner.model
        self.transform = ResizeLongestSide(self.model.image_encoder.img_size)
        self.reset_image()

    def __getstate__(self) -> dict[str, Any]:
        """The state without the recipe of a plain model, which is made again when it is needed."""
        state = vars(self).copy()
        if self._runner is not None and self._runner.given is None:
            del state["_runner"]
        return state

    @property
    def device(self) -> torch.device:
        """The model's device."""
        device: torch.device = self.model.device
        return device

    @property
    def runner(self) -> RecipeRunner:
        """The recipe of the present model, which a caller may have put in another's place.

        Made here where a subclass does not call this class's constructor.
        """
        if self._runner is None or self._runner.model is not self.model:
            self._runner = RecipeRunner(self.model)
        return self._runner

    def describe(self) -> str:
        """The model and the recipe that runs, or why none does, in lines for a person."""
        return self.runner.describe()

    def set_image(self, image: NDArray[np.uint8], image_format: str = "RGB") -> None:
        """Embed an image (H, W, 3) uint8 in [0, 255] with channels in the order "RGB" or "BGR"."""
        if image_format not in ("RGB", "BGR"):
            raise ImageError(f'image_format must be "RGB" or "BGR", not {image_format!r}')
        check_image(image)
        if image_format != self.model.image_format:
            image = image[..., ::-1]
        resized = self.transform.apply_image(np.ascontiguousarray(image))
        pixels = torch.as_tensor(resized, device=self.device)
        self.set_torch_image(pixels.permute(2, 0, 1).contiguous()[None], image.shape[:2])

    @torch.no_grad()
    def set_torch_image(
        self, transformed_image: Tensor, original_image_size: tuple[int, ...]
    ) -> None:
        """Embed an image (1, 3, h, w), resized from (H, W) as ResizeLongestSide does."""
        side = self.model.image_encoder.img_size
        shape = tuple(transformed_image.shape)
        if len(shape) != 4 or shape[1] != 3 or max(shape[2:]) != side:
            raise ImageError(
                f"transformed_image must be of shape (1, 3, h, w) with a long side of {side}, not "
                f"{shape}: resize it with transform.apply_image first, or use set_image"
            )
        self.reset_image()
        self.original_size = tuple(original_image_size)
        self.input_size = shape[2:]
        pixels = self.model.preprocess(transformed_image)
        features = self.runner.encode(pixels)
        self.features = self.model.image_encoder(pixels) if features is None else features
        self.is_image_set = True

    def predict(
        self,
        point_coords: NDArray[Any] | None = None,
        point_labels: NDArray[Any] | None = None,
        box: NDArray[Any] | None = None,
        mask_input: NDArray[Any] | None = None,
        multimask_output: bool = True,
        return_logits: bool = False,
    ) -> tuple[NDArray[Any], NDArray[np.float32], NDArray[np.float32]]:
        """Masks of one object.

        point_coords      (K, 2) XY in pixels of the image
        point_labels      (K,): 1 foreground, 0 background
        box               (4,) XYXY in pixels of the image
        mask_input        (1, 256, 256) logits, the third result of an earlier call
        multimask_output  three masks, for ambiguous prompts; else one
        return_logits     masks as float logits instead of bool
        returns           masks (M, H, W), predicted IoU (M,), low-resolution logits (M, 256, 256)

        Raises PromptError for prompts that do not fit, NumericsError for an answer with NaN or
        infinity.
        """
        self._require_image()
        device, size = self._prompt_device, self.original_size
        coords = labels = boxes = mask = None
        if point_coords is not None:
            points, kinds = _points_and_labels(point_coords, point_labels)
            moved = self.transform.apply_coords(points, size)
            coords = torch.as_tensor(moved, dtype=torch.float32, device=device)[None]
            labels = torch.as_tensor(kinds, dtype=torch.int32, device=device)[None]
        elif point_labels is not None and box is None and mask_input is None:
            raise PromptError("point_labels were given without point_coords")
        if box is not None:
            corners = _numbers("box", box)
            if corners.size != 4:
                raise PromptError(
                    f"box must be 4 numbers XYXY, not an array of shape {corners.shape}; several "
                    "boxes go through predict_torch"
                )
            moved = self.transform.apply_boxes(corners, size)
            boxes = torch.as_tensor(moved, dtype=torch.float32, device=device)
        if mask_input is not None:
            logits = np.asarray(mask_input)
            mask = torch.as_tensor(logits, dtype=torch.float32, device=device)[None]
        masks, iou, low_res = self.predict_torch(
            coords, labels, boxes, mask, multimask_output, return_logits
        )
        return _to_numpy(masks[0]), _to_numpy(iou[0]), _to_numpy(low_res[0])

    @torch.no_grad()
    def predict_torch(
        self,
        point_coords: Tensor | None,
        point_labels: Tensor | None,
        boxes: Tensor | None = None,
        mask_input: Tensor | None = None,
        multimask_output: bool = True,
        return_logits: bool = False,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Masks of P objects; prompts in input pixels, as by `transform.apply_coords_torch`.

        point_coords  (P, K, 2);  point_labels  (P, K)
        boxes         (P, 4);  mask_input  (P, 1, 256, 256)
        returns       masks (P, M, H, W), predicted IoU (P, M), logits (P, M, 256, 256)

        Raises NumericsError for an answer with NaN or infinity: at once on a CPU, on a GPU when its
        values are read on the host.
        """
        low_res, iou = self.predict_low_res(
            point_coords, point_labels, boxes, mask_input, multimask_output
        )
        check = DeviceChecks(non_finite(low_res, iou), (0,), (0, len(iou)))
        if low_res.is_cpu:
            check()
        if return_logits:
            sizes = self.input_size, self.original_size
            masks = self.model.postprocess_masks(low_res, *sizes)
        else:
            masks = self._masks(low_res.detach())
        if low_res.is_cpu:
            return masks, iou, low_res
        return checked(masks, check), checked(iou, check), checked(low_res, check)

    def predict_low_res(
        self,
        point_coords: Tensor | None,
        point_labels: Tensor | None,
        boxes: Tensor | None = None,
        mask_input: Tensor | None = None,
        multimask_output: bool = True,
    ) -> tuple[Tensor, Tensor]:
        """Logits (P, M, 256, 256) and IoU of predict_torch, with gradients if they are enabled."""
        self._require_image()
        _check_batch(point_coords, point_labels, boxes, mask_input)
        prompts = (point_coords, point_labels, boxes, mask_input)
        decoded = self.runner.decode(self.features, *prompts, multimask=multimask_output)
        if decoded is not None:
            return decoded
        point_coords, point_labels, boxes, mask_input = (
            None if each is None else each.to(self.device) for each in prompts
        )
        points = None if point_coords is None else (point_coords, point_labels)
        sparse, dense = self.model.prompt_encoder(points=points, boxes=boxes, masks=mask_input)
        low_res, iou = self.model.mask_decoder(
            image_embeddings=self.features,
            image_pe=self.model.prompt_encoder.get_dense_pe(),
            sparse_prompt_embeddings=sparse,
            dense_prompt_embeddings=dense,
            multimask_output=multimask_output,
        )
        if torch.is_autocast_enabled(low_res.device.type):
            return low_res, iou
        return low_res.to(torch.float32), iou.to(torch.float32)

    @property
    def _prompt_device(self) -> torch.device:
        """Where `predict` puts prompts: on the host for a recipe, which uploads them at once."""
        on_host = PREDICTOR_METHODS.replaced_in(self) is None and isinstance(
            self.runner.current(), SamFast
        )
        return torch.device("cpu") if on_host else self.device

    def _masks(self, low_res: Tensor) -> Tensor:
        """Logits (P, M, 256, 256) -> (P, M, H, W) bool, a few objects at a time."""
        sizes = self.input_size, self.original_size
        upscaled = self.runner.upscale(low_res, *sizes)
        if upscaled is not None:
            return upscaled
        height, width = self.original_size
        shape = (*low_res.shape[:2], height, width)
        masks = torch.empty(shape, dtype=torch.bool, device=low_res.device)
        count = masks_per_chunk((height, width), self.transform.target_length, low_res.device)
        step = max(1, count // 3)
        for start in range(0, len(low_res), step):
            rows = slice(start, start + step)
            logits = self.model.postprocess_masks(low_res[rows], *sizes)
            torch.gt(logits, self.model.mask_threshold, out=masks[rows])
        return masks

    def get_image_embedding(self) -> Tensor:
        """The embedding (1, 256, 64, 64) of the image that is set, for a 1024-pixel model."""
        self._require_image()
        if self.features is None:
            raise UsageError("the image's features have been removed; call set_image again")
        return self.features.contiguous() if isinstance(self.features, Tensor) else self.features

    def reset_image(self) -> None:
        """Forget the image."""
        self.is_image_set = False
        self.features = None
        self.orig_h: int | None = None
        self.orig_w: int | None = None
        self.input_h: int | None = None
        self.input_w: int | None = None

    def _require_image(self) -> None:
        if not self.is_image_set:
            raise UsageError("no image is set; call set_image(...) first")


PREDICTOR_METHODS = WrittenMethods(SamPredictor, beside=("__getstate__", "describe", "runner"))
"""The methods that `SamAutomaticMaskGenerator` calls, for its check whether they were replaced."""


def check_image(image: Any) -> None:
    """ImageError unless it is an (H, W, 3) uint8 array with pixels."""
    if not isinstance(image, np.ndarray):
        raise ImageError(
            f"the image must be a NumPy array (H, W, 3) of uint8, not {type(image).__name__}; "
            "a PIL image becomes one by np.array(image.convert('RGB'))"
        )
    name = f"the image of shape {image.shape}"
    pixels_of_array(image, name)
    if image.ndim != 3 or image.shape[2] != 3:
        raise ImageError(f"{name} is grey; repeat its channel three times")


def _numbers(name: str, values: Any, *, finite: bool = True) -> NDArray[np.float64]:
    try:
        array = np.asarray(values, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise PromptError(f"{name} is not an array of numbers: {error}") from error
    if finite and not np.isfinite(array).all():
        raise PromptError(f"{name} holds NaN or infinite values; leave such prompts out")
    return array


def _points_and_labels(coords: Any, labels: Any) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Points (K, 2) and labels (K,), finite; PromptError for any that cannot be used.

    A point whose label is -1 is a token that lies nowhere: its coordinates have no effect.
    """
    points = _numbers("point_coords", coords, finite=False)
    kinds = None if labels is None else _numbers("point_labels", labels)
    _check_points(points, kinds, "K")
    assert kinds is not None, "checked with the points"
    return _numbers("point_coords", np.where(kinds[:, None] == -1, 0, points)), kinds


def _to_numpy(result: Tensor) -> NDArray[Any]:
    """The result on the host; NumPy has no bfloat16."""
    result = result.float() if result.dtype == torch.bfloat16 else result
    array: NDArray[Any] = result.detach().cpu().numpy()
    return array


def _check_points(coords: Any, labels: Any, dimensions: str) -> None:
    """PromptError unless coords are of shape (dimensions, 2) and labels of (dimensions)."""
    if labels is None:
        raise PromptError("point_labels are missing: give one for each point, 1 or 0")
    expected, got = tuple(coords.shape[:-1]), tuple(labels.shape)
    if len(coords.shape) != len(dimensions.split()) + 1 or coords.shape[-1] != 2:
        shape = ", ".join([*dimensions.split(), "2"])
        raise PromptError(f"point_coords must be of shape ({shape}), XY, not {tuple(coords.shape)}")
    if got != expected:
        raise PromptError(f"point_labels must be of shape {expected}, one per point, not {got}")


def _check_batch(
    coords: Tensor | None, labels: Tensor | None, boxes: Tensor | None, masks: Tensor | None
) -> None:
    if coords is not None:
        _check_points(coords, labels, "P K")
    if boxes is not None and boxes.numel() != 4 * len(boxes):
        raise PromptError(f"boxes must be of shape (P, 4), XYXY, not {tuple(boxes.shape)}")
    given = {"point_coords": coords, "boxes": boxes, "mask_input": masks}
    counts = {name: len(value) for name, value in given.items() if value is not None}
    if masks is not None and 1 in counts.values() and len(counts) > 1:
        del counts["mask_input"]  # one mask for all objects, or all masks for one, as the original
    if len(set(counts.values())) > 1:
        listed = ", ".join(f"{name} for {count}" for name, count in counts.items())
        raise PromptError(f"prompts for different numbers of objects: {listed}")
