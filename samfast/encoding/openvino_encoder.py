"""OpenVinoEncoder: the plain image encoder, compiled by OpenVINO for a CPU."""

from __future__ import annotations

import threading
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from samfast.device.machine import installed_version
from samfast.device.openvino_compiler import compile_graph, need_openvino
from samfast.device.parameter_watcher import ParameterWatcher, Snapshot
from samfast.encoding.known_blocks import check_blocks
from samfast.encoding.openvino_graph import encoder_graph
from samfast.model.image_encoder import ImageEncoderViT


class OpenVinoEncoder(nn.Module):
    """As `ImageEncoderViT`, with the weights of that module; its attention is the graph's own.

    The graph is compiled at the first call, which takes half a second for ViT-B, and again when
    weights or torch's number of threads have changed since. Images go through it one by one.

    Raises UnsupportedRecipeError for an encoder with other norms or activations than SAM's,
    MissingExtraError if OpenVINO cannot be imported.
    """

    def __init__(self, encoder: ImageEncoderViT) -> None:
        super().__init__()
        check_blocks(encoder, "products='openvino'")
        need_openvino("products='openvino'")
        self.encoder = encoder
        self._watcher = ParameterWatcher(encoder)
        self._lock = threading.Lock()
        self._compiled: _Compiled | None = None

    def forward(self, pixels: Tensor) -> Tensor:
        """(B, 3, S, S) pixels -> (B, C, S / patch, S / patch), channels last in memory."""
        with self._lock:  # a request runs one image at a time
            compiled = self._compiled
            if compiled is None or not compiled.is_current(self._watcher):
                self._compiled = None  # before the next one is made: it holds packed weights
                self._compiled = compiled = _compile(self.encoder, self._watcher)
            return torch.cat([self._encode(image, compiled) for image in torch.split(pixels, 1)])

    def describe(self) -> str:
        """How the encoder is run, in words."""
        return f"compiled by OpenVINO {installed_version('openvino')}"

    def _encode(self, pixels: Tensor, compiled: _Compiled) -> Tensor:
        """One image, (1, 3, S, S)."""
        proj: Any = self.encoder.patch_embed.proj
        rows = compiled.run(pixels).to(proj.weight.dtype)
        side = pixels.shape[-1] // proj.kernel_size[0]
        return rows.view(1, side, side, -1).permute(0, 3, 1, 2)


@dataclass(frozen=True)
class _Compiled:
    """A compiled encoder, and what it was compiled from.

    request   OpenVINO's, of one image
    memory    the tensors that are the constants of its graph
    snapshot  addresses of the encoder's tensors, and torch's counts of writes to them
    copies    of those that were made in inference mode, of which writes are not counted
    threads   torch's number of threads
    """

    request: Any
    memory: list[Tensor]
    snapshot: Snapshot
    copies: list[Tensor]
    threads: int

    def is_current(self, watcher: ParameterWatcher) -> bool:
        """Whether compiling again would make the same."""
        return (
            self.threads == torch.get_num_threads()
            and self.snapshot == _snapshot(watcher)
            and all(map(torch.equal, self.copies, _uncounted(watcher)))
        )

    def run(self, pixels: Tensor) -> Tensor:
        """(1, 3, S, S) -> (tokens, C) float32, which later calls do not overwrite."""
        (rows,) = self.request.infer([pixels.float().contiguous().numpy()]).values()
        return torch.from_numpy(np.array(rows))


def _compile(encoder: ImageEncoderViT, watcher: ParameterWatcher) -> _Compiled:
    weight: Any = encoder.patch_embed.proj.weight
    copies = [tensor.clone() for tensor in _uncounted(watcher)]
    snapshot, threads = _snapshot(watcher), torch.get_num_threads()
    graph, memory = encoder_graph(encoder, weight.dtype)
    request = compile_graph(graph, weight.dtype)
    return _Compiled(request, memory, snapshot, copies, threads)


def _snapshot(watcher: ParameterWatcher) -> Snapshot:
    """Of all tensors; writes where torch counts them."""
    counted = (tensor for tensor in watcher.tensors if not tensor.is_inference())
    return watcher.addresses(), tuple(tensor._version for tensor in counted)


def _uncounted(watcher: ParameterWatcher) -> list[Tensor]:
    """The encoder's tensors that were made in inference mode."""
    return [tensor for tensor in watcher.tensors if tensor.is_inference()]
