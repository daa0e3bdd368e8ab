"""Mean of two trained checkpoints: `python -m training.mix A B OUT --share 0.6`.

OUT is (1 - share) A + share B, parameter by parameter (Wortsman et al. 2022, "Model soups"). It
makes sense where B was trained on from A: then the two lie in one valley, and their mean is often
better than both. Calibration of both is undone; calibrate OUT.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from torch import Tensor

from samfast.errors import CheckpointError
from training import state


def mean(a: dict[str, Tensor], b: dict[str, Tensor], share: float) -> dict[str, Tensor]:
    """(1 - share) a + share b, of the same names and shapes."""
    shapes = [{name: value.shape for name, value in each.items()} for each in (a, b)]
    if shapes[0] != shapes[1]:
        raise CheckpointError("the two checkpoints are of different models: no mean")
    return {name: value * (1 - share) + b[name] * share for name, value in a.items()}


def main(argv: list[str] | None = None) -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("a", type=Path)
    parser.add_argument("b", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--share", type=float, default=0.5, help="of B")
    options = parser.parse_args(argv)
    if not 0 <= options.share <= 1:
        parser.error(f"--share {options.share}: give a number from 0 to 1")
    a, b = (state.read_checkpoint(path) for path in (options.a, options.b))
    state.export(mean(a, b, options.share), options.out)


if __name__ == "__main__":
    main()
