"""Whether embeddings fit a model, and each other; no feature is read."""

from __future__ import annotations

from samfast.errors import EmbeddingsError, ImageError
from samfast.images import input_size
from samfast.model.sam import Sam
from samfast.types import Embeddings


def check_embeddings(embeddings: object, sam: Sam, fingerprint: str, name: str) -> None:
    """EmbeddingsError unless the model can predict from them.

    fingerprint, name  of the model, for the comparison and for messages
    """
    if not isinstance(embeddings, Embeddings):
        raise EmbeddingsError(f"{type(embeddings).__name__} instead of what SamFast.embed returned")
    if embeddings.fingerprint != fingerprint:
        raise EmbeddingsError(
            "these embeddings were made by another model or preprocessing "
            f"({embeddings.fingerprint[:12]}) than this {name} ({fingerprint[:12]}); "
            "embed the images again with this one"
        )
    features, count = embeddings.features, len(embeddings)
    shape = (count, sam.prompt_encoder.embed_dim, *sam.prompt_encoder.image_embedding_size)
    if tuple(features.shape) != shape or not features.is_floating_point():
        raise EmbeddingsError(
            f"the features of these {count} embeddings are {features.dtype} of shape "
            f"{tuple(features.shape)}, not floats of {shape}; embed the images again"
        )
    if features.device.type != sam.device.type:
        raise EmbeddingsError(
            f"these embeddings are on {features.device}, the model on {sam.device}; pass "
            "embeddings.to(sam.device)"
        )
    _check_sizes(embeddings, sam.image_encoder.img_size)


def _check_sizes(embeddings: Embeddings, side: int) -> None:
    """EmbeddingsError unless each image's input size is what its original size is resized to."""
    sizes = embeddings.original_sizes, embeddings.input_sizes
    if len(sizes[0]) != len(sizes[1]):
        raise EmbeddingsError(
            f"embeddings with {len(sizes[0])} original and {len(sizes[1])} input sizes; embed the "
            "images again"
        )
    known: set[tuple[int, ...]] = set()  # most images of a batch are of few sizes
    for index, (original, given) in enumerate(zip(*sizes, strict=True)):
        pair = (*original, *given)
        if pair in known:
            continue
        known.add(pair)
        try:
            wanted = input_size(original, side)
        except ImageError as error:
            raise EmbeddingsError(f"embedding {index}: {error}") from error
        if tuple(given) != wanted:
            raise EmbeddingsError(
                f"embedding {index}: an image of {original[0]} x {original[1]} (H x W) is "
                f"{wanted[0]} x {wanted[1]} at the model's input, not {given[0]} x {given[1]}; "
                "embed it again"
            )
