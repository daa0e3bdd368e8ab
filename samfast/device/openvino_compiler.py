"""OpenVINO, which is an extra: whether it is installed, and graphs compiled for this CPU."""

from __future__ import annotations

from functools import cache
from importlib.util import find_spec
from typing import Any

import torch

from samfast.errors import MissingExtraError

EXTRA = 'pip install "samfast[openvino]"'

PRECISIONS = {torch.float32: "f32", torch.bfloat16: "bf16"}
"""Of products, by the dtype of a recipe."""


@cache
def openvino_installed() -> bool:
    """Whether the openvino package is installed."""
    return find_spec("openvino") is not None


def need_openvino(feature: str) -> Any:
    """The openvino package; MissingExtraError, naming the feature, if it cannot be imported."""
    try:
        import openvino
    except ImportError as error:
        raise MissingExtraError(
            f"{feature} needs OpenVINO, which cannot be imported ({error}): {EXTRA}"
        ) from error
    return openvino


def compile_graph(graph: Any, dtype: torch.dtype) -> Any:
    """An inference request of the graph on this CPU, with torch's number of threads.

    graph  an `openvino.Model`
    dtype  in which products are computed
    """
    openvino = need_openvino("compiling a graph")
    settings = {
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_PRECISION_HINT": PRECISIONS[dtype],
        "INFERENCE_NUM_THREADS": torch.get_num_threads(),
        # Pinned threads of several processes would share cores while others idle.
        "ENABLE_CPU_PINNING": False,
    }
    return openvino.Core().compile_model(graph, "CPU", settings).create_infer_request()
