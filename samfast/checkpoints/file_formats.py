"""Reading checkpoint files as mappings of names to tensors.

The format is recognised by the first bytes, because people rename files. Code in a file never runs:
pickles are read with `torch.load(weights_only=True)`, which accepts only tensors and plain
containers.
"""

from __future__ import annotations

import json
import os
import pickle
import re
import warnings
import zipfile
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from samfast.errors import CheckpointError, CheckpointNotFoundError, shown

TRANSFORMERS_FILES = (
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
)
"""Names that transformers gives checkpoints and the indices of sharded ones, best first."""

INDEX_FILES = TRANSFORMERS_FILES[1::2]

SUFFIXES = (".safetensors", ".pth", ".pt", ".bin", ".ckpt")
"""Endings of checkpoint files. They do not determine how a file is read."""


def find(source: str | os.PathLike[str]) -> Path:
    """The file to read: `source` itself, or the checkpoint in that directory.

    In a directory, the first of TRANSFORMERS_FILES, or else the only file with a checkpoint's
    ending. Raises CheckpointNotFoundError, or CheckpointError if there are several to choose from.
    """
    if not isinstance(source, str | os.PathLike):
        raise CheckpointError(f"{shown(source)} instead of the path of a checkpoint")
    if not os.fspath(source):
        raise CheckpointNotFoundError("an empty path for a checkpoint; give a file or a directory")
    path = Path(os.fsdecode(os.path.expanduser(source)))
    if os.path.isfile(path):
        return path
    if not os.path.exists(path):  # False even for strings that no path can be, unlike Path.exists
        raise CheckpointNotFoundError(
            f"{path}: no such file or directory; check the path of the checkpoint"
        )
    if not path.is_dir():
        raise CheckpointError(f"{path}: neither a file nor a directory; give a checkpoint file")
    try:
        names = sorted(entry.name for entry in path.iterdir() if entry.is_file())
    except OSError as error:
        raise CheckpointError(
            f"{path}: cannot be read ({error.strerror}); check its permissions"
        ) from error
    return path / choose(names, str(path))


def choose(names: Sequence[str], source: str) -> str:
    """The checkpoint among the files of a directory or repository `source`; raises as `find`."""
    for name in TRANSFORMERS_FILES:
        if name in names:
            return name
    names = [name for name in names if name.lower().endswith(SUFFIXES)]
    if not names:
        raise CheckpointNotFoundError(
            f"{source}: no checkpoint in it; it should hold {', '.join(TRANSFORMERS_FILES)} or one "
            f"file that ends in {', '.join(SUFFIXES)}"
        )
    if len(names) > 1:
        raise CheckpointError(
            f"{source}: {len(names)} checkpoints in it ({abbreviated(names)}); give the path of "
            "one of them as checkpoint="
        )
    return names[0]


def read(path: Path) -> Mapping[Any, Any]:
    """The content of a checkpoint file, on the CPU, memory-mapped if the format allows it.

    Raises CheckpointError if the file is empty, cut short, unreadable, not a checkpoint, or holds
    anything but tensors and plain values.
    """
    try:
        with path.open("rb") as file:
            head = file.read(512)
        if path.name.endswith(".index.json"):
            return _read_shards(path)
        if not head:
            raise CheckpointError(f"{path}: the file is empty; download or copy it again")
        if head.startswith(b"PK\x03\x04"):
            _check_archive(path)
            return _read_torch(path, mmap=True)
        if head[0] == 0x80:  # torch's format before 1.6: one pickle after another
            return _read_torch(path, mmap=False)
        if head[8:9] == b"{":
            return _read_safetensors(path)
    except CheckpointError:
        raise  # CheckpointNotFoundError is an OSError too
    except OSError as error:
        raise CheckpointError(
            f"{path}: cannot be read ({error.strerror or error}); check the file and its "
            "permissions"
        ) from error
    raise CheckpointError(
        f"{path}: not a checkpoint{_looks_like(head)}; give a .pth or .safetensors file of a SAM"
    )


def metadata(path: Path) -> dict[str, str]:
    """The metadata in the header of a `.safetensors` file; empty for any other or a damaged file.

    Reads only the header. `read` reports what is wrong with a file.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as opened:
            return dict(opened.metadata() or {})
    except (OSError, SafetensorError):
        return {}


def shards(index: Path) -> list[str]:
    """The names of the files that a sharded checkpoint's index lists; they lie beside it."""
    try:
        names = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise CheckpointError(
            f"{index}: not the index of a sharded checkpoint (no 'weight_map'); download it again"
        ) from error
    for name in names:
        if isinstance(name, str) and name.endswith(".index.json"):
            raise CheckpointError(
                f"{index}: lists {name!r}, an index, among its files; download it again"
            )
        if not isinstance(name, str) or not name or Path(name).name != name or "\\" in name:
            raise CheckpointError(
                f"{index}: lists the shard {name!r}, which is not a plain file name; download it "
                "again"
            )
    return names


def _read_shards(index: Path) -> dict[str, Tensor]:
    names = shards(index)
    missing = [name for name in names if not (index.parent / name).is_file()]
    if missing:
        raise CheckpointNotFoundError(
            f"{index}: {len(missing)} of its {len(names)} files are missing "
            f"({abbreviated(missing)}); put them into {index.parent}"
        )
    out: dict[str, Tensor] = {}
    for name in names:
        out.update(read(index.parent / name))
    return out


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(path)
    except (SafetensorError, KeyError) as error:
        raise _damaged(path, error) from error


def _read_torch(path: Path, mmap: bool) -> Mapping[Any, Any]:
    try:
        with warnings.catch_warnings():
            # Warnings about old formats concern the file's writer.
            warnings.simplefilter("ignore")
            loaded = torch.load(path, map_location="cpu", weights_only=True, mmap=mmap)
    except pickle.UnpicklingError as error:
        raise CheckpointError(
            f"{path}: holds something other than tensors{_unsafe(path, str(error))}; it was not "
            "executed. If you trust where it comes from, load it there and save only the weights:"
            " torch.save(model.state_dict(), 'weights.pth')"
        ) from error
    except (OSError, MemoryError):
        raise
    except Exception as error:  # a damaged pickle can raise nearly anything
        raise _damaged(path, error) from error
    if isinstance(loaded, Mapping):
        return loaded
    raise CheckpointError(
        f"{path}: holds a {type(loaded).__name__}, not a state dict; save it with"
        " torch.save(model.state_dict(), 'weights.pth')"
    )


def _check_archive(path: Path) -> None:
    """CheckpointError unless it is an undamaged zip file of `torch.save`.

    torch compares no checksums of what it reads. Here each member is read once, which takes about a
    second for two gigabytes on one core, and less on several; the weights are then in memory.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            members = archive.infolist()
            _check_members(members, path)
            # All are 0 where the writer had torch's checksums switched off.
            if any(member.CRC for member in members):
                threads = min(8, os.cpu_count() or 1)
                shares = [members[number::threads] for number in range(threads)]
                with ThreadPoolExecutor(threads) as pool:
                    list(pool.map(partial(_check_crcs, path), shares))
    except (zipfile.BadZipFile, EOFError, NotImplementedError, RuntimeError) as error:
        raise _damaged(path, error) from error


def _check_members(members: Sequence[zipfile.ZipInfo], path: Path) -> None:
    names = {member.filename.rpartition("/")[2] for member in members}
    if "constants.pkl" in names:
        raise CheckpointError(
            f"{path}: a TorchScript program, not a checkpoint; save the weights it was made from "
            "with torch.save(model.state_dict(), 'weights.pth')"
        )
    if "data.pkl" not in names:
        raise CheckpointError(
            f"{path}: a zip archive, not a checkpoint (it may hold one: unpack it); give a .pth or"
            " .safetensors file of a SAM"
        )
    if any(member.compress_type != zipfile.ZIP_STORED for member in members):
        raise CheckpointError(
            f"{path}: its members are compressed, which torch.save never does and torch.load takes "
            "for values; unpack it and pack it again without compression (zip -0)"
        )


def _check_crcs(path: Path, members: Sequence[zipfile.ZipInfo]) -> None:
    """BadZipFile unless each of these members has its CRC-32.

    Each thread opens the file by itself: threads that read from one `ZipFile` move each other's
    place in it under Python 3.12 and 3.13, and good members are taken for damaged ones.
    """
    with zipfile.ZipFile(path) as archive:
        for member in members:
            with archive.open(member) as file:
                while file.read(1 << 20):
                    pass


def _unsafe(path: Path, message: str) -> str:
    """The globals that a refused pickle uses, in brackets, without running it; or empty."""
    try:
        names = torch.serialization.get_unsafe_globals_in_checkpoint(path)
    except Exception:  # it does not understand damaged and old files
        names = re.findall(r"GLOBAL ([\w.]+)", message)
    return f" ({abbreviated(sorted(set(names)))})" if names else ""


def _damaged(path: Path, error: Exception) -> CheckpointError:
    reason = str(error).partition("\n")[0].partition(". This is")[0] or type(error).__name__
    size = path.stat().st_size
    return CheckpointError(
        f"{path}: damaged or cut short at {size} bytes ({reason[:160]}); download or copy it again"
    )


def _looks_like(head: bytes) -> str:
    start = head.removeprefix(b"\xef\xbb\xbf").lstrip().lower()  # without the byte order mark
    if start.startswith(b"version https://git-lfs"):
        return " but a Git LFS pointer to one (run `git lfs pull`)"
    if start.startswith((b"<!doctype", b"<html", b"<?xml")):
        return " but a web page, as servers send instead of a file"
    if head.startswith((b"\x1f\x8b", b"BZh", b"\xfd7zXZ", b"7z\xbc\xaf", b"Rar!")):
        return " but a compressed archive (unpack it)"
    if len(head) > 2 and head[0] == 0x08 and head[1] < 0x20 and head[2] == 0x12:
        return " but an ONNX model"
    return f" (it begins with {head[:8]!r})"


def abbreviated(names: Sequence[str], count: int = 3) -> str:
    """The first few names, for a message."""
    return ", ".join(names[:count]) + (", ..." if len(names) > count else "")
