"""Run a Python program on the original segment_anything, as `samfast exec` runs it on samfast.

    python original_program.py SCRIPT.py ARG...
    python original_program.py -m MODULE ARG...

The original's registry gets `vit_xs`, the packaged model, for which it has no sizes of its own.
"""

from __future__ import annotations

import runpy
import sys
from typing import Any

import torch

from samfast.model.config import CONFIGS
from tests import oracle
from tests.pairs import original


def build_vit_xs(checkpoint: str) -> Any:
    """The original's modules in the sizes of vit_xs, with a checkpoint's weights."""
    sam = original(CONFIGS["vit_xs"])
    sam.load_state_dict(torch.load(checkpoint, weights_only=True))
    return sam


def main() -> None:
    oracle.load().sam_model_registry["vit_xs"] = build_vit_xs
    _, first, *rest = sys.argv
    if first == "-m":
        sys.argv = rest
        runpy.run_module(rest[0], run_name="__main__", alter_sys=True)
    else:
        sys.argv = [first, *rest]
        runpy.run_path(first, run_name="__main__")


if __name__ == "__main__":
    main()
