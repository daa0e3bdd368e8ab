"""Checkpoints on the Hugging Face Hub, by `organisation/name`."""

from __future__ import annotations

import os
import re
from pathlib import Path

from samfast.checkpoints.file_formats import INDEX_FILES, SINGLE_FILES, SUFFIXES, shards
from samfast.errors import (
    CheckpointError,
    CheckpointNotFoundError,
    DownloadError,
    MissingExtraError,
)

_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")


def is_hub_id(source: str | os.PathLike[str]) -> bool:
    """Whether this reads as a Hugging Face id and as no path: `org/name`, and no such folder `org`
    here.
    """
    return (
        isinstance(source, str)
        and _ID.fullmatch(source) is not None
        and not source.lower().endswith(SUFFIXES)
        and not Path(source.partition("/")[0]).is_dir()
    )


def fetch(repo: str) -> Path:
    """The checkpoint of a repository in huggingface_hub's own cache, downloaded unless it is there.

    Takes `model.safetensors`, or its shards, or `pytorch_model.bin`, or else the repository's only
    checkpoint file. Returns the file, or the index of the shards, which are beside it.

    Raises CheckpointNotFoundError when there is no such repository or no checkpoint in it,
    DownloadError when it cannot be reached, and CheckpointError when there are several checkpoints
    to choose from.
    """
    try:
        from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError
    except ImportError as error:
        raise MissingExtraError(
            f"{repo}: reading from the Hugging Face Hub needs huggingface_hub; run `pip install"
            " huggingface_hub`"
        ) from error
    offline: Exception | None = None
    for single, index in zip(SINGLE_FILES, INDEX_FILES, strict=True):
        for name in (single, index):
            try:
                path = _file(repo, name, cached=offline is not None)
            except LocalEntryNotFoundError as error:
                offline = offline or error  # but another of these names may be in the cache
                continue
            except EntryNotFoundError:
                continue
            if name == index:
                for shard in shards(path):
                    _required(repo, shard)
            return path
    if offline is not None:
        raise _unreachable(repo, offline) from offline
    return _required(repo, _only(repo))


def _required(repo: str, name: str) -> Path:
    from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

    try:
        return _file(repo, name)
    except LocalEntryNotFoundError as error:
        raise _unreachable(repo, error) from error
    except EntryNotFoundError as error:
        raise CheckpointNotFoundError(
            f"{repo}: its {name} is missing from the Hugging Face repository; tell its owners"
        ) from error


def _file(repo: str, name: str, cached: bool = False) -> Path:
    """One file of the repository. EntryNotFoundError passes: the caller knows whether it had to be
    there.
    """
    from huggingface_hub import errors, hf_hub_download

    try:
        return Path(hf_hub_download(repo, name, local_files_only=cached))
    except errors.EntryNotFoundError:
        raise
    except (
        errors.HFValidationError,
        errors.GatedRepoError,
        errors.RepositoryNotFoundError,
    ) as error:
        raise _refused(repo, error) from error
    except (
        Exception
    ) as error:  # of the network: their classes change with the version of the client
        raise _unreachable(repo, error) from error


def _only(repo: str) -> str:
    from huggingface_hub import HfApi, errors

    try:
        names = [name for name in HfApi().list_repo_files(repo) if name.lower().endswith(SUFFIXES)]
    except (
        errors.HFValidationError,
        errors.GatedRepoError,
        errors.RepositoryNotFoundError,
    ) as error:
        raise _refused(repo, error) from error
    except Exception as error:  # as above
        raise _unreachable(repo, error) from error
    if not names:
        raise CheckpointNotFoundError(
            f"{repo}: this Hugging Face repository holds no checkpoint ({', '.join(SINGLE_FILES)} "
            "or one file"
            f" that ends in {', '.join(SUFFIXES)}); check the id"
        )
    if len(names) > 1:
        raise CheckpointError(
            f"{repo}: this Hugging Face repository holds {len(names)} checkpoints "
            f"({', '.join(names[:3])});"
            " download the one you want and pass its path as checkpoint="
        )
    return names[0]


def _refused(repo: str, error: Exception) -> CheckpointNotFoundError:
    return CheckpointNotFoundError(
        f"{repo}: neither a file here nor a Hugging Face repository that you may read "
        f"({_reason(error)});"
        " check the path or the id, or log in with `hf auth login` if it is private"
    )


def _unreachable(repo: str, error: Exception) -> DownloadError:
    return DownloadError(
        f"{repo}: no file of that name here, and the Hugging Face repository cannot be reached"
        f" ({_reason(error)}); without a network, download {SINGLE_FILES[0]} from"
        f" https://huggingface.co/{repo} elsewhere, put it into a directory and pass that "
        "directory as"
        " checkpoint="
    )


def _reason(error: Exception) -> str:
    return (str(error).strip().partition("\n")[0] or type(error).__name__)[:160]
