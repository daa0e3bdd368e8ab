"""Comparing two files of `samfast bench`: what fell by more than the runs of one row differ."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from samfast.bench.environment import SAME_RUN
from samfast.bench.results import Row, date, ladder_order, place, spread_bounds

KEY = ("model", "weights", "recipe", "batch_size", "place")
"""Rows that agree in these are compared; place is the GPU or CPU."""

SCORED_ON = ("annotations", "point_rule", "min_area", "limit")
"""Keys of a row's `accuracy` that name the masks it was scored on; other masks do not compare."""


@dataclass(frozen=True)
class Margin:
    """By how much a figure may get worse: `share` of it, or `least` if that is more.

    scored  compared only where both rows were scored on the same masks
    """

    more_is_better: bool
    share: float = 0.0
    least: float = 0.0
    scored: bool = False


MARGINS = {
    "encoder_images_per_second": None,
    "images_per_second": None,
    "peak_memory_bytes": Margin(False, share=0.02),
    "miou": Margin(True, least=0.001, scored=True),
    "mask_iou": Margin(True, least=0.001, scored=True),
    "max_relative_error": Margin(False, share=0.25, least=1e-6),
}
"""Memory and accuracy are measured once, so they have fixed margins: memory for the allocator's
rounding, mean IoU a tenth of a point, the error for sums in another order. None: a speed, whose
margin is the spread of both rows' runs."""


def compare(old: Iterable[Row], new: Iterable[Row]) -> dict[str, Any]:
    """The comparison of rows as `results.read` returns them, ready for JSON.

    returns  "fell": whether anything did. "rows": those of both files, in the ladder's order, each
             with the keys of KEY, "old_status" and "new_status", "old_spread" and "new_spread",
             "measures" ({name: {"old", "new", "ratio", "fell"}}), "missing" (measures that only the
             old row has) and "fell" (names; "status" if it is no longer ok). "only_old",
             "only_new": rows of one file. "differences": {key: {"old", "new"}} of the stamps'
             values, as texts. Of several rows of one key the newest is compared
    """
    before, after = (
        {tuple(_named(row).values()): row for row in sorted(rows, key=date)} for rows in (old, new)
    )
    keys = sorted(before.keys() | after.keys(), key=_order)
    rows = [_pair(before[key], after[key]) for key in keys if key in before and key in after]
    return {
        "fell": any(row["fell"] for row in rows),
        "rows": rows,
        "only_old": [_named(before[key]) for key in keys if key not in after],
        "only_new": [_named(after[key]) for key in keys if key not in before],
        "differences": _differences(before.values(), after.values()),
    }


def _pair(old: Row, new: Row) -> dict[str, Any]:
    measures, missing = {}, []
    one, other = (row.get("accuracy") or {} for row in (old, new))
    same_masks = all(one.get(key) == other.get(key) for key in SCORED_ON)
    for name, margin in MARGINS.items() if old["status"] == new["status"] == "ok" else ():
        if old[name] is not None and new[name] is None:
            missing.append(name)
        elif old[name] is not None and (same_masks or margin is None or not margin.scored):
            measures[name] = {
                "old": old[name],
                "new": new[name],
                "ratio": new[name] / old[name] if old[name] else None,
                "fell": _fell(name, margin, old, new),
            }
    fell = [name for name, values in measures.items() if values["fell"]]
    if old["status"] == "ok" and new["status"] != "ok":
        fell.append("status")
    return {
        **_named(old),
        "old_status": old["status"],
        "new_status": new["status"],
        "old_spread": old["spread"],
        "new_spread": new["spread"],
        "measures": measures,
        "missing": missing,
        "fell": fell,
    }


def _fell(name: str, margin: Margin | None, old: Row, new: Row) -> bool:
    """Whether the new figure is worse by more than chance may make it."""
    before, after = float(old[name]), float(new[name])
    if margin is None:  # the whiskers of the charts must not overlap
        return spread_bounds(after, new["spread"])[1] < spread_bounds(before, old["spread"])[0]
    loss = before - after if margin.more_is_better else after - before
    return loss > max(margin.share * before, margin.least)


def _named(row: Row) -> dict[str, Any]:
    return {key: place(row) if key == "place" else row[key] for key in KEY}


def _differences(old: Iterable[Row], new: Iterable[Row]) -> dict[str, Any]:
    """The values of the stamps' keys in which the two files differ."""
    before, after = (
        {key: sorted({str(row["environment"].get(key)) for row in rows}) for key in SAME_RUN}
        for rows in (old, new)
    )
    return {
        key: {"old": before[key], "new": after[key]}
        for key in SAME_RUN
        if before[key] != after[key]
    }


def _order(key: tuple[Any, ...]) -> tuple[Any, ...]:
    model, weights, recipe, batch_size, device = key
    return (model, weights, device, ladder_order(recipe), recipe, batch_size)
