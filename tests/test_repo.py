"""What the repository as a whole promises: nothing of one machine, no figure without its stamp."""

from __future__ import annotations

import json
import re
import subprocess
import tomllib
from pathlib import Path

import pytest

from samfast.cli import doctor_command
from samfast.cli.main import build_parser

ROOT = Path(__file__).resolve().parents[1]

# In pieces, so that this file does not hold them.
FORBIDDEN = re.compile(
    "|".join(
        (
            "/wo" + "rk/",
            "/ro" + "ot/",
            r"/ho" + r"me/\w",
            r"(?<!torch)\.libr" + r"ary\b",
            r"\.\./sha" + "red",
            r"py" + r"pi\.org",
            "files.pytho" + "nhosted",
            "DEVEL" + r"OPERS\.md",
        )
    )
)


def tracked() -> list[Path]:
    done = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode != 0:
        pytest.skip("not a git checkout")
    return [path for name in done.stdout.split("\0") if name and (path := ROOT / name).is_file()]


def test_no_file_mentions_a_machine() -> None:
    found = []
    for path in tracked():
        # .ci/run alone may say where CI's data lie; pictures and weights hold no words.
        if path == ROOT / ".ci" / "run" or path.suffix in {".png", ".jpg", ".safetensors", ".npz"}:
            continue
        text = path.read_text(encoding="utf-8")
        found += [f"{path.relative_to(ROOT)}: {match[0]}" for match in FORBIDDEN.finditer(text)]
    assert found == []


def test_the_pattern_finds_what_it_should() -> None:
    assert FORBIDDEN.search("data in /wo" + "rk/main")
    assert FORBIDDEN.search("see ../sha" + "red/data")
    assert not FORBIDDEN.search("this framework/library works")


def test_recorded_benchmarks_carry_their_stamp() -> None:
    for path in (ROOT / "benchmarks" / "results").rglob("*.json"):
        content = json.loads(path.read_text())
        for row in content if isinstance(content, list) else [content]:
            environment = row.get("environment")
            assert isinstance(environment, dict), f"{path}: a row without an environment"
            missing = {"torch", "commit"} - environment.keys()
            assert not missing, f"{path}: the environment lacks {missing}"


def test_doctor_knows_every_extra() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = {
        name: [re.split(r"[<>=;\[ ]", need)[0] for need in needs]
        for name, needs in project["optional-dependencies"].items()
    }
    for tools in ("demo", "dev"):
        del extras[tools]
    assert {name: list(needs) for name, needs in doctor_command.EXTRAS.items()} == extras


def test_torch_is_constrained_and_no_build_requirement() -> None:
    # Torch in the build requirements would be fetched anew, unconstrained, for every build.
    build = tomllib.loads((ROOT / "pyproject.toml").read_text())["build-system"]["requires"]
    assert not any(need.startswith("torch") for need in build)
    assert re.search(r"^torch==", (ROOT / "constraints.txt").read_text(), re.MULTILINE)


def test_the_readme_names_every_command() -> None:
    readme = (ROOT / "README.md").read_text()
    parser = build_parser()
    actions = [a for a in parser._actions if a.dest == "command"]
    assert actions
    assert actions[0].choices is not None
    for command in actions[0].choices:
        assert f"samfast {command}" in readme, command


def test_no_merge_is_half_done() -> None:
    marks = re.compile(r"^(<{7} |={7}$|>{7} )", re.MULTILINE)
    for path in (
        *ROOT.glob("*.md"),
        *(ROOT / "docs").glob("*.md"),
        *(ROOT / "benchmarks").glob("*.md"),
    ):
        assert not marks.search(path.read_text(encoding="utf-8")), path


def test_the_readme_s_links_lead_somewhere() -> None:
    for document in ("README.md", "ARCHITECTURE.md", "CONTRIBUTING.md"):
        for target in re.findall(r"\]\(([^)#]+)\)", (ROOT / document).read_text()):
            if "://" not in target:
                assert (ROOT / target).exists(), f"{document} links to {target}"


def test_the_readme_says_of_speed_what_the_results_say() -> None:
    """Each row of its table against the committed JSON, as rounded there."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    encoder = json.loads((ROOT / "benchmarks" / "results" / "cpu_vit_b.json").read_text())
    rows = {row["variant"]: row for row in encoder["rows"]}
    for kind, words in (("fp32", "ViT-B image encoder, float32"), ("bf16", "the same, bfloat16")):
        original, own = rows[f"segment-anything/{kind}"], rows[f"blocked/{kind}"]
        assert original["parity"] and own["parity"]
        cells = [
            f"{r['seconds']:.1f} s, {r['peak_resident_bytes'] / 2**30:.2f} GiB"
            for r in (original, own)
        ]
        assert f"| {words} | {cells[0]} | {cells[1]} | {own['ratio_to_original']:.2f} |" in text
    packaged = json.loads(
        (ROOT / "benchmarks" / "results" / "cpu_vit_xs_1000000_pixels.json").read_text()
    )
    assert packaged["parity"]
    click, everything = packaged["rows"]
    milliseconds = [
        f"{1e3 * click[name]:.0f} ms" for name in ("original_seconds", "samfast_seconds")
    ]
    assert f"| {milliseconds[0]} | {milliseconds[1]} | {click['ratio_to_original']:.2f} |" in text
    seconds = [f"{everything[name]:.1f} s" for name in ("original_seconds", "samfast_seconds")]
    assert f"| {seconds[0]} | {seconds[1]} | {everything['ratio_to_original']:.2f} |" in text
