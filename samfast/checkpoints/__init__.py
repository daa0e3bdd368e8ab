"""Checkpoints: where weights come from, and reading them into a model."""

from samfast.checkpoints.known_checkpoints import KNOWN, Known
from samfast.checkpoints.lookup import listing, resolve

__all__ = ["KNOWN", "Known", "listing", "resolve"]
