"""On a GPU no recipe imports PyTorch's compiler before it compiles, nor does the command."""

from __future__ import annotations

import json

import pytest
import torch

from tests.test_import import CALLS, COMMANDS, check_imported, fresh

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU"),
]


def test_no_recipe_imports_pytorchs_compiler_before_it_compiles():
    imported = json.loads(fresh(CALLS, "cuda"))
    assert {"auto", "fp32", "fused"} <= set(imported)
    check_imported(imported, 200, allowed=("triton",))


def test_the_command_imports_no_compiler_of_pytorch(tmp_path):
    check_imported(json.loads(fresh(COMMANDS, str(tmp_path), "cuda")), 200, allowed=("triton",))
