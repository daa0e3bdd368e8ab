"""The command line as a whole: help, version, exit codes, and one run as a user runs it."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch

import samfast
from samfast.cli import common_options, main, models_command, segment_command
from samfast.errors import CheckpointNotFoundError


def test_help_says_how_prompts_combine(run):
    code, out, err = run("segment", "--help")
    assert (code, err) == (0, "")
    assert "All --point values together describe one object" in out


def test_help_of_every_command(run):
    assert run("--help")[0] == 0
    for name in main.COMMANDS:
        code, out, _ = run(name, "--help")
        assert code == 0
        assert f"samfast {name}" in out


@pytest.mark.parametrize(("argv", "said"), [((), "COMMAND"), (("paint",), "segment")])
def test_no_command_and_an_unknown_one(run, argv, said):
    code, out, err = run(*argv)
    assert (code, out) == (2, "")
    assert len(err.splitlines()) == 1
    assert said in err


def test_a_missing_cuda_device(run, photos, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    code, _, err = run("segment", photos / "a.png", "--device", "cuda")
    assert code == 2
    assert len(err.splitlines()) == 1
    assert "use the device cpu" in err


def test_an_error_of_the_model_is_wrong_usage(run, photos, monkeypatch):
    def load(args):
        raise CheckpointNotFoundError("vit_b: no\n checkpoint; put it there")

    monkeypatch.setattr(segment_command, "load_model", load)
    code, _, err = run("segment", photos / "a.png")
    assert (code, err) == (2, "samfast: vit_b: no checkpoint; put it there\n")


def test_ctrl_c_is_130_without_a_traceback(run, monkeypatch):
    def interrupted(args, console):
        raise KeyboardInterrupt

    monkeypatch.setattr(models_command, "run", interrupted)
    code, out, err = run("models")
    assert (code, out) == (130, "")
    assert err.splitlines() == ["samfast: interrupted; files already written are intact"]


def test_options_reach_the_engine(monkeypatch):
    seen = []
    monkeypatch.setattr(samfast, "load", lambda name, **rest: seen.append((name, *rest.values())))
    parser = common_options.Parser(prog="x")
    common_options.add_model_options(parser)
    common_options.load_model(parser.parse_args([]))
    common_options.load_model(
        parser.parse_args(["--checkpoint", "w.pth", "--recipe", "fp32", "--device", "cpu"])
    )
    common_options.load_model(
        parser.parse_args(["--checkpoint", "w.pth", "--model", "vit_b", "--batch-size", "3"])
    )
    assert seen == [
        ("vit_xs", None, None, "auto", None),
        (None, "w.pth", "cpu", "fp32", None),  # the checkpoint says which model it is
        ("vit_b", "w.pth", None, "auto", 3),
    ]


def test_a_reader_that_leaves_early_is_no_traceback():
    read, write = os.pipe()
    os.close(read)
    done = subprocess.run(
        [sys.executable, "-m", "samfast", "models"],
        stdout=write,
        stderr=subprocess.PIPE,
        text=True,
        timeout=240,
    )
    os.close(write)
    assert "Traceback" not in done.stderr
    assert done.returncode == 1


def test_version(run):
    code, out, _ = run("--version")
    assert code == 0
    assert out == f"samfast {samfast.__version__}\n"


@pytest.mark.parametrize("destination", ["there-is-no/such.json", "."])
def test_json_that_could_not_be_written_is_refused_first(run, tmp_path, monkeypatch, destination):
    monkeypatch.chdir(tmp_path)
    for command in ("models", "doctor"):
        code, out, err = run(command, "--json", destination)
        assert (code, out) == (2, "")
        assert "--json" in err


def test_every_command_with_a_device_takes_any_of_pytorchs(run):
    parser = main.build_parser()
    photo = "a.png"
    lines = {
        "segment": [photo],
        "eval": ["DATA"],
        "bench": [],
        "profile": [],
        "calibrate": ["vit_xs", photo],
        "quantize": ["vit_xs", "--recipe", "int8", "--out", "x"],
        "warmup": [],
    }
    for command, arguments in lines.items():
        for device in ("cpu", "cuda", "cuda:1", "mps", "xpu:0"):
            args = parser.parse_args([command, *arguments, "--device", device])
            assert args.device == device
        code, _, err = run(command, *arguments, "--device", "gpu")
        assert code == 2 and "is none of cpu, cuda, cuda:1" in err


@pytest.mark.parametrize("device", ["cuda:7", "mps:9", "xpu:9"])
def test_a_device_that_is_not_here_is_one_line(run, photos, device):
    code, out, err = run("segment", photos / "a.png", "--device", device)
    assert (code, out) == (2, "")
    assert len(err.splitlines()) == 1 and device in err
