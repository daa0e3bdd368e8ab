"""The environment of a process that runs this checkout."""

from __future__ import annotations

import os
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def child_environment(code: Path = ROOT, **changes: str) -> dict[str, str]:
    """This process's environment, changed, with the checkout `code` first on the path of modules.

    The path that was there stays: packages may lie on it only.
    """
    path = os.pathsep.join(filter(None, (str(code), os.environ.get("PYTHONPATH"))))
    return {**os.environ, "PYTHONPATH": path, **changes}
