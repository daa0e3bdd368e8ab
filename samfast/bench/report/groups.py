"""Rows that may stand in one chart: of the same model, weights, device, versions and commit."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from samfast.bench.results import Row, ladder_order, place, plain
from samfast.bench.resume import SAME


@dataclass(frozen=True)
class Group:
    """Rows measured alike.

    rows   in the ladder's order, and by batch size
    title  what was measured, and on what
    stamp  versions, commit, settings and dates, in words
    """

    rows: tuple[Row, ...]

    @property
    def title(self) -> str:
        row = self.rows[0]
        return f"{row['model']}, {weights_words(row)}, on {place(row)}"

    @property
    def stamp(self) -> str:
        return stamp_words([row["environment"] for row in self.rows])

    @property
    def batch_sizes(self) -> list[int]:
        return sorted({row["batch_size"] for row in self.rows})

    def measured(self, batch_size: int) -> list[Row]:
        """The rows of a batch size that have figures."""
        return [row for row in self.rows if row["batch_size"] == batch_size and has_figures(row)]

    def without(self) -> list[Row]:
        """The rows that have none: refused, wrong, failed."""
        return [row for row in self.rows if not has_figures(row)]


def grouped(rows: Iterable[Row], alike: Sequence[str] = SAME) -> list[Group]:
    """Groups, in the order in which they first appear; a row that is there twice, in every key,
    counts once.

    alike  the keys of the stamp that rows of a group agree in
    """
    found: dict[str, dict[str, Row]] = {}
    for row in rows:
        same = [row["model"], row["weights"], *(row["environment"].get(key) for key in alike)]
        found.setdefault(_text(same), {}).setdefault(_text(row), row)
    return [Group(tuple(sorted(each.values(), key=_order))) for each in found.values()]


def has_figures(row: Row) -> bool:
    """Whether a row was measured to the end, with the right answers."""
    return row["status"] == "ok" and bool(
        row["encoder_images_per_second"] or row["images_per_second"]
    )


def labels(rows: list[Row]) -> list[str]:
    """A name for each row of a chart; of several rows of one recipe, with their times."""
    names = [label(row["recipe"]) for row in rows]
    return [
        f"{name} {str(row['environment'].get('date'))[5:16]}" if names.count(name) > 1 else name
        for name, row in zip(names, rows, strict=True)
    ]


def label(recipe: str) -> str:
    """A recipe's name as charts have it."""
    return recipe.removeprefix("rival:") + " (rival)" if recipe.startswith("rival:") else recipe


def weights_words(row: Row) -> str:
    """Which weights a row was measured with."""
    return "random weights" if row["weights"] == "random" else f"weights: {row['weights']}"


def stamp_words(environments: list[dict[str, Any]]) -> str:
    """What a group was measured with, and when."""
    one = environments[0]
    names = ("driver", "cuda", "torch", "triton", "samfast")
    words = [f"{name} {one[name]}" for name in names if one.get(name)]
    words.append(_commits(environments))
    words.append(f"TF32 {'on' if one.get('tf32') else 'off'}")
    if one.get("settings"):
        words.append(
            "settings " + " ".join(f"{name}={value}" for name, value in one["settings"].items())
        )
    days = sorted({str(each.get("date"))[:10] for each in environments})
    words.append(days[0] if len(days) == 1 else f"{days[0]} to {days[-1]}")
    return plain(", ".join(words))


def _commits(environments: list[dict[str, Any]]) -> str:
    """The commits, those with the same said of changes together."""
    changes = {
        True: " with uncommitted changes",
        False: "",
        None: ", uncommitted changes not known",
    }
    found: dict[str, dict[str, None]] = {}
    for each in environments:
        commit, dirty = each.get("commit"), each.get("dirty")
        said = changes[dirty if isinstance(dirty, bool) else None]
        found.setdefault(said if commit else "", {})[str(commit)[:7] if commit else "not known"] = (
            None
        )
    count = sum(map(len, found.values()))
    words = [f"{' and '.join(commits)}{said}" for said, commits in found.items()]
    return f"commit{'s' if count > 1 else ''} {' and '.join(words)}"


def _order(row: Row) -> tuple[Any, ...]:
    return (*ladder_order(row["recipe"]), row["batch_size"])


def _text(value: Any) -> str:
    return json.dumps(value, sort_keys=True, default=str)
