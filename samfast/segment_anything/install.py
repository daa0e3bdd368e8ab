"""`import segment_anything` as samfast."""

from __future__ import annotations

import importlib
import sys

from samfast.errors import UsageError

_MODULES = (
    "",
    ".automatic_mask_generator",
    ".build_sam",
    ".modeling",
    ".modeling.common",
    ".modeling.image_encoder",
    ".modeling.mask_decoder",
    ".modeling.prompt_encoder",
    ".modeling.sam",
    ".modeling.transformer",
    ".predictor",
    ".utils",
    ".utils.amg",
    ".utils.onnx",
    ".utils.transforms",
)


def install_as_segment_anything() -> None:
    """Make `import segment_anything`, and every module of its 1.0, mean samfast in this process.

    Call it before anything imports segment_anything; once or more often is the same. If the
    original has been imported already this raises UsageError: names that were taken from it would
    stay the original's, and half a project would run on each.
    """
    modules = {
        "segment_anything" + name: importlib.import_module("samfast.segment_anything" + name)
        for name in _MODULES
    }
    for name, present in sys.modules.items():
        ours = modules.get(name)
        if name.partition(".")[0] == "segment_anything" and present is not ours:
            place = getattr(present, "__file__", None) or "elsewhere"
            raise UsageError(
                f"{name} has been imported already, from {place}; "
                "call samfast.install_as_segment_anything() before anything imports "
                "segment_anything"
            )
    sys.modules.update(modules)
