"""Embeddings as a safetensors file, so that an image is encoded only once."""

from __future__ import annotations

import hashlib
import json
import os
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from samfast.atomic_files import atomic_write
from samfast.device.machine import resolve_device
from samfast.errors import EmbeddingsError, NumericsError, shown
from samfast.types import Embeddings, Size

FORMAT = "samfast-embeddings-2"
"""Files have a SHA-256 of features and metadata, and most a CRC-32 of both and the SHA-256 too."""

FORMAT_WITHOUT_CHECKSUM = "samfast-embeddings-1"
"""That of samfast 0.2 and before. Its files are read, with all checks but that of the checksum."""

_DTYPES = ("F32", "F16", "BF16")


def save_embeddings(embeddings: Embeddings, path: str | os.PathLike[str]) -> None:
    """Write embeddings to a `.safetensors` file, whole or not at all, with a checksum.

    Raises NumericsError, naming the image, for features that are NaN or infinite, OutputError if
    the file cannot be written.

    samfast.save_embeddings(sam.embed(["photo.jpg"]), "photo.safetensors")
    embeddings = samfast.load_embeddings("photo.safetensors", device=sam.device)
    """
    atomic_write(path, embeddings_to_bytes(embeddings))


def embeddings_to_bytes(embeddings: Embeddings) -> bytes:
    """The content of the file that `save_embeddings` writes, equal for equal embeddings.

    Raises NumericsError as it does.
    """
    from safetensors.torch import save

    if not isinstance(embeddings, Embeddings):
        raise EmbeddingsError(f"{shown(embeddings)} instead of embeddings of SamFast.embed")
    features = embeddings.features.detach().cpu().contiguous()
    embeddings.verify()
    sizes = {"original_sizes": embeddings.original_sizes, "input_sizes": embeddings.input_sizes}
    metadata = {"format": FORMAT, "fingerprint": embeddings.fingerprint, "sizes": json.dumps(sizes)}
    metadata["sha256"] = _sha256(features, metadata)
    metadata["crc32"] = _crc32(features, metadata)
    return _with_sorted_header(save({"features": features}, metadata=metadata))


def _with_sorted_header(content: bytes) -> bytes:
    """A safetensors file whose metadata is in order: safetensors writes it in a random one."""
    stop = 8 + int.from_bytes(content[:8], "little")
    header = json.dumps(json.loads(content[8:stop]), sort_keys=True, separators=(",", ":")).encode()
    header += b" " * (-len(header) % 8)  # tensors are aligned to 8 bytes
    return b"".join((len(header).to_bytes(8, "little"), header, memoryview(content)[stop:]))


def load_embeddings(path: str | os.PathLike[str], device: str | torch.device = "cpu") -> Embeddings:
    """Read a file of `save_embeddings`; the features are channels last in memory, as of `embed`.

    Raises EmbeddingsError if the file is missing, damaged, changed or of another kind.
    `SamFast.predict` checks whether the embeddings fit the model.
    """
    from safetensors import safe_open

    target = resolve_device(device)
    if not isinstance(path, str | os.PathLike):
        raise EmbeddingsError(f"{shown(path)} instead of a path of embeddings")
    path = Path(os.fsdecode(path))
    if not os.path.isfile(path):  # False even for strings that no path can be
        raise EmbeddingsError(f"{path}: no such file")
    with _damage_told(str(path)), safe_open(path, framework="pt") as file:
        metadata = file.metadata() or {}
        header = file.get_slice("features") if "features" in file.keys() else None  # noqa: SIM118
        shape = None if header is None else (header.get_dtype(), header.get_shape())
        # Before any feature is read: a header can promise more than there is memory for.
        original, resized = _checked_header(str(path), metadata, list(file.keys()), shape)
        embeddings = _checked(file.get_tensor("features"), metadata, original, resized)
    return embeddings.to(target)


def embeddings_from_bytes(data: bytes, name: str, *, prefer_crc32: bool = False) -> Embeddings:
    """The embeddings, on the host, in the content of such a file, which messages call `name`.

    prefer_crc32  where the file has a CRC-32, compare that alone, without the SHA-256: a sixth of
                  the time on a processor without instructions for SHA. Either finds damage, and
                  neither says who wrote a file

    Raises EmbeddingsError as `load_embeddings`.
    """
    from safetensors.torch import load

    with _damage_told(name):
        tensors = load(data)  # checks that the header fits the bytes
        header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
        metadata = header.get("__metadata__") or {}
        of = header.get("features")
        shape = None if of is None else (of["dtype"], of["shape"])
        original, resized = _checked_header(name, metadata, list(tensors), shape)
        return _checked(tensors["features"], metadata, original, resized, prefer_crc32)


@contextmanager
def _damage_told(name: str) -> Iterator[None]:
    """Errors of the block as EmbeddingsError, which says that the file of that name is damaged."""
    from safetensors import SafetensorError

    try:
        yield
    except EmbeddingsError:
        raise
    except (
        *(SafetensorError, OSError, KeyError, ValueError, TypeError, AttributeError),
        *(RuntimeError, MemoryError, NumericsError),  # RuntimeError: no memory to map the file
    ) as error:
        raise EmbeddingsError(f"{name}: damaged ({error}); embed the images again") from error


def _checked_header(
    name: str,
    metadata: Mapping[str, str],
    tensors: list[str],
    shape: tuple[str, list[int]] | None,
) -> tuple[tuple[Size, ...], tuple[Size, ...]]:
    """The original and the input sizes in a file's header.

    shape  dtype and shape of the features, or None if there are none

    Raises EmbeddingsError for a file of another kind, KeyError or ValueError for a damaged one.
    """
    if metadata.get("format") not in (FORMAT, FORMAT_WITHOUT_CHECKSUM):
        raise EmbeddingsError(
            f"{name}: not embeddings of samfast; write them with samfast.save_embeddings"
        )
    sizes = json.loads(metadata["sizes"])
    original, resized = _sizes(sizes["original_sizes"]), _sizes(sizes["input_sizes"])
    if shape is None:
        raise ValueError(f"its tensors are {', '.join(tensors)}")
    _check_header(tensors, *shape, original, resized)
    return original, resized


def _checked(
    features: Tensor,
    metadata: Mapping[str, str],
    original: tuple[Size, ...],
    resized: tuple[Size, ...],
    prefer_crc32: bool = False,
) -> Embeddings:
    """The embeddings; ValueError if the checksum is another, NumericsError for NaN."""
    if metadata["format"] == FORMAT:
        has_crc32 = "crc32" in metadata
        if has_crc32 and metadata["crc32"] != _crc32(features, metadata):
            raise ValueError("its checksum is wrong")
        by_crc32 = has_crc32 and prefer_crc32
        if not by_crc32 and metadata["sha256"] != _sha256(features, metadata):
            raise ValueError("its checksum is wrong")
    embeddings = Embeddings(_channels_last(features), original, resized, metadata["fingerprint"])
    if not _surely_finite(features):
        embeddings.verify()
    return embeddings


def _channels_last(features: Tensor) -> Tensor:
    """The features (B, C, h, w), contiguous, copied with channels last in memory.

    By NumPy on one thread: torch's threads wait for each other, and in a server a decoder has the
    cores.
    """
    bits = features.view(torch.int32 if features.element_size() == 4 else torch.int16).numpy()
    copy = torch.from_numpy(np.ascontiguousarray(bits.transpose(0, 2, 3, 1)))
    return copy.view(features.dtype).permute(0, 3, 1, 2)


def _surely_finite(features: Tensor) -> bool:
    """Whether a quick look, on one thread, finds that no feature is NaN or infinite.

    False if the sum alone is infinite, too, and for dtypes whose sums are inaccurate.
    """
    if features.dtype != torch.float32:
        return False
    with np.errstate(over="ignore", invalid="ignore"):
        return bool(np.isfinite(features.numpy().sum()))


def _sha256(features: Tensor, metadata: Mapping[str, str]) -> str:
    """SHA-256 of the features, contiguous, and of the metadata but the checksums."""
    digest = hashlib.sha256(_fields(metadata, ("sha256", "crc32")))
    digest.update(_bytes_of(features))
    return digest.hexdigest()


def _crc32(features: Tensor, metadata: Mapping[str, str]) -> str:
    """CRC-32 of the features, contiguous, and of the metadata but itself."""
    start = zlib.crc32(_fields(metadata, ("crc32",)))
    return f"{zlib.crc32(_bytes_of(features), start):08x}"


def _fields(metadata: Mapping[str, str], without: tuple[str, ...]) -> bytes:
    fields = {key: value for key, value in metadata.items() if key not in without}
    return json.dumps(fields, sort_keys=True).encode()


def _bytes_of(features: Tensor) -> memoryview:
    return features.reshape(-1).view(torch.uint8).numpy().data


def _sizes(values: Any) -> tuple[Size, ...]:
    """The (H, W) of each image; ValueError for anything but positive whole numbers."""
    if not isinstance(values, list) or not all(
        isinstance(size, list) and len(size) == 2 and all(type(x) is int and x > 0 for x in size)
        for size in values
    ):
        raise ValueError("its sizes are not pairs of positive whole numbers")
    return tuple((height, width) for height, width in values)


def _check_header(
    names: list[str],
    dtype: str,
    shape: list[int],
    original: tuple[Size, ...],
    resized: tuple[Size, ...],
) -> None:
    """ValueError unless the features' dtype and shape and all sizes fit each other."""
    if list(names) != ["features"] or dtype not in _DTYPES:
        raise ValueError(f"its tensors are {', '.join(names)}, of {dtype}")
    if len(shape) != 4 or 0 in shape or not shape[0] == len(original) == len(resized):
        counts = f"{len(original)} original and {len(resized)} input sizes"
        raise ValueError(f"features of shape {tuple(shape)} beside {counts}")
    side = max(resized[0])
    if shape[2] != shape[3] or side % shape[2]:
        raise ValueError(f"features of {shape[2]} x {shape[3]} for an input side of {side}")
    for (height, width), (h, w) in zip(original, resized, strict=True):
        scale = side / max(height, width)
        if max(h, w) != side or abs(h - height * scale) > 1 or abs(w - width * scale) > 1:
            raise ValueError(f"an image of {height} x {width} resized to {h} x {w}")
