"""The types that stages pass to each other: frozen dataclasses with shapes and units.

B images, P objects (prompts) of all images together, N objects of one image, K points of an object,
M masks of an object, S the model's input side in pixels (1024 for every public checkpoint).
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import TYPE_CHECKING, Any, SupportsIndex

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from samfast.errors import EmbeddingsError, NumericsError, shown

if TYPE_CHECKING:
    import supervision

    from samfast.mask_views import Axes, ImageLike, Polygon

Size = tuple[int, int]
"""(height, width) in pixels."""

PADDING_LABEL = -10
"""Label of a point that only fills a ragged batch. It is masked out of every decoder attention;
unlike the original's -1 ("not a point", which is a learned token) it never changes an answer."""

PIXEL_MEAN = (123.675, 116.28, 103.53)
PIXEL_STD = (58.395, 57.12, 57.375)
"""Mean and spread of RGB in [0, 255], as every public SAM was trained with (original:
`build_sam.py`)."""

PointsLike = NDArray[Any] | Tensor | Sequence[Any]


@dataclass(frozen=True, eq=False, repr=False)
class BriefRepr:
    """A dataclass whose repr is one line: tensors and arrays are shown by dtype and shape."""

    def __repr__(self) -> str:
        values = [(each.name, getattr(self, each.name)) for each in fields(self) if each.repr]
        shown = ", ".join(f"{name}={_brief(value)}" for name, value in values if value is not None)
        return f"{type(self).__name__}({shown})"


def _brief(value: object) -> str:
    if isinstance(value, np.ndarray | Tensor):
        host = isinstance(value, np.ndarray) or value.device.type == "cpu"
        where = "" if host else f" on {value.device}"
        return f"{str(value.dtype).removeprefix('torch.')} {tuple(value.shape)}{where}"
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(_brief, value))}]" if len(value) <= 4 else f"[{len(value)} values]"
    text = repr(value)
    return text if len(text) <= 40 else f"{text[:16]}...{text[-1]}"


def _equal(a: Tensor, b: Tensor) -> bool:
    return a.shape == b.shape and a.dtype == b.dtype and torch.equal(a, b)


@dataclass(frozen=True, repr=False)
class ImageBatch(BriefRepr):
    """Images ready for the encoder.

    pixels          (B, 3, S, S) float32, normalised, long side S, padded with zeros at right and
                    bottom
    original_sizes  (H, W) of each image as the user gave it
    input_sizes     (h, w) of each image inside its square, before padding
    """

    pixels: Tensor
    original_sizes: tuple[Size, ...]
    input_sizes: tuple[Size, ...]

    def __len__(self) -> int:
        return len(self.original_sizes)


@dataclass(frozen=True, repr=False)
class RawImageBatch(BriefRepr):
    """Images for a device that resizes and normalises them.

    pixels          (N,) uint8, RGB of each image row by row, one image after another
    offsets         (B + 1) where each image begins, and the end
    sizes           of each image in `pixels`: its original size, or its input size if it was
                    resized already
    side            S of the model's input
    original_sizes  (H, W) of each image as the user gave it
    input_sizes     (h, w) of each image inside its square
    """

    pixels: Tensor
    offsets: tuple[int, ...]
    sizes: tuple[Size, ...]
    side: int
    original_sizes: tuple[Size, ...]
    input_sizes: tuple[Size, ...]

    def __len__(self) -> int:
        return len(self.original_sizes)


@dataclass(frozen=True, eq=False, repr=False)
class Embeddings(BriefRepr):
    """Image embeddings; they stay valid whatever is embedded or predicted later.

    features        (B, 256, S/16, S/16) on the model's device, in the recipe's dtype
    original_sizes  (H, W) of each image as the user gave it
    input_sizes     (h, w) of each image inside the model's square input
    fingerprint     names the encoder's weights and the preprocessing; predict refuses another one's

    Equal if their contents are, and so not hashable.
    """

    features: Tensor
    original_sizes: tuple[Size, ...]
    input_sizes: tuple[Size, ...]
    fingerprint: str

    def __len__(self) -> int:
        return len(self.original_sizes)

    def __eq__(self, other: object) -> bool:
        """Whether all values are equal, on whatever devices; synchronises."""
        if not isinstance(other, Embeddings):
            return NotImplemented
        if (self.fingerprint, self.original_sizes, self.input_sizes) != (
            (other.fingerprint, other.original_sizes, other.input_sizes)
        ):
            return False
        return _equal(self.cpu().features, other.cpu().features)

    def __getitem__(self, index: SupportsIndex | slice) -> Embeddings:
        """One image, or a slice of them, still as Embeddings."""
        if not isinstance(index, slice):
            try:
                index = operator.index(index)  # NumPy's integers too
            except TypeError:
                raise EmbeddingsError(
                    f"embeddings[{shown(index)}]: give a number or a slice"
                ) from None
            if not -len(self) <= index < len(self):
                raise IndexError(f"image {index} of {len(self)} embeddings")
            index = slice(index, index + 1 if index != -1 else None)
        return replace(
            self,
            features=self.features[index],
            original_sizes=self.original_sizes[index],
            input_sizes=self.input_sizes[index],
        )

    def to(self, device: torch.device | str) -> Embeddings:
        """The same embeddings on another device; EmbeddingsError for what is none, or none that
        this PyTorch has.

        On the host, raises as `verify`.
        """
        try:
            # Without elements, so that no other error is taken for one about the device. PyTorch
            # has several kinds of these: of a wrong name, of no driver, of none in its build.
            target = torch.empty(0, device=torch.device(device)).device
        except (AssertionError, TypeError, RuntimeError, ValueError) as error:
            raise EmbeddingsError(
                f"embeddings.to({shown(device)}): {str(error).partition(chr(10))[0]}; give a device"
            ) from error
        moved = replace(self, features=self.features.to(target))
        if moved.features.is_cpu and not self.features.is_cpu:
            moved.verify()
        return moved

    def cpu(self) -> Embeddings:
        """The same embeddings on the host; synchronises. Raises as `verify`."""
        return self.to("cpu")

    def verify(self) -> None:
        """Raise NumericsError, naming the image, if features are NaN or infinite; synchronises."""
        # A sum keeps NaN and infinity, and reads the features once.
        sums = self.features.sum(dim=tuple(range(1, self.features.ndim)), dtype=torch.float64)
        wrong = (~torch.isfinite(sums)).nonzero().flatten().tolist()
        if wrong:
            more = f" (and {len(wrong) - 1} images more)" if len(wrong) > 1 else ""
            raise NumericsError(
                f"image {wrong[0]}{more}: its embedding holds NaN or infinity; the weights are "
                "damaged, or their dtype is too narrow: take a recipe in bf16 or fp32"
            )


@dataclass(frozen=True, eq=False, repr=False)
class Prompts(BriefRepr):
    """The prompts of one image: N objects, each by points, a box, a mask, or any mix of them.

    points  (N, K, 2) or a list of N arrays (K_i, 2): XY in pixels of the original image
    labels  (N, K) or a list of N arrays (K_i,): 1 foreground, 0 background, -1 the original's
            "not a point" token (it is part of the prompt and changes the answer; ragged lists need
            none)
    boxes   (N, 4) XYXY in pixels of the original image
    masks   (N, 1, 256, 256) logits, as `low_res` of an earlier answer

    Values are checked against the image's size in `SamFast.predict`.

    >>> prompts = Prompts(points=[[[320, 240]], [[10, 20], [30, 40]]], labels=[[1], [1, 0]])
    """

    points: PointsLike | None = None
    labels: PointsLike | None = None
    boxes: PointsLike | None = None
    masks: PointsLike | None = None


@dataclass(frozen=True, eq=False, repr=False)
class PackedPrompts(BriefRepr):
    """The prompts of P objects of B images, flat, in pixels of the model's input.

    coords   (P, K, 2) XY, or None if no object has points
    labels   (P, K) int: 1, 0, -1, or PADDING_LABEL where an object has fewer than K points
    boxes    (P, 4) XYXY, or None
    masks    (P, 1, 256, 256) logits, or None
    offsets  B + 1 numbers, ascending: the objects of the i-th image are offsets[i]:offsets[i + 1];
             or the same as an int64 tensor, whose values are not read where it is on a GPU
    images   for each of the B images, its index among the embeddings; None: the i-th is number i
    """

    coords: Tensor | None
    labels: Tensor | None
    boxes: Tensor | None
    masks: Tensor | None
    offsets: Sequence[int] | Tensor
    images: Sequence[int] | None = None

    def __len__(self) -> int:
        """P, the number of objects."""
        if isinstance(self.offsets, Tensor):
            return next(len(x) for x in (self.coords, self.boxes, self.masks) if x is not None)
        return self.offsets[-1]

    @property
    def device(self) -> torch.device:
        """Where the points, boxes and offsets are: a GPU if any of them is on it, else the host."""
        for values in (self.coords, self.labels, self.boxes, self.offsets):
            if isinstance(values, Tensor) and values.device.type != "cpu":
                return values.device
        return torch.device("cpu")


@dataclass(frozen=True)
class FilterCounts:
    """How many masks of an image each step of automatic mask generation left, step after step.

    points           clicked, on the image and on its crops
    candidates       masks of these points, three each
    predicted_iou    with a predicted IoU above pred_iou_thresh
    stability        of these, with a stability score of at least stability_score_thresh
    crop_edges       of these, not cut off by the edge of a crop
    duplicates       of these, left when duplicates within each crop were removed
    crop_duplicates  of these, left when duplicates between crops were removed
    small_regions    of these, left when small holes and islands, and resulting duplicates, were
                     removed: the records

    A step that the options turn off leaves all.
    """

    points: int
    candidates: int
    predicted_iou: int
    stability: int
    crop_edges: int
    duplicates: int = 0
    crop_duplicates: int = 0
    small_regions: int = 0

    def __add__(self, other: FilterCounts) -> FilterCounts:
        """The counts of both together, such as those of two images."""
        return FilterCounts(
            *(getattr(self, each.name) + getattr(other, each.name) for each in fields(self))
        )


class MaskRecords(list[dict[str, Any]]):
    """The masks of one image as records with the original generator's keys; a list.

    size    (H, W) of the image
    counts  how many masks each step left

    >>> (records,) = sam.segment(["photo.jpg"])
    >>> records.counts.predicted_iou, len(records)
    """

    def __init__(self, records: Iterable[dict[str, Any]], size: Size, counts: FilterCounts) -> None:
        super().__init__(records)
        self.size, self.counts = size, counts

    def __repr__(self) -> str:
        return f"MaskRecords({len(self)} masks, size={self.size}, counts={self.counts})"

    def plot(self, image: ImageLike, axes: Axes | None = None) -> Axes:
        """Draw the masks over the image, as `Masks.plot` does; number i is that of record i."""
        from samfast import mask_views

        return mask_views.plot(self, image, axes=axes)

    def _repr_png_(self) -> bytes | None:
        """For notebooks."""
        from samfast import mask_views

        return mask_views.thumbnail(self)


Progress = Callable[[int, int | None], None]
"""Called with the steps done and their total, or None where that is unknown."""


PromptBatch = PackedPrompts
"""The name under which `samfast` exports PackedPrompts, for `SamFast.predict_batch`."""


Check = Callable[[], None]
"""Deferred check: flags were set on the device; calling this copies them to the host and raises an
exception of `samfast.errors` that names the image and the object."""


@dataclass(frozen=True, eq=False, repr=False)
class Masks(BriefRepr):
    """The answer for one image.

    masks    (N, M, H, W) bool, at the original size
    iou      (N, M) float32, the model's own estimate of each mask's quality
    low_res  (N, M, 256, 256) logits, usable as the next mask prompt
    check    `verify` calls it; None: nothing is left to check

    An answer on a GPU may turn out to hold NaN or infinity. Its tensors then raise NumericsError,
    naming the image and the object, when a value is read on the host, also after operations on the
    device (`samfast.device.checked_tensor`). On a CPU `predict` raises it.

    Equal if their contents are, and so not hashable.
    """

    masks: Tensor
    iou: Tensor
    low_res: Tensor
    check: Check | None = field(default=None, repr=False, compare=False)

    def __len__(self) -> int:
        return self.masks.shape[0]

    def cpu(self) -> Masks:
        """The same answer on the host; synchronises. Raises as `verify`."""
        self.verify()
        return Masks(self.masks.cpu(), self.iou.cpu(), self.low_res.cpu())

    def verify(self) -> None:
        """Raise NumericsError, naming the image and the object, if the answer holds NaN or
        infinity; synchronises. Whatever writes or converts an answer calls this first.
        """
        if self.check is not None:
            self.check()

    def __eq__(self, other: object) -> bool:
        """Whether all values are equal, on whatever devices; synchronises. Raises as `cpu`."""
        if not isinstance(other, Masks):
            return NotImplemented
        mine, theirs = self.cpu(), other.cpu()
        return all(
            _equal(getattr(mine, name), getattr(theirs, name))
            for name in ("masks", "iou", "low_res")
        )

    def best(self) -> Tensor:
        """(N, H, W) bool: each object's mask of highest predicted IoU."""
        index = self.iou.argmax(dim=1)
        return self.masks[torch.arange(len(self), device=index.device), index]

    def polygons(self) -> list[list[Polygon]]:
        """The polygons of each object's best mask, with holes, XY in pixels along pixel edges.

        Synchronises, as the methods below, and raises as `cpu`.

        >>> results[0].polygons()[0][0].exterior  # (K, 2) of the first object's first polygon
        """
        from samfast import mask_views

        return mask_views.polygons(self)

    def cutout(self, image: ImageLike) -> list[NDArray[np.uint8]]:
        """What each object's best mask shows of the image: N arrays (h, w, 4) uint8 RGBA.

        image  that was segmented, in any form that `SamFast.embed` takes

        Each is cropped to the mask's box and transparent outside the mask; of an empty mask it is
        (0, 0, 4). Raises InputError for an image of another size.

        >>> PIL.Image.fromarray(results[0].cutout("photo.jpg")[0]).save("part.png")
        """
        from samfast import mask_views

        return mask_views.cutouts(self, image)

    def to_supervision(self) -> supervision.Detections:
        """Each object's best mask as `supervision.Detections`.

        `confidence` is the predicted IoU, `xyxy` ends behind the mask's last pixels; there is no
        `class_id`. Raises MissingExtraError without supervision.

        >>> annotator = supervision.MaskAnnotator(color_lookup=supervision.ColorLookup.INDEX)
        >>> annotator.annotate(pixels.copy(), results[0].to_supervision())
        """
        from samfast import mask_views

        detections: supervision.Detections = mask_views.detections(self)
        return detections

    def plot(
        self, image: ImageLike, prompts: Prompts | None = None, axes: Axes | None = None
    ) -> Axes:
        """Draw each object's best mask over the image in matplotlib's axes, which are returned.

        image    that was segmented, in any form that `SamFast.embed` takes
        prompts  drawn too
        axes     to draw in; None: new ones

        Raises InputError for an image of another size, MissingExtraError without matplotlib.

        >>> results[0].plot("photo.jpg").figure.savefig("masks.png")
        """
        from samfast import mask_views

        return mask_views.plot(self, image, prompts, axes)

    def _repr_png_(self) -> bytes | None:
        """For notebooks."""
        from samfast import mask_views

        return mask_views.thumbnail(self)


@dataclass(frozen=True, eq=False, repr=False)
class RleMasks(BriefRepr):
    """The answer for one image with its N * M masks as COCO's text, object by object.

    size     (H, W) of the masks
    counts   of COCO RLE, for each mask
    areas    pixels of each mask
    boxes    (x, y, width, height) around each mask in whole pixels; zeros for an empty one
    ious     the model's own estimate of each mask's quality
    low_res  (N, M, 256, 256) logits on the model's device, usable as the next mask prompt; the rest
             is on the host
    """

    size: Size
    counts: list[str]
    areas: list[int]
    boxes: list[tuple[int, int, int, int]]
    ious: list[float]
    low_res: Tensor

    def rle(self, index: int) -> dict[str, Any]:
        """A mask as COCO RLE, ready for JSON and for `samfast.coco_rle.decode`."""
        return {"size": list(self.size), "counts": self.counts[index]}


@dataclass(frozen=True, eq=False, repr=False)
class RleAnswers(BriefRepr):
    """The answer for P objects of any images with their P * M masks as COCO's text, object by
    object: the columns of RleMasks, of all images together.

    counts   of COCO RLE, for each mask
    areas    (P * M,) int32, pixels of each mask
    boxes    (P * M, 4) int32, x, y, width, height around each mask in whole pixels; zeros for an
             empty one
    ious     (P * M,) float32, the model's own estimate of each mask's quality
    low_res  (P, M, 256, 256) logits on the model's device, usable as the next mask prompts; the
             rest is on the host
    """

    counts: list[str]
    areas: NDArray[np.int32]
    boxes: NDArray[np.int32]
    ious: NDArray[np.float32]
    low_res: Tensor


@dataclass(frozen=True, repr=False)
class Answers(BriefRepr):
    """The answer for B images at once, as jagged nested tensors over the images.

    low_res  (B, n, M, 256, 256) float32 logits;  iou (B, n, M) float32
    check    as that of Masks, for all images. Only `cpu` calls it: logits show NaN and infinity

    The flat tensors, an object a row, are `low_res.values()` and `iou.values()`; nothing is copied.
    """

    low_res: Tensor
    iou: Tensor
    check: Check | None = field(default=None, repr=False, compare=False)

    def __len__(self) -> int:
        return self.iou.shape[0]

    def cpu(self) -> Answers:
        """The same answer on the host; synchronises.

        Raises NumericsError for an answer that holds NaN or infinity, and PromptError for a prompt
        on the device that does not fit its image; both name the image and the object.
        """
        if self.check is not None:
            self.check()
        return Answers(self.low_res.cpu(), self.iou.cpu())
