"""The folder for files that samfast can make or download again."""

from __future__ import annotations

import os
import sys
from pathlib import Path


def cache_dir() -> Path:
    """The folder for files that samfast can make or download again. It need not exist yet.

    SAMFAST_CACHE if set; else `samfast` in XDG_CACHE_HOME or in the platform's cache folder:
    ~/.cache, ~/Library/Caches on macOS, %LOCALAPPDATA% on Windows.
    """
    chosen = os.environ.get("SAMFAST_CACHE")
    if chosen:
        return Path(chosen).expanduser().absolute()
    xdg = os.environ.get("XDG_CACHE_HOME", "")
    if os.path.isabs(xdg):  # the XDG specification says to ignore relative paths
        return Path(xdg) / "samfast"
    if sys.platform == "win32":
        local = os.environ.get("LOCALAPPDATA")
        return (Path(local) if local else Path.home() / "AppData" / "Local") / "samfast" / "cache"
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Caches" / "samfast"
    return Path.home() / ".cache" / "samfast"
