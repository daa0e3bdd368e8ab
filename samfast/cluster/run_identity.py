"""What the results of a run depend on: the engine, the work, the source."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

import samfast
from samfast.cluster.answers import Everything, PromptedWork, Work
from samfast.cluster.shards import RunIdentity
from samfast.cluster.sources import Source
from samfast.engine import SamFast
from samfast.recipes.evidence import checkpoint_fingerprint


@dataclass(frozen=True)
class EngineIdentity:
    """What results depend on of a SamFast. Small, and can be pickled."""

    model: str
    weights: str
    recipe: str
    settings: str
    device: str


def engine_identity(sam: SamFast) -> EngineIdentity:
    """The identity of an engine; hashes all weights, which takes a moment."""
    return EngineIdentity(
        sam.name,
        checkpoint_fingerprint(sam.model, sam.fingerprint),
        sam.recipe_name,
        str(sam.recipe),
        sam.device.type,
    )


def versions() -> str:
    """The programs that results depend on."""
    return f"samfast {samfast.__version__}, torch {torch.__version__}"


def run_identity(
    engine: EngineIdentity, work: Work, source: Source, shard_size: int
) -> RunIdentity:
    """The identity of a run."""
    return RunIdentity(
        model=engine.model,
        weights=engine.weights,
        recipe=engine.recipe,
        settings=engine.settings,
        device=engine.device,
        work=work.kind,
        options=work_options(work),
        source=source.digest,
        entries=len(source.entries),
        shard_size=shard_size,
        versions=versions(),
    )


def work_options(work: Work) -> dict[str, Any]:
    """The options of a work, as JSON can hold them."""
    if isinstance(work, Everything):
        return dict(work.options)
    if isinstance(work, PromptedWork):
        return {"prompts": work.digest, "all_masks": work.all_masks, "text_ids": work.text_ids}
    return {}
