"""Importing samfast is cheap: design law, measured in fresh interpreters."""

from __future__ import annotations

import json
import subprocess
import sys

FOREIGN = (
    "fastapi",
    "huggingface_hub",
    "matplotlib",
    "openvino",
    "pycocotools",
    "ray",
    "scipy",
    "torchao",
    "torchvision",
    "transformers",
    "triton",
)

PROGRAM = """
import json, sys, time
import torch
before = set(sys.modules)
start = time.process_time()
import samfast
for name in samfast.__all__:
    getattr(samfast, name)
seconds = time.process_time() - start
new = {name.partition(".")[0] for name in set(sys.modules) - before}
print(json.dumps({"seconds": seconds, "new": sorted(new)}))
"""


def fresh(program: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=240
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_import_is_cheap_and_imports_no_optional_package() -> None:
    # CPU time, which other processes on the same cores do not add to. The first may write bytecode.
    reports = [json.loads(fresh(PROGRAM)) for _ in range(2)]
    assert "samfast" in reports[0]["new"]
    assert not set(FOREIGN) & set(reports[0]["new"])
    assert min(report["seconds"] for report in reports) < 1.0


def test_import_changes_no_global_state_of_torch() -> None:
    program = """
import torch
def state():
    return (
        torch.get_default_dtype(), torch.get_num_threads(), torch.is_grad_enabled(),
        torch.initial_seed(), torch.get_float32_matmul_precision(),
        torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.benchmark,
        torch.are_deterministic_algorithms_enabled(),
    )
torch.manual_seed(7)
before = state()
import samfast, samfast.cli.main
for name in samfast.__all__:
    getattr(samfast, name)
assert state() == before, (before, state())
"""
    fresh(program)


COMPILERS = ("sympy", "torch._dynamo", "torch._inductor", "triton")
"""What only `compile` and GPUs need; it takes longer to import than `load` may take."""

CALLS = """
import json, sys
import numpy, torch
photo = numpy.zeros((48, 64, 3), numpy.uint8)
before = set(sys.modules)
import samfast
from samfast.recipes import RECIPES
from samfast.recipes.device_support import refusal
cpu = torch.device("cpu")
names = [
    name for name, recipe in RECIPES.items()
    if refusal(recipe, cpu) is None and recipe.compile is None
]
imported = {}
for name in ("auto", *names):
    for checkpoint in (None, "random"):
        sam = samfast.load(
            "vit_xs", checkpoint=checkpoint, device="cpu", recipe=name, image_size=64
        )
    prompts = samfast.Prompts(points=[[[9, 9]]], labels=[[1]])
    embeddings = sam.embed([photo])
    sam.predict(embeddings, [prompts])
    sam.predict(embeddings, [samfast.Prompts(boxes=[[1, 1, 9, 9]])], multimask=False)
    sam.segment([photo], points_per_side=1)
    imported[name] = sorted(set(sys.modules) - before)
print(json.dumps(imported))
"""


def test_no_recipe_imports_a_compiler_on_a_cpu_before_it_compiles() -> None:
    imported = json.loads(fresh(CALLS))
    assert {"auto", "fp32", "fp32_fused", "bf16_blocked"} <= set(imported)
    for recipe, modules in imported.items():
        wrong = [name for name in modules if name in COMPILERS]
        assert not wrong, recipe
        own = ("samfast", "openvino")
        others = [name for name in modules if not name.startswith(own)]
        assert len(others) < 60, (recipe, others)
