"""Cellpose's network: write random weights, or read them strictly, and run it once.

cellpose_network.py WEIGHTS.pth OUT.npz
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import torch
from cellpose.vit import CPSAM
from torch import nn

SIDE = 8
"""Pixels along a token's side."""


def random_weights(network: CPSAM) -> None:
    """Random weights with which the network finds cells: the tokens that it likes.

    In each token the flows lead to its middle, and the encoder decides whether it is a cell.
    """
    for name, parameter in network.named_parameters():
        if "rel_pos" in name or "pos_embed" in name:  # zero in a new network
            parameter.add_(0.2 * torch.randn(parameter.shape))
    head: nn.Conv2d = network.out
    weight, bias = (each.view(3, SIDE, SIDE, -1) for each in (head.weight, head.bias))
    weight[:2] *= 0.02
    weight[2] = weight[2, 0, 0]
    to_middle = (torch.arange(SIDE) - (SIDE - 1) / 2) * -1.2
    bias[0, ..., 0], bias[1, ..., 0] = to_middle[:, None], to_middle[None]
    bias[2] = 0


def main(weights: str, out: str) -> None:
    torch.manual_seed(0)
    network = CPSAM().eval()
    with torch.no_grad():
        if Path(weights).exists():
            network.load_model(weights, device=torch.device("cpu"), strict=True)
        else:
            random_weights(network)
            network.save_model(weights)
        image = torch.randn(1, 3, 256, 256, generator=torch.Generator().manual_seed(1))
        flows, _ = network(image)
    np.savez(out, flows=flows.numpy())


if __name__ == "__main__":
    main(*sys.argv[1:])
