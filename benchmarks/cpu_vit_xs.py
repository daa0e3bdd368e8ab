"""Measures on a CPU what `make demo` does, and the original: one click, everything in a photo.

    python benchmarks/cpu_vit_xs.py [--pixels N] [--json FILE] [--clicks N] [--rounds N] [--side N]
    [--recipe NAME]

samfast and the original have the packaged weights in float32, answer with masks as arrays, and take
turns, so that other load on the machine affects both. --pixels resizes the photo, which has
240,000. A round of everything takes two idle cores a minute at 1,000,000 pixels, nearly all of it
for the original. The file is written after each step; the same call continues it if nothing was
changed since. Needs what the tests need (segment-anything 1.0, scikit-image for the photo).
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import numpy as np  # noqa: E402
from numpy.typing import NDArray  # noqa: E402
from PIL import Image  # noqa: E402

THRESHOLDS = {"pred_iou_thresh": 0.6, "stability_score_thresh": 0.85}
LEAST_IOU = 0.999
"""Of a mask with the original's: sums in another order flip single pixels at the border."""


def seconds(work: Callable[[], object]) -> float:
    """One run, by the clock."""
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def coffee(pixels: int | None) -> NDArray[np.uint8]:
    """The photo, resized to about that many pixels."""
    import skimage

    image = Image.open(Path(skimage.__file__).parent / "data" / "coffee.png").convert("RGB")
    if pixels is not None:
        scale = (pixels / (image.width * image.height)) ** 0.5
        image = image.resize(
            (round(scale * image.width), round(scale * image.height)), Image.Resampling.BICUBIC
        )
    return np.asarray(image)


def summary(name: str, ours: list[float], theirs: list[float]) -> dict[str, Any]:
    """Medians, extremes, and the ratio turn by turn."""
    return {
        "what": name,
        "samfast_seconds": statistics.median(ours),
        "samfast_p99_seconds": float(np.percentile(ours, 99)),
        "original_seconds": statistics.median(theirs),
        "ratio_to_original": statistics.median(a / b for a, b in zip(ours, theirs, strict=True)),
        "samples": {"samfast": ours, "original": theirs},
    }


def agreement(ours: Sequence[dict[str, Any]], theirs: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Whether two lists of records have the same masks in the same order, and how they differ."""
    boxes = [our["bbox"] for our in ours] == [their["bbox"] for their in theirs]
    flips, ious = 0, []
    if boxes:
        for our, their in zip(ours, theirs, strict=True):
            a, b = our["segmentation"], their["segmentation"]
            flips += int((a != b).sum())
            ious.append(float((a & b).sum() / max(1, (a | b).sum())))
    least = min(ious, default=1.0)
    return {
        "own": len(ours),
        "their": len(theirs),
        "same_boxes": boxes,
        "least_iou": least if boxes else None,
        "flipped_pixels": flips if boxes else None,
        "parity": boxes and least >= LEAST_IOU,
    }


class Log:
    """The measurements, in a file that is written after each step.

    asked  the arguments that steps depend on. Steps of an earlier run are kept if these and its
           stamp agree, as with `samfast bench --resume`
    """

    def __init__(self, path: Path, asked: dict[str, Any], stamp: dict[str, Any]) -> None:
        from samfast.bench.environment import SAME_RUN

        self.path = path
        self.content: dict[str, Any] = {**asked, "steps": {}, "environment": stamp}
        if not path.exists() or stamp["dirty"]:
            return
        old = json.loads(path.read_text(encoding="utf-8"))
        same = all(old.get(key) == value for key, value in asked.items()) and all(
            old["environment"].get(key) == stamp[key] for key in SAME_RUN
        )
        if same and "steps" in old:
            self.content["steps"] = old["steps"]

    def step(self, name: str, work: Callable[[], dict[str, Any]]) -> None:
        """Do it, unless it was done."""
        if name not in self.content["steps"]:
            self.content["steps"][name] = work()
            self.write()

    def write(self, **more: Any) -> None:
        """Write the content and `more`; the file is replaced as a whole."""
        self.content |= more
        part = self.path.with_name(self.path.name + ".part")
        part.write_text(json.dumps(self.content, indent=2) + "\n", encoding="utf-8")
        part.replace(self.path)

    @property
    def steps(self) -> dict[str, dict[str, Any]]:
        """By name, in the order in which they were done."""
        steps: dict[str, dict[str, Any]] = self.content["steps"]
        return steps


class Sides:
    """Both models, with the same weights."""

    def __init__(self, photo: NDArray[np.uint8], side: int, recipe: str) -> None:
        import samfast
        from samfast.model.config import CONFIGS
        from tests import oracle
        from tests.pairs import original

        self.photo = photo
        self.options: dict[str, Any] = {"points_per_side": side, **THRESHOLDS}
        self.sam = samfast.load("vit_xs", device="cpu", recipe=recipe)
        self.theirs = original(CONFIGS["vit_xs"])
        self.theirs.load_state_dict(self.sam.model.state_dict())
        self.oracle = oracle.load()

    def clicks(self, count: int) -> dict[str, Any]:
        """Single clicks on the embedded photo."""
        from samfast import Prompts

        predictor = self.oracle.SamPredictor(self.theirs)
        predictor.set_image(self.photo)
        embeddings = self.sam.embed([self.photo])
        rng = np.random.default_rng(0)
        times: dict[str, list[float]] = {"samfast": [], "original": []}
        flips, same = 0, True
        for i in range(count + 1):
            point = rng.random(2) * (self.photo.shape[1] - 1, self.photo.shape[0] - 1)
            answers: dict[str, Any] = {}

            def click(point: Any = point, answers: dict[str, Any] = answers) -> None:
                prompts = [Prompts(points=point[None, None], labels=[[1]])]
                answers["own"] = self.sam.predict(embeddings, prompts)[0]

            def click_original(point: Any = point, answers: dict[str, Any] = answers) -> None:
                answers["their"] = predictor.predict(point[None], np.array([1]))

            our_seconds, their_seconds = seconds(click), seconds(click_original)
            if i:  # the first of each warms up
                times["samfast"].append(our_seconds)
                times["original"].append(their_seconds)
            flips += int((answers["own"].masks[0].numpy() != answers["their"][0]).sum())
            low = answers["their"][2]
            same &= bool(
                np.abs(answers["own"].low_res[0].numpy() - low).max() <= 1e-4 * np.abs(low).max()
            )
        return {"seconds": times, "flipped_pixels": flips, "parity": same}

    def everything(self) -> dict[str, Any]:
        """Everything in the photo, once by each."""
        generator = self.oracle.SamAutomaticMaskGenerator(self.theirs, **self.options)
        records: dict[str, Any] = {}

        def ours() -> None:
            records["own"] = self.sam.segment(
                [self.photo], output_mode="binary_mask", **self.options
            )[0]

        def original() -> None:
            records["their"] = generator.generate(self.photo)

        times = {"samfast": [seconds(ours)], "original": [seconds(original)]}
        print(f"everything: {times}", file=sys.stderr, flush=True)
        return {"seconds": times, **agreement(records["own"], records["their"])}


def main() -> int:
    """0, or 1 if the two disagreed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--pixels", type=int, help="of the photo, which is resized; default: as it is"
    )
    parser.add_argument("--json", help="default: among the results, named after --pixels")
    parser.add_argument("--clicks", type=int, default=30)
    parser.add_argument("--rounds", type=int, default=3, help="times that everything is segmented")
    parser.add_argument(
        "--side", type=int, default=16, help="clicks to a side, where everything is segmented"
    )
    parser.add_argument(
        "--recipe", default="fp32_fused", help="of ours, in float32 (default: %(default)s)"
    )
    arguments = parser.parse_args()
    from samfast.bench.environment import stamp

    name = "cpu_vit_xs" if arguments.pixels is None else f"cpu_vit_xs_{arguments.pixels}_pixels"
    path = Path(arguments.json or ROOT / "benchmarks" / "results" / f"{name}.json")
    photo = coffee(arguments.pixels)
    asked = {
        "photo": f"coffee.png of scikit-image, {photo.shape[1]} x {photo.shape[0]}",
        "model": "vit_xs, packaged weights, float32",
        "recipe": arguments.recipe,
        "clicks": arguments.clicks,
        "side": arguments.side,
    }
    log, sides = Log(path, asked, stamp("cpu")), Sides(photo, arguments.side, arguments.recipe)
    log.step("clicks", lambda: sides.clicks(arguments.clicks))
    rounds = [f"everything {i + 1}" for i in range(arguments.rounds)]
    for one in rounds:
        log.step(one, sides.everything)
    done = [log.steps[one] for one in rounds]
    clicks, last = log.steps["clicks"], done[-1]
    every = {who: [step["seconds"][who][0] for step in done] for who in ("samfast", "original")}
    rows = [
        summary(
            "one click on an embedded photo, to masks at its size", *clicks["seconds"].values()
        ),
        summary(
            f"everything, {arguments.side} x {arguments.side} clicks, embedding included",
            *every.values(),
        ),
    ]
    parity = all(step["parity"] for step in log.steps.values())
    log.write(
        parity=parity,
        flipped_pixels=clicks["flipped_pixels"],
        masks={key: last[key] for key in ("own", "their", "least_iou", "flipped_pixels")},
        rows=rows,
    )
    for row in rows:
        print({k: v for k, v in row.items() if k != "samples"})
    print(
        f"parity {parity}, {log.content['flipped_pixels']} pixels flipped by clicks, masks "
        f"{log.content['masks']}"
    )
    return 0 if parity else 1


if __name__ == "__main__":
    sys.exit(main())
