"""Embeddings as a safetensors file, so that an image is encoded only once."""

from __future__ import annotations

import json
import os
from pathlib import Path

import torch

from samfast.atomic_files import atomic_write
from samfast.device.machine import resolve_device
from samfast.errors import EmbeddingsError, shown
from samfast.types import Embeddings

FORMAT = "samfast-embeddings-1"


def save_embeddings(embeddings: Embeddings, path: str | os.PathLike[str]) -> None:
    """Write embeddings to a `.safetensors` file, whole or not at all; OutputError if that fails.

    samfast.save_embeddings(sam.embed(["photo.jpg"]), "photo.safetensors")
    embeddings = samfast.load_embeddings("photo.safetensors", device=sam.device)
    """
    from safetensors.torch import save

    if not isinstance(embeddings, Embeddings):
        raise EmbeddingsError(f"{shown(embeddings)} instead of embeddings of SamFast.embed")
    sizes = {"original_sizes": embeddings.original_sizes, "input_sizes": embeddings.input_sizes}
    metadata = {"format": FORMAT, "fingerprint": embeddings.fingerprint, "sizes": json.dumps(sizes)}
    features = embeddings.features.detach().cpu().contiguous()
    atomic_write(path, save({"features": features}, metadata=metadata))


def load_embeddings(path: str | os.PathLike[str], device: str | torch.device = "cpu") -> Embeddings:
    """Read a file of `save_embeddings`.

    Raises EmbeddingsError if the file is missing, damaged or of another kind. `SamFast.predict`
    checks whether the embeddings fit the model.
    """
    from safetensors import SafetensorError, safe_open

    target = resolve_device(device)
    if not isinstance(path, str | os.PathLike):
        raise EmbeddingsError(f"{shown(path)} instead of a path of embeddings")
    path = Path(os.fsdecode(path))
    if not os.path.isfile(path):  # False even for strings that no path can be
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
        original = tuple((int(h), int(w)) for h, w in sizes["original_sizes"])
        resized = tuple((int(h), int(w)) for h, w in sizes["input_sizes"])
        fingerprint = metadata["fingerprint"]
    except EmbeddingsError:
        raise
    except (SafetensorError, OSError, KeyError, ValueError, TypeError) as error:
        raise EmbeddingsError(f"{path}: damaged ({error}); embed the images again") from error
    if features.ndim != 4 or not len(features) == len(original) == len(resized):
        raise EmbeddingsError(f"{path}: damaged (parts of unequal length); embed the images again")
    return Embeddings(features.to(target), original, resized, fingerprint)
