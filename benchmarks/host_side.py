"""The host's work in one `predict` before the GPU starts: checks, packing, comparing weights.

    python benchmarks/host_side.py [--repeat N]

Needs no GPU: prompts are cut into parts as for one, and not sent. Milliseconds, medians.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import numpy as np  # noqa: E402
import torch  # noqa: E402

from samfast import Prompts  # noqa: E402
from samfast.decoding.packed_decoder import PackedDecoder  # noqa: E402
from samfast.device.parameter_watcher import ParameterWatcher  # noqa: E402
from samfast.model.config import CONFIGS  # noqa: E402
from samfast.model.sam import build  # noqa: E402
from samfast.prompts import pack_groups  # noqa: E402

IMAGE, INPUT, MASK = (480, 640), (768, 1024), (256, 256)


def cases() -> dict[str, list[Prompts]]:
    """Prompts of as many images, of 59 objects where there are eight."""
    rng = np.random.default_rng(0)
    clicks, boxes = [], []
    for n in (7, 8, 7, 7, 8, 7, 8, 7):
        clicks.append(
            Prompts(points=rng.random((n, 1, 2)) * 400, labels=np.ones((n, 1), dtype=np.int64))
        )
        corner = rng.random((n, 2)) * 200
        boxes.append(Prompts(boxes=np.concatenate([corner, corner + 100], axis=1)))
    ragged = [
        Prompts(points=[[[9, 9]], [[9, 9], [5, 5]]] * 4, labels=[[1], [1, 0]] * 4) for _ in clicks
    ]
    return {
        "8 images, 59 clicks": clicks,
        "8 images, 59 boxes": boxes,
        "8 images, 64 objects of one or two clicks in lists": ragged,
        "one click": [Prompts(points=[[[10, 20]]], labels=[[1]])],
    }


def main() -> None:
    """Print a line per case."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeat", type=int, default=200)
    repeat = parser.parse_args().repeat
    sam = build(CONFIGS["vit_b"])
    packed = PackedDecoder(sam)
    packed.graphs = cast("Any", object())  # prompts are filled up as for graphs
    packed._home = torch.device("cuda")  # only for the number of objects per call

    def median(work: Callable[[], object]) -> float:
        taken = []
        for _ in range(repeat + 20):
            start = time.perf_counter()
            work()
            taken.append(time.perf_counter() - start)
        return 1e3 * statistics.median(taken[20:])

    print(f"{torch.get_num_threads()} threads")
    for name, prompts in cases().items():
        count = len(prompts)

        def grouped(prompts: list[Prompts] = prompts, count: int = count) -> Any:
            return pack_groups(prompts, [IMAGE] * count, [INPUT] * count, MASK)

        groups = grouped()

        def parts(groups: Any = groups) -> Any:
            return [part for prompts in groups for part in packed._parts(prompts)]

        first, second = median(grouped), median(parts)
        print(
            f"{name}: {first + second:.3f} (checked and packed {first:.3f}, parts and buffers "
            f"{second:.3f})"
        )
    encoder = ParameterWatcher(sam.image_encoder)
    decoder = ParameterWatcher(torch.nn.ModuleList([sam.prompt_encoder, sam.mask_decoder]))
    print(
        f"weights: encoder's snapshot {median(encoder.snapshot):.3f}, decoder's addresses "
        f"{median(decoder.addresses):.3f}"
    )


if __name__ == "__main__":
    main()
