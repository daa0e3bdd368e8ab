"""Rows that may share a chart, and the accuracy that may stand beside their speed."""

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
        return stamp_text(self.rows)

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


def stamp_text(rows: Sequence[Row]) -> str:
    """What rows were measured with, and when."""
    stamps = [row["environment"] for row in rows]
    first = stamps[0]
    names = ("driver", "cuda", "torch", "triton", "samfast")
    words = [f"{name} {first[name]}" for name in names if first.get(name)]
    changes = {True: " with uncommitted changes", False: "", None: " (changes unknown)"}
    commits = dict.fromkeys(
        str(each["commit"])[:7] + changes[each.get("dirty")] if each.get("commit") else "unknown"
        for each in stamps
    )
    words.append(f"commit{'s' if len(commits) > 1 else ''} {' and '.join(commits)}")
    words.append(f"TF32 {'on' if first.get('tf32') else 'off'}")
    if first.get("settings"):
        words.append(f"settings {' '.join(f'{k}={v}' for k, v in first['settings'].items())}")
    days = sorted({date(row)[:10] for row in rows})
    words.append(days[0] if len(days) == 1 else f"{days[0]} to {days[-1]}")
    return plain(", ".join(words))


@dataclass(frozen=True)
class Score:
    """A recipe's mean IoU by a click and by a box; same_weights: of the weights that were timed."""

    point: float | None
    box: float | None
    same_weights: bool


@dataclass(frozen=True)
class Accuracy:
    """The accuracy beside a group's rows: scores of one set of masks, and whose they are."""

    by_recipe: dict[str, Score]
    caption: str = ""

    def of(self, row: Row) -> Score | None:
        """The row's accuracy, else its recipe's."""
        if row["miou"] is not None:
            return Score(point=row["miou"], box=None, same_weights=True)
        return self.by_recipe.get(row["recipe"])


def scores_of(rows: Iterable[Row]) -> list[Row]:
    """The accuracies of rows of `samfast bench`, in the form that `samfast eval` has."""
    return [
        {
            **{key: row[key] for key in ("recipe", "model", "weights", "environment")},
            "images": row["accuracy"]["images"],
            "masks": row["accuracy"]["masks"],
            "point": {name: row["accuracy"][name] for name in ("miou", "filled_box")},
            "by": "samfast bench",
        }
        for row in rows
        if row.get("accuracy")
    ]


def accuracy_beside(group: Group, scores: Iterable[Row]) -> Accuracy:
    """The accuracy for a group: its model's if there is any, then that of most recipes.

    Only scores of one set of masks are taken, as means over different masks do not compare.
    """
    first = group.rows[0]
    recipes = {row["recipe"] for row in group.rows}
    sets: dict[tuple[Any, ...], list[Row]] = defaultdict(list)
    for score in scores:
        if score["recipe"] in recipes:
            sets[score["model"], score.get("weights"), *_masks(score)].append(score)
    if not sets:
        return Accuracy({})

    def relevance(rows: list[Row]) -> tuple[Any, ...]:
        same_model = rows[0]["model"] == first["model"]
        return same_model, len({score["recipe"] for score in rows}), date(rows[-1])

    chosen = max(sets.values(), key=relevance)
    model, weights = chosen[0]["model"], chosen[0].get("weights", first["weights"])
    same_weights = model == first["model"] and weights == first["weights"] != "random"
    here = place(first)
    # The last one counts: the newest of those on the group's device, if there are any.
    chosen.sort(key=lambda score: (place(score) == here, date(score)))
    best = {score["recipe"]: score for score in chosen}
    by_recipe = {
        name: Score(miou(score, "point"), miou(score, "box"), same_weights)
        for name, score in best.items()
    }
    caption = (
        f"mIoU of {model} by {chosen[0].get('by', 'samfast eval')}: {chosen[0].get('images')} "
        f"images, {chosen[0]['masks']} masks, on {' and '.join(sorted(set(map(place, chosen))))}"
    )
    if not same_weights:
        kind = "random" if first["weights"] == "random" else "other"
        caption += f"; hollow: the speed is of {first['model']} with {kind} weights"
    return Accuracy(by_recipe, caption)


def _masks(score: Row) -> tuple[Any, ...]:
    """Names a set of masks and clicks: the score of filled boxes depends on the masks alone."""
    filled = [(score.get(prompt) or {}).get("filled_box") for prompt in ("point", "box")]
    known = next((value for value in filled if value is not None), None)
    return score.get("by"), score.get("images"), score["masks"], known


def miou(score: Row, prompt: str) -> float | None:
    """A score's mean IoU by that kind of prompt."""
    return (score.get(prompt) or {}).get("miou")


def _text(value: Any) -> str:
    return json.dumps(value, sort_keys=True, default=str)
