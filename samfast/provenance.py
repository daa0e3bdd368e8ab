"""What a model is, where its weights come from, and why its recipe was taken."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from samfast.automatic_masks.options import AutomaticOptions
from samfast.linear.encoder_layers import parameter_count
from samfast.model.sam import Sam
from samfast.recipes import Runtime


@dataclass(frozen=True)
class Provenance:
    """What `SamFast.describe` tells.

    name         of the model, as in `samfast.model.config.CONFIGS`
    recipe_name  in `samfast.recipes.RECIPES`, or "custom"; reason, why it was chosen
    source       of the weights
    fingerprint  of the encoder before the recipe was applied; None: of its present weights
    automatic    the checkpoint's own defaults of `segment`, where they differ from the original's
    """

    name: str
    recipe_name: str = "custom"
    reason: str = "given"
    source: str = "a model in memory"
    fingerprint: str | None = None
    automatic: Mapping[str, float] = field(default_factory=dict)

    def automatic_options(self, given: Mapping[str, Any]) -> AutomaticOptions:
        """The options of `segment`: those given, and defaults for the others."""
        defaults: dict[str, Any] = {"output_mode": "coco_rle", **self.automatic}
        return AutomaticOptions(**{**defaults, **given})

    def describe(self, model: Sam, runtime: Runtime) -> str:
        """The model, its weights, its recipe and the reason for it, in lines for a person."""
        size, batch = model.image_encoder.img_size, runtime.batch_size
        return "\n".join(
            (
                f"model     {self.name}, {parameter_count(model) / 1e6:.1f} M parameters, "
                f"input {size} px",
                f"weights   {self.source}",
                f"device    {model.device}",
                f"recipe    {self.recipe_name} ({runtime.recipe})",
                f"why       {self.reason}",
                f"batch     {batch} image{'s' if batch > 1 else ''} encoded at a time",
                f"encoder   {runtime.encode.describe()}",
                f"decoder   {runtime.decode.describe()}",
            )
        )
