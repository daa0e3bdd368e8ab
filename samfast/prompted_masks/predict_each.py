"""`SamFast.predict_each`: images and prompts of any number to answers on the host."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Generator, Iterator, Sequence
from contextlib import closing
from functools import partial
from typing import Any, Literal, overload

import torch

from samfast.decoding.decoded_prompts import decode_packed, decode_prompts
from samfast.decoding.decoder import Decoder
from samfast.device.inference_modes import inference_modes
from samfast.encoding.encoder import Encoder
from samfast.errors import InputError, PromptError, shown
from samfast.images import ImageLike, Images, LoadedImage
from samfast.images.batch_loading import check_list, thread_loader
from samfast.model.sam import Sam
from samfast.progress import reporting
from samfast.prompted_masks.answer_stream import (
    AnsweredImage,
    AnswerStream,
    Load,
    PromptedImage,
    Question,
)
from samfast.prompted_masks.host_answers import (
    AnswerJobs,
    Records,
    mask_answers,
    record_answers,
    rle_answers,
    rle_masks,
)
from samfast.prompts import check_count
from samfast.types import (
    Embeddings,
    Masks,
    PackedPrompts,
    Progress,
    Prompts,
    RleAnswers,
    RleMasks,
)

OUTPUT_MODES = ("binary_mask", "coco_rle")
"""The forms of answers: Masks, or records whose masks are COCO RLE."""


class PredictEach(ABC):
    """The part of SamFast that answers prompts for a stream of images."""

    model: Sam
    encode: Encoder
    decode: Decoder

    @property
    @abstractmethod
    def batch_size(self) -> int:
        """Images encoded at a time."""

    @abstractmethod
    def _check(self, embeddings: Embeddings) -> None:
        """EmbeddingsError for those of another model or preprocessing."""

    @torch.no_grad()
    def predict_rle(
        self, embeddings: Embeddings, prompts: Sequence[Prompts], *, multimask: bool = True
    ) -> list[RleMasks]:
        """As `predict`, with masks as COCO's text, their areas and boxes on the host.

        Masks are encoded on the device, those of all images together, whatever their sizes; neither
        they nor logits are copied as they are. With many images of few objects each this
        takes less time than `predict`, whose answers are cut into tensors for each image.

        embeddings  of the images (`embed`)
        prompts     one Prompts per image, any number of objects each
        multimask   three masks per object, or the single-mask token's one

        >>> (masks,) = sam.predict_rle(embeddings, [Prompts(boxes=[[40, 30, 200, 160]])])
        >>> print(masks.areas, masks.ious)

        Raises as `predict`, NumericsError at once.
        """
        self._check(embeddings)
        with inference_modes(self.model.device):
            decoded = decode_prompts(self.model, self.decode, embeddings, prompts, multimask)
            return rle_masks(decoded)

    @torch.no_grad()
    def predict_rle_batch(
        self,
        embeddings: Embeddings,
        prompts: Sequence[PackedPrompts],
        *,
        multimask: bool = True,
    ) -> RleAnswers:
        """As `predict_rle`, from prompts that are packed already, with the answers of all images in
        columns: nothing is done for each image by itself, which with many images of one click each
        is most of what the host does.

        prompts  `samfast.PromptBatch`es in input pixels, one for each kind of prompts (points,
                 boxes, masks), each with the objects of all images (`samfast.prompts.pack_objects`)
        returns  the answers of all objects, batch by batch, in their order

        >>> sizes = embeddings.original_sizes, embeddings.input_sizes
        >>> boxes = pack_objects(None, None, [(40, 30, 200, 160)], None, [0], *sizes)
        >>> print(sam.predict_rle_batch(embeddings, [boxes], multimask=False).areas)

        Raises as `predict_batch`; what is wrong with answers, or with prompts on the device, at
        once.
        """
        self._check(embeddings)
        with inference_modes(self.model.device):
            decoded = decode_packed(self.model, self.decode, embeddings, prompts, multimask)
            return rle_answers(decoded)

    @overload
    def predict_each(
        self,
        images: Images | Iterator[ImageLike | LoadedImage],
        prompts: Sequence[Prompts] | Iterator[Prompts],
        *,
        multimask: bool = True,
        output_mode: Literal["binary_mask"] = "binary_mask",
        progress: Progress | bool = False,
    ) -> Generator[Masks, None, None]: ...

    @overload
    def predict_each(
        self,
        images: Images | Iterator[ImageLike | LoadedImage],
        prompts: Sequence[Prompts] | Iterator[Prompts],
        *,
        multimask: bool = True,
        output_mode: Literal["coco_rle"],
        progress: Progress | bool = False,
    ) -> Generator[Records, None, None]: ...

    def predict_each(
        self,
        images: Images | Iterator[ImageLike | LoadedImage],
        prompts: Sequence[Prompts] | Iterator[Prompts],
        *,
        multimask: bool = True,
        output_mode: str = "binary_mask",
        progress: Progress | bool = False,
    ) -> Generator[Any, None, None]:
        """As `predict` on images, the answer of one after another, on the host, as it is done.

        Files are decoded, images encoded, prompts decoded and answers copied to the host all at the
        same time, `batch_size` images at a time. Memory is bounded: beside what the caller keeps,
        about three batches are on their way.

        images       a list, or an iterator of any length. Another thread takes images and prompts,
                     some ahead of the answers, and ends with the generator, also when that is
                     closed early. Closing does not wait for an iterator that blocks; an item that
                     comes later is lost
        prompts      one Prompts per image; an iterator may go on when the images have ended
        multimask    three masks per object, or the single-mask token's one
        output_mode  "binary_mask": Masks. "coco_rle": a list of records, M for each object, with
                     the original generator's keys; masks are encoded on the device, and neither
                     they nor logits are copied as they are
        progress     called with the images done and their total, None for an iterator; True: a bar
                     of tqdm

        >>> for masks in sam.predict_each(paths, boxes, multimask=False):
        ...     print(masks.iou.mean())

        The answers are those of `predict` for the same batches of `batch_size` images, bit for bit
        on a CPU; other batches may change the last bits of logits.

        Raises as `predict`, after the answers of all images before the one that fails, which the
        error names by its number, or by its path.
        """
        check_list(images, Sequence | Iterator)
        if output_mode not in OUTPUT_MODES:
            raise InputError(
                f"output_mode={shown(output_mode)}; there are {', '.join(OUTPUT_MODES)}"
            )
        count = len(images) if isinstance(images, Sequence) else None
        if isinstance(prompts, Sequence) and count is not None:
            check_count(prompts, count, "a list of")
        elif not isinstance(prompts, Sequence | Iterator):
            raise PromptError(
                f"one {type(prompts).__name__} instead of a list or iterator of Prompts, one an "
                "image"
            )
        pairs = _pairs(iter(images), iter(prompts), multimask)
        answered = self.answer_each(
            pairs, thread_loader(), output_mode=output_mode, single=count == 1
        )
        with reporting(progress, count, "image") as advance, closing(answered):
            for each in answered:
                if each.error is not None:
                    raise each.error
                advance(1)
                yield each.answers[0]

    def answer_each(
        self,
        items: Iterator[PromptedImage],
        load: Load,
        *,
        output_mode: str = "binary_mask",
        best: bool = False,
        single: bool = False,
        batch_size: int | None = None,
    ) -> Generator[AnsweredImage[Any], None, None]:
        """As `predict_each`, for applications: any number of questions per image, and an image that
        fails has its error as its answer, so that the stream goes on.

        items       iterated on a thread, ahead of the answers
        load        makes a LoadedImage of an item's image and its number, on several threads
        best        records of each object's mask of highest predicted IoU only
        single      there is only one image, for which a thread costs more than it saves
        batch_size  images encoded at a time; None: the engine's

        The embeddings of an image that memory did not suffice for, together with others, are made
        again for it alone; so are answers.
        """
        records = partial(record_answers, best=best)
        jobs: AnswerJobs[Any] = mask_answers if output_mode == "binary_mask" else records
        stream = AnswerStream(
            self.model, self.encode, self.decode, batch_size or self.batch_size, jobs
        )
        return stream(items, load, single=single)


def _pairs(
    images: Iterator[ImageLike | LoadedImage], prompts: Iterator[Prompts], multimask: bool
) -> Iterator[PromptedImage]:
    """Each image with its prompts; PromptError if there are fewer prompts than images."""
    for number, image in enumerate(images):
        try:
            asked = next(prompts)
        except StopIteration:
            raise PromptError(
                f"prompts for {number} images but there are more images; give one each"
            ) from None
        yield PromptedImage(image, (Question(asked, multimask),))
