"""Machine code of CUDA C++ kernels, kept beside the code that torch compiles.

`<cache>/compiled/<key>.bin` is what the compiler wrote, `<key>.json` its description. The GPU runs
it, so it is read only if no other user could have written it and its SHA-256 is right.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from samfast.device.artifacts.compiled_code import is_trusted, write_entry
from samfast.device.artifacts.entries import description, drop, folder


def load(purpose: dict[str, Any]) -> bytes | None:
    """The code kept for a purpose; None if there is none that can be trusted. A damaged entry is
    deleted and logged.
    """
    path = _file(purpose)
    described = path.with_suffix(".json")
    if not is_trusted(path, described):
        return None
    try:
        about = json.loads(described.read_text(encoding="utf-8"))
        content = path.read_bytes()
        if about["for"] == purpose and about["sha256"] == hashlib.sha256(content).hexdigest():
            return content
        reason = "it is not what was kept"
    except FileNotFoundError:
        if not path.exists() and not described.exists():
            return None
        reason = "one of its two files is missing"
    except (OSError, ValueError, LookupError, TypeError):
        reason = "it cannot be read"
    drop([path, described], "kernel", f"{reason}; it is compiled again")
    return None


def save(purpose: dict[str, Any], content: bytes) -> None:
    """Keep code. A cache that cannot be written is warned of once per process."""
    path = _file(purpose)
    if is_trusted(path):
        about = description(purpose, sha256=hashlib.sha256(content).hexdigest())
        write_entry(path, content, about)


def _file(purpose: dict[str, Any]) -> Path:
    digest = hashlib.sha256(json.dumps(purpose, sort_keys=True).encode()).hexdigest()
    return folder("compiled") / f"{digest[:16]}.bin"
