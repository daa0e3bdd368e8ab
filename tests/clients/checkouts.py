"""Files of public repositories at pinned commits, in pytest's cache; none is committed."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

import pytest

META = "https://github.com/facebookresearch/segment-anything"
META_COMMIT = "dca509fe793f601edb92606367a655c15ac00fdf"

FETCH_SECONDS = 240


def checkout(repository: str, commit: str, paths: Sequence[str], cache: Path) -> Path:
    """The folder in `cache` with those files and folders of a repository.

    Only their contents are transferred. Where they cannot be fetched the test is skipped; under CI
    it fails.
    """
    folder = cache / repository.rpartition("/")[2] / commit
    if folder.is_dir() and all((folder / path).exists() for path in paths):
        return folder
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    commands = (
        ("init", "--quiet"),
        ("remote", "add", "origin", repository),
        ("fetch", "--quiet", "--depth=1", "--filter=blob:none", "origin", commit),
        ("checkout", "--quiet", commit, "--", *paths),
    )
    for command in commands:
        try:
            done = subprocess.run(
                ["git", *command],
                cwd=folder,
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                timeout=FETCH_SECONDS,
            )
            said = done.stderr.strip()
        except (OSError, subprocess.TimeoutExpired) as error:
            done, said = None, str(error)
        if done is None or done.returncode != 0:
            shutil.rmtree(folder)
            reason = f"{repository} at {commit[:8]}, {' '.join(paths)}: not fetched: {said}"
            if os.environ.get("CI"):
                pytest.fail(reason)
            pytest.skip(reason)
    return folder
