"""Checkpoints on the Hugging Face Hub, by `organisation/name`."""

from __future__ import annotations

import logging
import os
import re
import socket
import time
from pathlib import Path

from samfast.checkpoints.file_formats import (
    INDEX_FILES,
    SUFFIXES,
    TRANSFORMERS_FILES,
    choose,
    shards,
)
from samfast.errors import (
    CheckpointError,
    CheckpointNotFoundError,
    DownloadError,
    MissingExtraError,
)

_LOG = logging.getLogger(__name__)

TIMEOUT = 10.0
"""Seconds to wait for the Hub's answer."""

PAUSES = (1.0, 3.0)
"""Seconds before asking again a Hub that is overloaded."""

_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")


def is_hub_id(source: str | os.PathLike[str]) -> bool:
    """Whether this reads as a Hugging Face id, `org/name`, and there is no folder `org` here."""
    return (
        isinstance(source, str)
        and _ID.fullmatch(source) is not None
        and not source.lower().endswith(SUFFIXES)
        and not Path(source.partition("/")[0]).is_dir()
    )


def fetch(repo: str) -> Path:
    """The checkpoint of a repository, downloaded to huggingface_hub's cache if it is not there.

    Takes `model.safetensors` or its shards, `pytorch_model.bin` or its shards, or else the
    repository's only checkpoint file. Returns the file, or the index of the shards beside it.

    Raises CheckpointNotFoundError if there is no such repository or no checkpoint in it,
    DownloadError if it cannot be reached, and CheckpointError if it holds several checkpoints.
    """
    try:
        import huggingface_hub  # noqa: F401
    except ImportError as error:
        raise MissingExtraError(
            f"{repo}: reading from the Hugging Face Hub needs huggingface_hub; run `pip install"
            " huggingface_hub`"
        ) from error
    try:
        names = _files(repo)
    except Exception as error:
        failure = _explained(repo, error)
        cached = _cached(repo) if isinstance(failure, DownloadError) else None
        if cached is None:
            raise failure from error
        return cached
    return _download(repo, choose(names, f"{repo} on the Hugging Face Hub"))


def _files(repo: str) -> list[str]:
    """The names of a repository's files.

    Only an answer that asks for patience is worth another attempt. huggingface_hub's own listing
    tries an unreachable server six times, for 24 seconds, which is long for a mistyped path.
    """
    from huggingface_hub import HfApi, errors

    for pause in (*PAUSES, None):
        try:
            info = HfApi().model_info(repo, timeout=TIMEOUT)
        except errors.HfHubHTTPError as error:
            status = getattr(error.response, "status_code", 0)
            if pause is None or not (status == 429 or status >= 500):
                raise
            time.sleep(pause)
        else:
            break
    return [file.rfilename for file in info.siblings or ()]


def _offline(error: BaseException | None) -> bool:
    """Whether there was no connection: no network, or no server at the address."""
    while error is not None:
        if isinstance(error, socket.gaierror | ConnectionRefusedError) or type(error).__name__ in (
            "ConnectError",
            "OfflineModeIsEnabled",
        ):
            return True
        error = error.__cause__ or error.__context__
    return False


def _cached(repo: str) -> Path | None:
    """The checkpoint in huggingface_hub's cache, without a network; None if there is none."""
    for name in TRANSFORMERS_FILES:
        try:
            return _download(repo, name, local_files_only=True)
        except DownloadError:
            continue
    return None


def _download(repo: str, name: str, *, local_files_only: bool = False) -> Path:
    """A file of the repository; of an index, its shards too."""
    from huggingface_hub import hf_hub_download

    try:
        path = Path(hf_hub_download(repo, name, local_files_only=local_files_only))
    except Exception as error:
        raise _explained(repo, error, name) from error
    _LOG.info("%s of %s on the Hugging Face Hub is %s", name, repo, path)
    if name in INDEX_FILES:
        for shard in shards(path):
            _download(repo, shard, local_files_only=local_files_only)
    return path


def _explained(repo: str, error: Exception, name: str = "") -> CheckpointError:
    """An error of huggingface_hub in our words. Those of the network have many classes."""
    from huggingface_hub import errors

    reason = (str(error).strip().partition("\n")[0] or type(error).__name__)[:160]
    if isinstance(error, errors.EntryNotFoundError) and not isinstance(
        error, errors.LocalEntryNotFoundError
    ):
        return CheckpointNotFoundError(
            f"{repo}: its {name} is missing from the Hugging Face repository; tell its owners"
        )
    if isinstance(error, errors.HFValidationError | errors.RepositoryNotFoundError):
        return CheckpointNotFoundError(
            f"{repo}: neither a file here nor a Hugging Face repository that you may read "
            f"({reason}); check the path or the id, or log in with `hf auth login` if it is private"
        )
    file = TRANSFORMERS_FILES[0]
    if _offline(error):
        reason += "; this machine seems to be offline"
    return DownloadError(
        f"{repo}: no file of that name here, and the Hugging Face repository cannot be reached "
        f"({reason}); without a network, download {file} from https://huggingface.co/{repo} "
        "elsewhere, put it into a directory and pass that directory as checkpoint="
    )
