"""Weights of the models that the package has none for, such that their masks have shapes.

Random weights say speed; but all of a random decoder's mask is a photo, nothing, or noise, which
takes far longer to write than a mask.
"""

from __future__ import annotations

import torch

import samfast
from samfast.loading import random_weights
from samfast.model.config import CONFIGS


def partly_random_weights(model: str) -> dict[str, torch.Tensor]:
    """A random encoder, with the packaged prompt encoder and mask decoder, which all models
    share.
    """
    state = random_weights(CONFIGS[model]).state_dict()
    packaged = samfast.load("vit_xs", device="cpu", recipe="fp32").model.state_dict()
    for name, value in packaged.items():
        # With the last norm of the encoder, features are of the size that the decoder knows.
        if not name.startswith("image_encoder.") or name.startswith("image_encoder.neck.3."):
            state[name] = value.clone()
    return state
