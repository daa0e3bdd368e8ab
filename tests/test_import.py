"""Importing samfast is cheap: design law, measured in fresh interpreters."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

FOREIGN = (
    "fastapi",
    "fsspec",
    "huggingface_hub",
    "matplotlib",
    "openvino",
    "pyarrow",
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


def fresh(program: str, *arguments: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", program, *arguments], capture_output=True, text=True, timeout=240
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
kind = sys.argv[1]
photo = numpy.zeros((48, 64, 3), numpy.uint8)
before = set(sys.modules)
import samfast
from samfast.recipes import RECIPES
from samfast.recipes.device_support import refusal
device = torch.device(kind)
names = [
    name for name, recipe in RECIPES.items()
    if refusal(recipe, device) is None and recipe.compile is None
]
imported = {}
for name in ("auto", *names):
    for checkpoint in (None, "random"):
        sam = samfast.load(
            "vit_xs", checkpoint=checkpoint, device=kind, recipe=name, image_size=64
        )
    prompts = samfast.Prompts(points=[[[9, 9]]], labels=[[1]])
    embeddings = sam.embed([photo])
    sam.predict(embeddings, [prompts])
    sam.predict(embeddings, [samfast.Prompts(boxes=[[1, 1, 9, 9]])], multimask=False)
    sam.segment([photo], points_per_side=1)
    list(sam.segment_each([photo, photo], points_per_side=1))
    list(sam.predict_each([photo, photo], [prompts, prompts], output_mode="coco_rle"))
    imported[name] = sorted(set(sys.modules) - before)
print(json.dumps(imported))
"""


COMMANDS = """
import contextlib, io, json, sys
import PIL.Image, torch
before = set(sys.modules)
from samfast.cli.main import main
folder, kind = sys.argv[1:]
for name in "ab":
    PIL.Image.new("RGB", (48, 64)).save(f"{folder}/{name}.png")
common = ["segment", folder, "--out", f"{folder}/out", "--device", kind]
codes, imported = [], {}
with contextlib.redirect_stdout(io.StringIO()):
    for options in (["--box", "1,1,9,9"], ["--points-per-side", "1"]):
        codes.append(main(common + options))
        imported[options[0]] = sorted(set(sys.modules) - before)
assert codes == [0, 0]
print(json.dumps(imported))
"""


def check_imported(
    imported: dict[str, list[str]], most: int, allowed: tuple[str, ...] = ()
) -> None:
    """No compiler but the allowed ones, hardly any modules of torch, and at most so many others."""
    for what, modules in imported.items():
        compilers = [name for name in COMPILERS if name not in allowed]
        assert not [name for name in modules if name in compilers], what
        ours = ("samfast", "openvino", *allowed)
        foreign = [name for name in modules if name.partition(".")[0] not in ours]
        assert len(foreign) < most, (what, foreign)


def test_no_recipe_imports_a_compiler_on_a_cpu_before_it_compiles() -> None:
    imported = json.loads(fresh(CALLS, "cpu"))
    assert {"auto", "fp32", "fp32_fused", "bf16_blocked"} <= set(imported)
    check_imported(imported, 60)


def test_the_command_imports_no_compiler_on_a_cpu(tmp_path: Path) -> None:
    check_imported(json.loads(fresh(COMMANDS, str(tmp_path), "cpu")), 60)
