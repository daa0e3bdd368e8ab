"""Run a script whose `torch.onnx.export` is that of its time: by tracing, not by torch.export.

    export_by_tracing.py SCRIPT.py ARG...

Meta's script needs it on the original too, since torch 2.9 exports by torch.export unless told
otherwise.
"""

from __future__ import annotations

import functools
import runpy
import sys

import torch

torch.onnx.export = functools.partial(torch.onnx.export, dynamo=False)  # type: ignore[assignment]
del sys.argv[0]
runpy.run_path(sys.argv[0], run_name="__main__")
