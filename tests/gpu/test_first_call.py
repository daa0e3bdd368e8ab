"""The first call in a process: kernels are compiled side by side, and answers are the same."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU"),
]

ROOT = Path(__file__).resolve().parents[2]

PROGRAM = """
import hashlib, json, sys, threading, time
import numpy as np
import samfast
from samfast.device import cuda_graphs, dry_run

compiled, seconds = [], []
if sys.argv[1] == "dry":
    load = dry_run._load

    def note(kernel, device):
        compiled.append(threading.current_thread().name)
        load(kernel, device)

    dry_run._load = note
else:
    cuda_graphs.dry_run = lambda call, device: None
begin = time.perf_counter()
sam = samfast.load("vit_xs", device="cuda", recipe=sys.argv[2], batch_size=1)
photo = np.random.default_rng(0).integers(0, 255, (300, 400, 3), np.uint8)
prompts = samfast.Prompts(points=[[[99, 99]], [[200, 150]]], labels=[[1], [1]])
masks = sam.predict([photo], [prompts])[0].cpu()
answers = [masks.masks, masks.iou, masks.low_res]
digest = hashlib.sha256(b"".join(x.numpy().tobytes() for x in answers)).hexdigest()
print(json.dumps({"digest": digest, "compiled": compiled, "seconds": time.perf_counter() - begin}))
"""


def first_call(tmp_path, how, recipe):
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, how, recipe],
        cwd=ROOT,
        env={**os.environ, "TRITON_CACHE_DIR": str(tmp_path / how), "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout)


@pytest.mark.parametrize("recipe", ["fused", "fp8"])
def test_a_dry_run_changes_no_answer(tmp_path, recipe):
    if recipe == "fp8" and torch.cuda.get_device_capability() < (8, 9):
        pytest.skip("this GPU has no fp8 products")
    plain, dry = (first_call(tmp_path, how, recipe) for how in ("plain", "dry"))
    assert dry["digest"] == plain["digest"]
    assert len(dry["compiled"]) >= 10
    assert all(name.startswith("samfast-compile") for name in dry["compiled"])
    print(f"first call: {plain['seconds']:.1f} s, with a dry run {dry['seconds']:.1f} s")
