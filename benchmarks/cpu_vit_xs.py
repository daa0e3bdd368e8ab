"""What `make demo` does, on this CPU: one click on an embedded photo, and everything in it, ours and the original's.

    python benchmarks/cpu_vit_xs.py [--json FILE] [--clicks N] [--rounds N]

Both have the packaged weights in float32 and take turns, so that whatever else the machine does falls on both. Needs
what the tests need (segment-anything 1.0, scikit-image for the photo).
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import numpy as np  # noqa: E402
from PIL import Image  # noqa: E402

OPTIONS = {"points_per_side": 16, "pred_iou_thresh": 0.6, "stability_score_thresh": 0.85}


def seconds(work: Callable[[], object]) -> float:
    """One run, by the clock."""
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


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


def main() -> int:
    """0, or 1 if the two disagreed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", default=str(ROOT / "benchmarks" / "results" / "cpu_vit_xs.json"))
    parser.add_argument("--clicks", type=int, default=30)
    parser.add_argument("--rounds", type=int, default=3, help="times that everything is segmented")
    arguments = parser.parse_args()
    import skimage

    import samfast
    from samfast.bench.environment import stamp
    from samfast.model.config import CONFIGS
    from tests import oracle
    from tests.pairs import original

    photo = np.asarray(Image.open(Path(skimage.__file__).parent / "data" / "coffee.png").convert("RGB"))
    sam = samfast.load("vit_xs", device="cpu", recipe="fp32_blocked")
    theirs = original(CONFIGS["vit_xs"])
    theirs.load_state_dict(sam.model.state_dict())
    predictor = oracle.load().SamPredictor(theirs)
    predictor.set_image(photo)
    embeddings = sam.embed([photo])

    rng = np.random.default_rng(0)
    own_clicks, their_clicks, flips, same = [], [], 0, True
    for i in range(arguments.clicks + 1):
        point = rng.random(2) * (photo.shape[1] - 1, photo.shape[0] - 1)
        answers: dict[str, Any] = {}

        def click(point: Any = point, answers: dict[str, Any] = answers) -> None:
            prompts = [samfast.Prompts(points=point[None, None], labels=[[1]])]
            answers["own"] = sam.predict(embeddings, prompts)[0]

        def click_original(point: Any = point, answers: dict[str, Any] = answers) -> None:
            answers["their"] = predictor.predict(point[None], np.array([1]))

        own, their = seconds(click), seconds(click_original)
        if i:  # the first of each warms up
            own_clicks.append(own)
            their_clicks.append(their)
        flips += int((answers["own"].masks[0].numpy() != answers["their"][0]).sum())
        low = answers["their"][2]
        same &= bool(np.abs(answers["own"].low_res[0].numpy() - low).max() <= 1e-4 * np.abs(low).max())

    generator = oracle.load().SamAutomaticMaskGenerator(theirs, **OPTIONS)
    own_all, their_all = [], []
    found: dict[str, Any] = {}

    def everything() -> None:
        found["own"] = sam.segment([photo], **OPTIONS)[0]

    def everything_original() -> None:
        found["their"] = generator.generate(photo)

    for _ in range(arguments.rounds):
        own_all.append(seconds(everything))
        their_all.append(seconds(everything_original))
        same &= [r["bbox"] for r in found["own"]] == [r["bbox"] for r in found["their"]]
    rows = [
        summary("one click on an embedded photo, to masks at its size", own_clicks, their_clicks),
        summary("everything, 16 x 16 clicks, embedding included", own_all, their_all),
    ]
    counts = {name: len(records) for name, records in found.items()}
    result = {
        "photo": "coffee.png of scikit-image, 600 x 400",
        "model": "vit_xs, packaged weights, float32",
        "parity": same,
        "flipped_pixels": flips,
        "masks": counts,
        "rows": rows,
        "environment": stamp("cpu"),
    }
    Path(arguments.json).write_text(json.dumps(result, indent=2) + "\n")
    for row in rows:
        print({k: v for k, v in row.items() if k != "samples"})
    print(f"parity {same}, {flips} pixels flipped, masks {counts}")
    return 0 if same else 1


if __name__ == "__main__":
    sys.exit(main())
