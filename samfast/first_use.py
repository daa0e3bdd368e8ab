"""Packages whose public names and submodules are imported at their first use (PEP 562)."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from importlib import import_module
from typing import Any


def imported_name(package: str, homes: Mapping[str, str], name: str) -> Any:
    """What a package has under a name: called by its `__getattr__`, so once for each name.

    homes  the module of each public name, below the package
    """
    if name in homes:
        value = getattr(import_module(f"{package}.{homes[name]}"), name)
        setattr(sys.modules[package], name, value)
        return value
    if not name.startswith("_"):
        module = f"{package}.{name}"
        try:
            return import_module(module)
        except ModuleNotFoundError as error:
            if error.name != module:
                raise
    raise AttributeError(f"module {package!r} has no attribute {name!r}")
