"""The name of an encoder's weights and of the preprocessing, by which embeddings are recognised."""

from __future__ import annotations

from samfast.checkpoints.fingerprint import fingerprint
from samfast.device.parameter_watcher import ParameterWatcher, Snapshot
from samfast.model.sam import Sam

PREPROCESSING = "rgb-uint8/pillow-bilinear-long-side/imagenet-mean-std/zero-pad"
"""How pixels reach the encoder; part of every fingerprint."""


def encoder_fingerprint(sam: Sam) -> str:
    """SHA-256 over the encoder's parameters rounded to bfloat16, and the preprocessing; of weights
    on a GPU this waits for it.
    """
    encoder = sam.image_encoder
    return fingerprint(encoder, f"{PREPROCESSING}/{encoder.img_size}")


class EncoderFingerprint:
    """A model's encoder fingerprint, computed again only after its weights were changed.

    known  the fingerprint of the present weights before a recipe changed them; None: not known
    """

    def __init__(self, sam: Sam, known: str | None = None) -> None:
        self._sam = sam
        self._watch = ParameterWatcher(sam.image_encoder)
        self._known: tuple[Snapshot, str] | None = None
        if known is not None:
            self._known = self._watch.snapshot(), known

    def __call__(self) -> str:
        """The fingerprint of the present weights."""
        if self._watch.module is not self._sam.image_encoder:
            self._watch = ParameterWatcher(self._sam.image_encoder)
        marks = self._watch.snapshot()
        if self._known is None or self._known[0] != marks:
            self._known = marks, encoder_fingerprint(self._sam)
        return self._known[1]
