"""Where samfast keeps what it can make or fetch again."""

from __future__ import annotations

import os
import sys
from pathlib import Path


def cache_dir() -> Path:
    """Where samfast keeps what it can make or fetch again. It need not exist yet.

    SAMFAST_CACHE if set; else `samfast` in XDG_CACHE_HOME, or in the platform's own place:
    ~/.cache, ~/Library/Caches on macOS, %LOCALAPPDATA% on Windows.
    """
    chosen = os.environ.get("SAMFAST_CACHE")
    if chosen:
        return Path(chosen).expanduser().absolute()
    xdg = os.environ.get("XDG_CACHE_HOME", "")
    if os.path.isabs(xdg):  # a relative one is invalid and to be ignored, says the specification
        return Path(xdg) / "samfast"
    if sys.platform == "win32":
        local = os.environ.get("LOCALAPPDATA")
        return (Path(local) if local else Path.home() / "AppData" / "Local") / "samfast" / "cache"
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Caches" / "samfast"
    return Path.home() / ".cache" / "samfast"
