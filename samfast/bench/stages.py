"""The stages of an image, as the engine goes through them: regions of a trace, with no waiting
between them.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn
from torch.profiler import record_function

from samfast.bench.events import Span

if TYPE_CHECKING:
    from samfast.engine import SamFast

REGIONS = ("preprocess", "encoder", "prompts", "decoder", "masks")
"""The stages of an image, in their order; the names of the regions in the trace."""


class Stages:
    """One region at a time: entering a stage ends the one before it.

    spans  those that have ended, in microseconds since 1970, as the allocator of a GPU counts them
    """

    def __init__(self) -> None:
        self.spans: list[Span] = []
        self._open: Any = None
        self._name: str | None = None
        self._began = 0.0

    def enter(self, name: str | None) -> None:
        """Begin stage `name`, or go on with it; None: only end the present one."""
        if name == self._name:
            return
        now = time.time_ns() / 1e3
        if self._open is not None and self._name is not None:
            self._open.__exit__(None, None, None)
            self.spans.append(Span(self._name, self._began, now))
        self._open, self._name, self._began = None, name, now
        if name is not None:
            self._open = record_function(name)
            self._open.__enter__()


@contextmanager
def watched(sam: SamFast, stages: Stages) -> Iterator[None]:
    """Enters the stages where the engine does, so that what is traced is what users run.

    An encoder that is compiled or a CUDA graph does not call the model's modules, nor does a fused
    decoder, and a captured one calls nothing but its graph: it is the engine's own calls that are
    watched. In a graph the prompt encoder and the mask decoder are one, which is the decoder's.

    preprocess  reading and resizing images, and their way to the device; where all in them is
                segmented another thread does that ahead, and it is no stage
    prompts     checking and packing prompts, their way to the device, and the prompt encoder
    masks       everything that is done with the decoder's logits
    """
    encode, decode = sam.encode, sam.decode
    graphs = decode.graphs

    def encoding(pixels: Tensor) -> Tensor:
        stages.enter("encoder")
        features = encode(pixels)
        stages.enter("prompts")
        return features

    def before(module: object, name: str) -> list[Any]:
        if not isinstance(module, nn.Module):
            return []
        return [module.register_forward_pre_hook(lambda *_: stages.enter(name))]

    hooks = before(sam.model.prompt_encoder, "prompts") + before(sam.model.mask_decoder, "decoder")
    hooks += before(getattr(decode, "mask_decoder", None), "decoder")
    sam.encode = encoding  # type: ignore[assignment]
    sam.decode = _Told(decode, stages, "prompts", "masks")  # type: ignore[assignment]
    if graphs is not None:
        decode.graphs = _Told(graphs, stages, "decoder", "decoder")  # type: ignore[assignment]
    try:
        yield
    finally:
        sam.encode, sam.decode = encode, decode
        if graphs is not None:
            decode.graphs = graphs
        stages.enter(None)
        for hook in hooks:
            hook.remove()


class _Told:
    """Something that is called, whose calls begin a stage and end in another; else it is what it
    was.
    """

    def __init__(self, called: Any, stages: Stages, first: str, then: str) -> None:
        self._called, self._stages, self._first, self._then = called, stages, first, then

    def __call__(self, *given: Any, **named: Any) -> Any:
        self._stages.enter(self._first)
        answer = self._called(*given, **named)
        self._stages.enter(self._then)
        return answer

    def __getattr__(self, name: str) -> Any:
        return getattr(self._called, name)
