"""Run the code of one of Meta's notebooks with the packaged model, and keep its last answers.

run_notebook.py NOTEBOOK.ipynb CHECKPOINT OUT.npz
"""

from __future__ import annotations

import functools
import json
import re
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch

REPLACED = (
    (r"(?m)^(\s*)!.*$", r"\1pass"),  # shell commands, which only Colab needs
    (r"'cuda'|\"cuda\"", "'cpu'"),
    (r"'vit_h'|\"vit_h\"", "'vit_xs'"),
    (r"optimize_model=True,", ""),  # onnxruntime has no such option any more
)


def main(notebook: str, checkpoint: str, out: str) -> None:
    # The ONNX notebook exports by tracing, torch's default when it was written.
    torch.onnx.export = functools.partial(  # type: ignore[assignment]
        torch.onnx.export, dynamo=False
    )
    cells = json.loads(Path(notebook).read_text(encoding="utf-8"))["cells"]
    names: dict[str, Any] = {"__name__": "__main__"}
    replaced = (*REPLACED, (r"['\"]sam_vit_h_\w+\.pth['\"]", repr(checkpoint)))
    for cell in cells:
        if cell["cell_type"] == "code":
            code = "".join(cell["source"])
            for pattern, text in replaced:
                code = re.sub(pattern, text, code)
            exec(compile(code, notebook, "exec"), names)
    kept = {name: names.get(name) for name in ("masks", "scores", "low_res_logits")}
    arrays = {name: np.asarray(value) for name, value in kept.items() if value is not None}
    np.savez(out, embedding=names["predictor"].get_image_embedding().numpy(), **arrays)


if __name__ == "__main__":
    main(*sys.argv[1:])
