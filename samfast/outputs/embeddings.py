"""Embeddings as a safetensors file, so that an image is encoded once."""

from __future__ import annotations

import json
import os
from pathlib import Path

import torch

from samfast.atomic_files import atomic_write
from samfast.errors import EmbeddingsError
from samfast.types import Embeddings

FORMAT = "samfast-embeddings-1"


def save_embeddings(embeddings: Embeddings, path: str | os.PathLike[str]) -> None:
    """Write embeddings to a `.safetensors` file, whole or not at all; OutputError if it cannot be
    written.
    """
    from safetensors.torch import save

    sizes = {"original_sizes": embeddings.original_sizes, "input_sizes": embeddings.input_sizes}
    metadata = {"format": FORMAT, "fingerprint": embeddings.fingerprint, "sizes": json.dumps(sizes)}
    atomic_write(
        path, save({"features": embeddings.features.detach().cpu().contiguous()}, metadata=metadata)
    )


def load_embeddings(path: str | os.PathLike[str], device: str | torch.device = "cpu") -> Embeddings:
    """Read what `save_embeddings` wrote.

    Raises EmbeddingsError when the file is missing, damaged or something else. Whether they fit a
    model is checked when that model is asked to predict from them.
    """
    from safetensors import SafetensorError, safe_open

    path = Path(path)
    if not path.is_file():
        raise EmbeddingsError(f"{path}: no such file")
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            if metadata.get("format") != FORMAT:
                raise EmbeddingsError(
                    f"{path}: not embeddings of samfast; write them with samfast.save_embeddings"
                )
            features = file.get_tensor("features")
        sizes = json.loads(metadata["sizes"])
        originals = tuple((int(h), int(w)) for h, w in sizes["original_sizes"])
        inputs = tuple((int(h), int(w)) for h, w in sizes["input_sizes"])
        fingerprint = metadata["fingerprint"]
    except (SafetensorError, OSError, KeyError, ValueError, TypeError) as error:
        if isinstance(error, EmbeddingsError):
            raise
        raise EmbeddingsError(f"{path}: damaged ({error}); embed the images again") from error
    if features.ndim != 4 or not len(features) == len(originals) == len(inputs):
        raise EmbeddingsError(
            f"{path}: damaged (its parts do not fit each other); embed the images again"
        )
    return Embeddings(features.to(device), originals, inputs, fingerprint)
