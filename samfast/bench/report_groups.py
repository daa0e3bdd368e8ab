"""Group rows by the conditions of their measurement; a chart shows one group."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from samfast.bench.environment import SAME_RUN
from samfast.bench.results import Row, date, has_figures, is_rival, ladder_order, place, plain


@dataclass(frozen=True)
class Group:
    """Rows of one model, weights, device, versions and commit, in the ladder's order."""

    rows: tuple[Row, ...]

    @property
    def title(self) -> str:
        """Model, weights and device."""
        row = self.rows[0]
        weights = "random weights" if row["weights"] == "random" else f"weights: {row['weights']}"
        return f"{row['model']}, {weights}, on {place(row)}"

    @property
    def stamp(self) -> str:
        """Versions, commit, settings and dates."""
        stamps = [row["environment"] for row in self.rows]
        first = stamps[0]
        names = ("driver", "cuda", "torch", "triton", "samfast")
        words = [f"{name} {first[name]}" for name in names if first.get(name)]
        changes = {True: " with uncommitted changes", False: "", None: " (changes unknown)"}
        commits = dict.fromkeys(
            str(each["commit"])[:7] + changes[each.get("dirty")]
            if each.get("commit")
            else "unknown"
            for each in stamps
        )
        words.append(f"commit{'s' if len(commits) > 1 else ''} {' and '.join(commits)}")
        words.append(f"TF32 {'on' if first.get('tf32') else 'off'}")
        if first.get("settings"):
            words.append(f"settings {' '.join(f'{k}={v}' for k, v in first['settings'].items())}")
        days = sorted({date(row)[:10] for row in self.rows})
        words.append(days[0] if len(days) == 1 else f"{days[0]} to {days[-1]}")
        return plain(", ".join(words))

    @property
    def batch_sizes(self) -> list[int]:
        """Each batch size once, ascending."""
        return sorted({row["batch_size"] for row in self.rows})

    def measured(self, batch_size: int) -> list[Row]:
        """The rows of a batch size that have figures."""
        return [row for row in self.rows if row["batch_size"] == batch_size and has_figures(row)]

    def unmeasured(self, batch_size: int | None = None) -> list[Row]:
        """The rows without figures (refused, wrong, failed), of one batch size or of all."""
        sizes = self.batch_sizes if batch_size is None else [batch_size]
        return [row for row in self.rows if row["batch_size"] in sizes and not has_figures(row)]


def grouped(rows: Iterable[Row], alike: Sequence[str] = SAME_RUN) -> list[Group]:
    """The groups in order of first appearance; a row that appears twice counts once.

    alike  keys of the stamp in which the rows of a group agree
    """
    groups: dict[str, dict[str, Row]] = defaultdict(dict)
    for row in rows:
        key = [row["model"], row["weights"], *(row["environment"].get(name) for name in alike)]
        groups[_text(key)].setdefault(_text(row), row)
    return [
        Group(
            tuple(
                sorted(
                    group.values(),
                    key=lambda row: (*ladder_order(row["recipe"]), row["batch_size"]),
                )
            )
        )
        for group in groups.values()
    ]


def labels(rows: Sequence[Row]) -> list[str]:
    """A name for each row of a chart; several rows of one recipe are told apart by their dates."""
    names = [
        row["recipe"].removeprefix("rival:") + (" (rival)" if is_rival(row["recipe"]) else "")
        for row in rows
    ]
    return [
        f"{name} {date(row)[5:16]}" if names.count(name) > 1 else name
        for name, row in zip(names, rows, strict=True)
    ]


def _text(value: Any) -> str:
    return json.dumps(value, sort_keys=True, default=str)
