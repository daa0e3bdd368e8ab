"""From what a user asked for to a file: `samfast.load(name, checkpoint=...)` and `samfast
models`.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TypedDict

from samfast.checkpoints.download import download
from samfast.checkpoints.hugging_face import fetch, is_hub_id
from samfast.checkpoints.known_checkpoints import KNOWN, Known
from samfast.checkpoints.verified_files import checkpoint_dir, verify
from samfast.errors import CheckpointError, CheckpointNotFoundError


class Listed(TypedDict):
    """A row of `samfast models`. where is a path, or says that there is none."""

    name: str
    parameters: int
    bytes: int | None
    where: str
    licence: str


def resolve(name: str | None, checkpoint: str | os.PathLike[str] | None = None) -> Path:
    """The file or directory to hand to `load_checkpoint`.

    name        a known model; asked for without a checkpoint, its own is found: packaged, or in the
                user's cache, or downloaded to it. None goes with a checkpoint only
    checkpoint  a file, a directory (see `model.formats.find`), or a Hugging Face id,
                "organisation/name"

    Raises CheckpointNotFoundError when there is no such file, DownloadError when it cannot be
    fetched, and CheckpointError when `name` is unknown or the cached file is not the published one.
    """
    if checkpoint is not None:
        return _given(checkpoint)
    known = KNOWN.get(name) if name is not None else None
    if known is None:
        raise CheckpointError(
            f"no model {name!r}: the models are {', '.join(KNOWN)}; for another one pass a "
            "checkpoint"
        )
    path = place(known)
    if known.url is None:
        if not path.is_file():
            raise CheckpointNotFoundError(
                f"{path}: the weights of {name} are missing from this installation; reinstall "
                "samfast, or"
                " pass a checkpoint"
            )
        return path
    if known.size is None or known.sha256 is None:
        raise CheckpointError(f"{known.url}: its size or SHA-256 is not known; pass a checkpoint")
    if not path.is_file():
        download(known.url, path, known.size, known.sha256)
    verify(path, known.size, known.sha256)
    return path


def place(known: Known) -> Path:
    """Where a known checkpoint is, or would be."""
    directory = Path(__file__).parent / "weights" if known.url is None else checkpoint_dir()
    return directory / known.file


def listing() -> list[Listed]:
    """A row for each known model; touches neither the network nor the files themselves."""
    return [_listed(known) for known in KNOWN.values()]


def _given(checkpoint: str | os.PathLike[str]) -> Path:
    if not os.fspath(checkpoint):
        raise CheckpointNotFoundError(
            "checkpoint='': an empty path; give a file, a directory or a Hugging Face id"
        )
    path = Path(os.path.expanduser(checkpoint))
    if os.path.exists(path):  # unlike Path.exists, False for what can be no path at all
        return path
    if is_hub_id(checkpoint):
        return fetch(str(checkpoint))
    for known in KNOWN.values():
        if path.name == known.file and known.url is not None:
            raise CheckpointNotFoundError(
                f"{path}: no such file; download {known.url} and put it there, or ask for "
                f"{known.name}"
                " without a checkpoint, which downloads it"
            )
    raise CheckpointNotFoundError(
        f"{path}: no such file or directory; check the path of the checkpoint"
    )


def _listed(known: Known) -> Listed:
    path = place(known)
    to_device = path.is_file()
    where = (
        str(path)
        if to_device
        else "not downloaded"
        if known.url
        else "missing from this installation"
    )
    size = path.stat().st_size if to_device and known.size is None else known.size
    return Listed(
        name=known.name, parameters=known.parameters, bytes=size, where=where, licence=known.licence
    )
