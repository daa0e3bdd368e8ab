"""The host's work: in one `predict` before the GPU starts, and after the last mask of `segment`.

    python benchmarks/host_side.py [--repeat N]

Before: checks, packing, comparing weights. After: small regions removed, COCO's text written.

Needs no GPU: prompts are cut into parts as for one, and not sent. Milliseconds, medians: of wall
time before, and of processor time after, because calls so long are interrupted by other processes.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, cast

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import numpy as np  # noqa: E402
import torch  # noqa: E402
from numpy.typing import NDArray  # noqa: E402

from samfast import Prompts, coco_rle  # noqa: E402
from samfast.decoding.packed_decoder import PackedDecoder  # noqa: E402
from samfast.device.parameter_watcher import ParameterWatcher  # noqa: E402
from samfast.masks import boxes, coco_text, mask_runs, regions, rle, run_regions  # noqa: E402
from samfast.masks.run_regions import CleanedMasks  # noqa: E402
from samfast.model.config import CONFIGS  # noqa: E402
from samfast.model.sam import build  # noqa: E402
from samfast.prompts import pack_groups  # noqa: E402

IMAGE, INPUT, MASK = (480, 640), (768, 1024), (256, 256)
PHOTO, MASKS, SMALL_AREA = (1222, 819), 50, 100
"""A megapixel, the masks found in it, and the `min_mask_region_area` of `vit_xs`."""


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


def photo_masks() -> list[NDArray[np.int64]]:
    """Ellipses with ragged borders, some with holes and islands, as runs."""
    from scipy import ndimage

    rng = np.random.default_rng(0)
    y, x = np.mgrid[: PHOTO[0], : PHOTO[1]]
    masks = []
    for _ in range(MASKS):
        (cy, cx), (ry, rx) = rng.random(2) * PHOTO, 20 + 300 * rng.random(2) ** 2
        noise = ndimage.gaussian_filter(rng.standard_normal(PHOTO).astype(np.float32), 5)
        inside = 1 - ((y - cy) / ry) ** 2 - ((x - cx) / rx) ** 2
        masks.append(inside + noise / noise.std() * rng.uniform(0, 0.4) > 0)
    return rle.encode(torch.from_numpy(np.stack(masks)))


def remove_small_in_pixels(masks: list[NDArray[np.int64]]) -> CleanedMasks:
    """As `run_regions.remove_small`, one decoded mask after the other."""
    runs, unchanged, found = [], [], []
    for given in masks:
        mask = coco_rle.decode({"size": PHOTO, "counts": given})
        mask, filled = regions.remove_small(mask, SMALL_AREA, "holes")
        mask, dropped = regions.remove_small(mask, SMALL_AREA, "islands")
        unchanged.append(not (filled or dropped))
        pixels = torch.from_numpy(np.ascontiguousarray(mask))[None]
        found.append(boxes.from_masks(pixels)[0].numpy())
        runs.append(given if unchanged[-1] else rle.encode(pixels)[0])
    area = np.array([each[1::2].sum() for each in runs])
    return CleanedMasks(runs, np.stack(found), area, np.array(unchanged))


def are_equal(ours: CleanedMasks, theirs: CleanedMasks) -> bool:
    """Whether all masks are the same, bit for bit."""
    return all(map(np.array_equal, ours.runs, theirs.runs)) and all(
        np.array_equal(getattr(ours, name), getattr(theirs, name))
        for name in ("boxes", "area", "unchanged")
    )


def main() -> None:
    """Print a line per case."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeat", type=int, default=200)
    repeat = parser.parse_args().repeat
    sam = build(CONFIGS["vit_b"])
    packed = PackedDecoder(sam)
    packed.graphs = cast("Any", object())  # prompts are filled up as for graphs
    packed._home = torch.device("cuda")  # only for the number of objects per call

    def median(
        work: Callable[[], object],
        repeat: int = repeat,
        warm_up: int = 20,
        clock: Callable[[], float] = time.perf_counter,
    ) -> float:
        taken = []
        for _ in range(repeat + warm_up):
            start = clock()
            work()
            taken.append(clock() - start)
        return 1e3 * statistics.median(taken[warm_up:])

    processor = partial(median, clock=time.process_time)
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
    masks = photo_masks()
    cleaned = run_regions.remove_small(masks, PHOTO, SMALL_AREA)
    if not are_equal(cleaned, remove_small_in_pixels(masks)):
        raise SystemExit("small regions removed in runs and in pixels differ")
    in_runs = processor(lambda: run_regions.remove_small(masks, PHOTO, SMALL_AREA))
    in_pixels = processor(lambda: remove_small_in_pixels(masks), 1 + repeat // 20, warm_up=1)
    text = processor(lambda: coco_text.strings(mask_runs.join(cleaned.runs, PHOTO)))
    print(
        f"{MASKS} masks of {PHOTO[0]} x {PHOTO[1]} pixels, {sum(map(len, masks))} runs, "
        f"{MASKS - int(cleaned.unchanged.sum())} with small regions: removed in runs {in_runs:.3f} "
        f"(one mask after the other in pixels {in_pixels:.3f}), COCO's text {text:.3f}"
    )


if __name__ == "__main__":
    main()
