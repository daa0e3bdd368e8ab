"""The kernels themselves: on a GPU if there is one, else under Triton's interpreter.

The interpreter must be chosen before a kernel is defined, that is before its module is imported.
"""

from __future__ import annotations

import os

import torch

if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"
