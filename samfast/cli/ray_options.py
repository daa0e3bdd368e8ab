"""What commands that use Ray share: the model's options for other processes."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any


def model_arguments(args: argparse.Namespace, device: str) -> dict[str, Any]:
    """The arguments of `samfast.load`, as another process can use them."""
    checkpoint = args.checkpoint
    if checkpoint is not None and Path(checkpoint).exists():
        checkpoint = str(Path(checkpoint).absolute())
    return {
        "name": "vit_xs" if args.model is None and checkpoint is None else args.model,
        "checkpoint": checkpoint,
        "device": device,
        "recipe": args.recipe,
        "batch_size": args.batch_size,
    }
