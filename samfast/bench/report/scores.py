"""Which accuracy may stand beside a speed, and whose it is."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from samfast.bench.report.groups import Group
from samfast.bench.results import Row, place


@dataclass(frozen=True)
class Score:
    """Mean IoU of a recipe.

    point, box  of masks asked for by a click, by a box; None: not measured
    own         of the very weights whose speed it stands beside
    """

    point: float | None
    box: float | None
    own: bool


@dataclass(frozen=True)
class Beside:
    """The accuracies that stand beside a group's rows.

    by_recipe  of `samfast eval` or of other rows, all on the same masks
    words      whose they are; "" if there are none
    """

    by_recipe: dict[str, Score]
    words: str

    def of(self, row: Row) -> Score | None:
        """A row's own accuracy, else its recipe's."""
        if row["miou"] is not None:
            return Score(point=row["miou"], box=None, own=True)
        return self.by_recipe.get(row["recipe"])


def of_rows(rows: Iterable[Row]) -> list[Row]:
    """The accuracies of rows that have one, as `samfast eval` has them: to stand beside another
    model's speed.
    """
    return [
        {
            "recipe": row["recipe"],
            "model": row["model"],
            "weights": row["weights"],
            "images": row["accuracy"]["images"],
            "masks": row["accuracy"]["masks"],
            "point": {name: row["accuracy"][name] for name in ("miou", "filled_box")},
            "environment": row["environment"],
            "by": "samfast bench",
        }
        for row in rows
        if row.get("accuracy")
    ]


def beside(group: Group, scores: Iterable[Row]) -> Beside:
    """The results of one set of masks that say most of a group: of its model, if any, then of most
    recipes.

    Results of other masks are left out, as means over different masks do not compare.
    """
    recipes = {row["recipe"] for row in group.rows}
    model, weights = group.rows[0]["model"], group.rows[0]["weights"]
    sets: dict[tuple[Any, ...], list[Row]] = {}
    for score in scores:
        if score["recipe"] in recipes:
            sets.setdefault((score["model"], score.get("weights"), *masks(score)), []).append(score)
    if not sets:
        return Beside({}, "")
    chosen = max(
        sets.values(),
        key=lambda found: (
            found[0]["model"] == model,
            len({s["recipe"] for s in found}),
            _date(found[-1]),
        ),
    )
    found_model = chosen[0]["model"]
    own = found_model == model and chosen[0].get("weights", weights) == weights != "random"
    here = place(group.rows[0])
    best: dict[str, Row] = {}
    for score in sorted(chosen, key=lambda s: (place(s) == here, _date(s))):
        best[score["recipe"]] = score
    by_recipe = {name: Score(_miou(s, "point"), _miou(s, "box"), own) for name, s in best.items()}
    where = sorted({place(score) for score in best.values()})
    first = chosen[0]
    words = (
        f"mIoU of {found_model} by {first.get('by', 'samfast eval')}: {first.get('images')} "
        "images, "
        f"{first['masks']} masks, on {' and '.join(where)}"
    )
    if not own:
        kind = "random" if weights == "random" else "other"
        words += f"; hollow: the speed is of {model} with {kind} weights"
    return Beside(by_recipe, words)


def masks(score: Row) -> tuple[Any, ...]:
    """Tells whether two results are of the same masks: what filled boxes score depends on nothing
    else.

    And of the same clicks, which the two commands choose by different rules.
    """
    filled = [(score.get(prompt) or {}).get("filled_box") for prompt in ("point", "box")]
    known = next((value for value in filled if value is not None), None)
    return score.get("by"), score.get("images"), score["masks"], known


def _miou(score: Row, prompt: str) -> float | None:
    value = (score.get(prompt) or {}).get("miou")
    return None if value is None else float(value)


def _date(row: Row) -> str:
    return str(row["environment"].get("date"))
