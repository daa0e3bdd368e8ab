"""What the results of a run depend on: the engine, the work, the source."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

import samfast
from samfast.cluster.shards import RunIdentity
from samfast.cluster.sources import Source
from samfast.cluster.work import Everything, PromptedWork, Work

if TYPE_CHECKING:
    from samfast.engine import SamFast


@dataclass(frozen=True)
class EngineIdentity:
    """What results depend on of a SamFast. Small, and can be pickled.

    automatic  the checkpoint's own defaults of everything in an image
    """

    model: str
    weights: str
    recipe: str
    settings: str
    device: str
    automatic: Mapping[str, Any]


def engine_identity(sam: SamFast) -> EngineIdentity:
    """The identity of an engine; hashes all weights, which takes a moment."""
    from samfast.recipes.evidence import checkpoint_fingerprint

    return EngineIdentity(
        sam.name,
        checkpoint_fingerprint(sam.model, sam.fingerprint),
        sam.recipe_name,
        str(sam.recipe),
        sam.device.type,
        dict(sam.provenance.automatic),
    )


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
        options=_options(work, engine.automatic),
        source=source.digest,
        entries=len(source.entries),
        shard_size=shard_size,
        versions=versions(),
    )


def versions() -> str:
    """The programs that results depend on; neither is imported for that."""
    return f"samfast {samfast.__version__}, torch {version('torch')}"


def _options(work: Work, automatic: Mapping[str, Any]) -> dict[str, Any]:
    """The options that are in force, as JSON can hold them."""
    if isinstance(work, Everything):
        return {**automatic, **work.options}
    if isinstance(work, PromptedWork):
        return {
            "prompts": work.digest,
            "all_masks": work.all_masks,
            "text_ids": work.text_ids,
            "annotation_ids": work.annotation_ids,
        }
    return {}
