"""Draw a training's logs: `python -m training.plot LOG.jsonl... OUT.png` (needs matplotlib).

Of several logs, each is of the training that went on where the one before it ended.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any


def read(logs: Sequence[Path]) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """The logs' rows of losses, and their rows of scores, with steps counted from the first."""
    rows: list[dict[str, Any]] = []
    for log in logs:
        before = rows[-1]["step"] if rows else 0
        for line in log.read_text().splitlines():
            if line.strip():
                row = json.loads(line)
                rows.append({**row, "step": row["step"] + before})
    return [row for row in rows if "total" in row], [row for row in rows if "score" in row]


def smooth(values: list[float], span: int = 9) -> list[float]:
    """Running mean over `span` rows."""
    out = []
    for i in range(len(values)):
        near = values[max(0, i - span // 2) : i + span // 2 + 1]
        out.append(sum(near) / len(near))
    return out


def draw(logs: Sequence[Path], out: Path) -> None:
    """Plot losses on the left; training IoU and validation scores on the right."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    rows, scores = read(logs)
    if not rows:
        raise SystemExit(f"{logs[0]}: no steps yet")
    steps = [row["step"] for row in rows]
    figure, (left, right) = pyplot.subplots(1, 2, figsize=(11, 4), layout="constrained")
    for key, label in (
        ("mask", "mask loss (focal 20 : dice 1, single + best of three)"),
        ("iou_error", "IoU head, squared error"),
    ):
        left.plot(steps, smooth([row[key] for row in rows]), label=label)
    left.set(xlabel="step", yscale="log", title="loss, first prompt")
    for key, label in (
        ("single_iou", "single mask"),
        ("multi_iou", "best predicted of three"),
        ("best_iou", "best of three"),
    ):
        right.plot(steps, smooth([row[key] for row in rows]), label=f"train, {label}")
    for key in scores[0]["score"] if scores else ():
        right.plot(
            [s["step"] for s in scores],
            [s["score"][key] for s in scores],
            "o--",
            label=f"val, {key}",
        )
    right.set(xlabel="step", ylim=(0, 1), title="IoU")
    changes = [row["step"] for before, row in pairwise(rows) if row["side"] != before["side"]]
    for axis in (left, right):
        axis.grid(alpha=0.3)
        axis.legend(fontsize=8)
        for step in changes:
            axis.axvline(step, color="grey", linewidth=0.8, linestyle=":")
    figure.savefig(out, dpi=110)


if __name__ == "__main__":
    if len(sys.argv) < 3:
        raise SystemExit(__doc__)
    draw([Path(name) for name in sys.argv[1:-1]], Path(sys.argv[-1]))
