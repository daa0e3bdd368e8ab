"""Two files of `samfast bench` against each other: what fell, by more than the runs of one row
differ.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from samfast.bench.results import Row, ladder_order, place, spread_bounds
from samfast.bench.resume import SAME

KEY = ("model", "weights", "recipe", "batch_size", "place")
"""What two rows must agree in to be compared; place is the GPU, on a CPU that CPU."""


SCORED = ("annotations", "point_rule", "min_area", "limit")
"""What says on which masks a row was scored; means over different masks do not compare."""


@dataclass(frozen=True)
class Measure:
    """A figure of a row.

    more    whether more of it is better
    spread  whether the runs' spread is its own; else it may fall by `share` of it, or by `least` if
            that is more
    on      keys of the rows' `accuracy` that must agree, or it is not compared
    """

    name: str
    more: bool
    spread: bool = False
    share: float = 0.0
    least: float = 0.0
    on: tuple[str, ...] = ()

    def fell(self, old: Row, new: Row) -> bool:
        """Whether the new figure is worse than the old one by more than may be chance."""
        before, after = float(old[self.name]), float(new[self.name])
        if self.spread:
            # The whiskers of the charts, which hold half of the spread on each side, must part.
            return spread_bounds(after, new["spread"])[1] < spread_bounds(before, old["spread"])[0]
        loss = before - after if self.more else after - before
        return loss > max(self.share * before, self.least)

    def alike(self, old: Row, new: Row) -> bool:
        """Whether both rows measured it on the same."""
        one, other = (row.get("accuracy") or {} for row in (old, new))
        return all(one.get(key) == other.get(key) for key in self.on)


MEASURES = (
    Measure("encoder_images_per_second", more=True, spread=True),
    Measure("images_per_second", more=True, spread=True),
    Measure("peak_memory_bytes", more=False, share=0.02),
    Measure("miou", more=True, least=0.001, on=SCORED),
    Measure("mask_iou", more=True, least=0.001, on=SCORED),
    Measure("max_relative_error", more=False, share=0.25, least=1e-6),
)
"""What is compared. Memory and accuracy are measured once and have no spread: memory may grow by
the allocator's remainders, mean IoUs fall by a tenth of a point, and the error grow as another
order of sums makes it."""


def compare(old: Iterable[Row], new: Iterable[Row]) -> dict[str, Any]:
    """The comparison of rows as `samfast.bench.results.read` returns them, ready for JSON.

    returns  "fell": whether anything did. "rows": of both files, in the ladder's order, each with
             the keys of KEY, "old_status" and "new_status", "measures" ({name: {"old", "new",
             "ratio", "fell"}}, of what both have), "missing" (measures that only the old row has)
             and "fell" (names; "status" if it is no longer ok). "only_old", "only_new": rows of one
             file. "differences": {key: {"old", "new"}} of the stamps' keys, each the values there
             are. "repeated": rows of which a file has several, the newest of which counts
    """
    before, twice_before = _newest(old)
    after, twice_after = _newest(new)
    rows = [
        _pair(before[key], after[key]) for key in sorted(before.keys() & after.keys(), key=_order)
    ]
    return {
        "fell": any(row["fell"] for row in rows),
        "rows": rows,
        "only_old": [
            _named(before[key]) for key in sorted(before.keys() - after.keys(), key=_order)
        ],
        "only_new": [
            _named(after[key]) for key in sorted(after.keys() - before.keys(), key=_order)
        ],
        "differences": _differences(before.values(), after.values()),
        "repeated": {
            "old": [_named(row) for row in twice_before],
            "new": [_named(row) for row in twice_after],
        },
    }


def _pair(old: Row, new: Row) -> dict[str, Any]:
    both = old["status"] == new["status"] == "ok"
    measures, missing = {}, []
    for measure in MEASURES if both else ():
        name = measure.name
        if old[name] is None or (new[name] is not None and not measure.alike(old, new)):
            continue
        if new[name] is None:
            missing.append(name)
            continue
        measures[name] = {
            "old": old[name],
            "new": new[name],
            "ratio": new[name] / old[name] if old[name] else None,
            "fell": measure.fell(old, new),
        }
    fell = [name for name, found in measures.items() if found["fell"]]
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


def _newest(rows: Iterable[Row]) -> tuple[dict[tuple[Any, ...], Row], list[Row]]:
    """Rows by their key, of several of one key the newest; and one row of each key that there was
    more than once.
    """
    found: dict[tuple[Any, ...], Row] = {}
    repeated = {}
    for row in rows:
        key = tuple(_named(row).values())
        if key in found:
            repeated[key] = row
        if key not in found or _date(found[key]) <= _date(row):
            found[key] = row
    return found, list(repeated.values())


def _named(row: Row) -> dict[str, Any]:
    return {key: place(row) if key == "place" else row[key] for key in KEY}


def _differences(old: Iterable[Row], new: Iterable[Row]) -> dict[str, Any]:
    """What the stamps of the two files do not agree in."""
    stamps = [[row["environment"] for row in rows] for rows in (old, new)]
    found = {}
    for key in SAME:
        values: tuple[list[Any], list[Any]] = [], []
        for into, side in zip(values, stamps, strict=True):
            for stamp in side:
                if stamp.get(key) not in into:
                    into.append(stamp.get(key))
        one, other = values
        if any(value not in other for value in one) or any(value not in one for value in other):
            found[key] = {"old": values[0], "new": values[1]}
    return found


def _order(key: tuple[Any, ...]) -> tuple[Any, ...]:
    named = dict(zip(KEY, key, strict=True))
    recipe = named["recipe"]
    return (
        *(str(named[k]) for k in ("model", "weights", "place")),
        ladder_order(recipe),
        recipe,
        named["batch_size"],
    )


def _date(row: Row) -> str:
    return str(row["environment"].get("date"))
