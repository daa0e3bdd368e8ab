"""Finding the file of a model's name, a path or a Hugging Face id."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from samfast.checkpoints import file_formats
from samfast.checkpoints.download import download
from samfast.checkpoints.hugging_face import fetch, is_hub_id
from samfast.checkpoints.known_checkpoints import KNOWN, Known
from samfast.checkpoints.verified_files import checkpoint_dir, verify
from samfast.errors import CheckpointError, CheckpointNotFoundError


def resolve(name: str | None, checkpoint: str | os.PathLike[str] | None = None) -> Path:
    """The file or directory to hand to `load_checkpoint`.

    name        of a known model. Without a checkpoint its weights are taken from the package or the
                user's cache, or else downloaded to the cache
    checkpoint  a file, a directory (see `file_formats.find`), or a Hugging Face id,
                "organisation/name"

    Raises CheckpointNotFoundError if there is no such file, DownloadError if it cannot be
    downloaded, and CheckpointError for an unknown name or if the cached file is not the published
    one.
    """
    if checkpoint is not None:
        return _resolve_given(checkpoint)
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
                "samfast, or pass a checkpoint"
            )
        return path
    assert known.size is not None and known.sha256 is not None, "every download is verified"
    if not path.is_file():
        download(known.url, path, known.size, known.sha256)
    verify(path, known.size, known.sha256)
    return path


def _resolve_given(checkpoint: str | os.PathLike[str]) -> Path:
    expanded = os.fsdecode(os.path.expanduser(checkpoint))
    path = Path(expanded)
    # Not Path.exists: that takes "" for the current folder, and raises for some strings.
    if os.path.exists(expanded):
        return path
    if expanded.lower().startswith(("http://", "https://")):
        raise CheckpointNotFoundError(
            f"{expanded}: a web address; download it and pass the file's path, or pass the id, "
            "organisation/name, of a repository on the Hugging Face Hub"
        )
    if is_hub_id(checkpoint):
        return fetch(str(checkpoint))
    for known in KNOWN.values():
        if path.name == known.file and known.url is not None:
            raise CheckpointNotFoundError(
                f"{path}: no such file; download {known.url} and put it there, or ask for "
                f"{known.name} without a checkpoint, which downloads it"
            )
    return file_formats.find(checkpoint)  # raises: there is no such file


def place(known: Known) -> Path:
    """Where a known checkpoint is, or would be."""
    directory = Path(__file__).parent / "weights" if known.url is None else checkpoint_dir()
    return directory / known.file


def automatic_options(path: Path) -> dict[str, float]:
    """The defaults of automatic masks that a known checkpoint at that path brings along."""
    at_path = (
        known
        for known in KNOWN.values()
        if os.path.realpath(place(known)) == os.path.realpath(path)
    )
    return dict(next((known.automatic for known in at_path), {}))


def listing() -> list[dict[str, Any]]:
    """A row of `samfast models` for each known model, from the file system alone."""
    rows = []
    for known in KNOWN.values():
        path = place(known)
        missing = "not downloaded" if known.url else "missing from this installation"
        rows.append(
            {
                "name": known.name,
                "parameters": known.parameters,
                "bytes": known.size or (path.stat().st_size if path.is_file() else None),
                "where": str(path) if path.is_file() else missing,
                "licence": known.licence,
            }
        )
    return rows
