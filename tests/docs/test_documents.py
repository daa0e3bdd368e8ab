"""The documents: links that resolve, lines of 100 columns, figures that the results show."""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path

import pytest

from samfast.checkpoints.known_checkpoints import KNOWN
from samfast.cli.main import build_parser

ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / "benchmarks" / "results"
WIDTH = 100
LINK = re.compile(r"\]\(([^)\s]+)\)|^\[[^\]]+\]:\s*(\S+)$", re.MULTILINE)


def documents() -> list[Path]:
    """Every Markdown file of the repository."""
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard", "*.md"]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    if listed.returncode != 0:
        pytest.skip("not a git checkout")
    return [path for name in listed.stdout.split("\0") if name and (path := ROOT / name).is_file()]


def anchors(text: str) -> set[str]:
    """The anchors that GitHub gives a document's headings."""
    text = re.sub(r"```.*?```", "", text, flags=re.DOTALL)
    titles = re.findall(r"^#+ (.*)$", text, re.MULTILINE)
    kept = (re.sub(r"[^\w\- ]", "", title.lower()) for title in titles)
    return {title.strip().replace(" ", "-") for title in kept}


def broken_links(path: Path) -> list[str]:
    """The links of a document to files or headings that do not exist."""
    text = path.read_text(encoding="utf-8")
    text = re.sub(r"```.*?```|`[^`]*`", "", text, flags=re.DOTALL)
    broken = []
    for link in (first or second for first, second in LINK.findall(text)):
        if "://" in link:
            continue
        file, _, anchor = link.partition("#")
        target = path.parent / file if file else path
        if not target.exists() or (
            anchor and anchor not in anchors(target.read_text(encoding="utf-8"))
        ):
            broken.append(link)
    return broken


def test_links_resolve():
    broken = {str(path.relative_to(ROOT)): broken_links(path) for path in documents()}
    assert {name: links for name, links in broken.items() if links} == {}


def test_a_broken_link_is_noticed(tmp_path):
    page = tmp_path / "page.md"
    text = "# A title: 2:4\n[a](page.md#a-title-24) [b](none.md) [c](#none) [d](https://a.b/c)\n"
    page.write_text(text + "\n[e]: gone.txt\n", encoding="utf-8")
    assert broken_links(page) == ["none.md", "#none", "gone.txt"]


def long_lines(text: str) -> list[int]:
    """The numbers of a document's lines that are too long, but for generated tables."""
    generated, long = False, []
    for number, line in enumerate(text.splitlines(), 1):
        generated = generated or line.startswith("<!--#")
        if len(line) > WIDTH and not generated:
            long.append(number)
        generated = generated and line != "<!--/-->"
    return long


def test_lines_end_at_100_columns():
    long = {
        str(path.relative_to(ROOT)): long_lines(path.read_text(encoding="utf-8"))
        for path in documents()
    }
    assert {name: numbers for name, numbers in long.items() if numbers} == {}


def test_a_long_line_is_noticed():
    row = "| x |" + WIDTH * " "
    text = f"{row}\n<!--# rows -->\n{row}\n<!--/-->\n{row}\n{row[:WIDTH]}\n"
    assert long_lines(text) == [1, 5]


def test_no_merge_is_half_done():
    marks = re.compile(r"^(<{7} |={7}$|>{7} )", re.MULTILINE)
    assert [path for path in documents() if marks.search(path.read_text(encoding="utf-8"))] == []


def test_every_command_has_an_example():
    text = (ROOT / "docs" / "command-line.md").read_text(encoding="utf-8")
    (commands,) = [each for each in build_parser()._actions if each.dest == "command"]
    assert commands.choices
    assert [name for name in commands.choices if f"\nsamfast {name}" not in text] == []


def test_checkpoints_have_the_sizes_and_licences_of_the_code():
    text = (ROOT / "docs" / "checkpoints.md").read_text(encoding="utf-8")
    for known in KNOWN.values():
        cells = re.search(rf"^\| `{known.name}` \| (\S+) M \| .*\| (.*) \|$", text, re.MULTILINE)
        assert cells is not None, known.name
        assert cells[1] == f"{known.parameters / 1e6:.3g}"
        assert cells[2].replace(" ", "-").startswith(known.licence.split()[0])


def test_committed_results_have_their_stamp():
    for path in RESULTS.rglob("*.json"):
        content = json.loads(path.read_text(encoding="utf-8"))
        for row in content if isinstance(content, list) else [content]:
            environment = row.get("environment")
            assert isinstance(environment, dict), f"{path}: a row without an environment"
            missing = {"torch", "commit"} - environment.keys()
            assert not missing, f"{path}: the environment lacks {missing}"


def cpu_table() -> list[str]:
    """The rows of the table in docs/cpu.md, as the results have them."""
    encoder = json.loads((RESULTS / "cpu_vit_b.json").read_text(encoding="utf-8"))
    rows = {row["variant"]: row for row in encoder["rows"]}
    table = []
    for kind, words in (("fp32", "float32"), ("bf16", "bfloat16")):
        pair = rows[f"segment-anything/{kind}"], rows[f"blocked/{kind}"]
        assert all(row["parity"] for row in pair)
        cells = [
            f"{row['seconds']:.1f} s, {row['peak_resident_bytes'] / 2**30:.2f} GiB" for row in pair
        ]
        table.append(
            f"| ViT-B image encoder, {words} | {cells[0]} | {cells[1]} "
            f"| {pair[1]['ratio_to_original']:.2f} |"
        )
    path = RESULTS / "cpu_vit_xs_1000000_pixels.json"
    packaged = json.loads(path.read_text(encoding="utf-8"))
    assert packaged["parity"]
    click, everything = packaged["rows"]
    for row, words, unit, scale, digits in (
        (click, "one click", "ms", 1e3, 0),
        (everything, "everything, 16 x 16 points", "s", 1, 1),
    ):
        cells = [
            f"{scale * row[name]:.{digits}f} {unit}"
            for name in ("original_seconds", "samfast_seconds")
        ]
        table.append(
            f"| `vit_xs`, {words}, float32 | {cells[0]} | {cells[1]} "
            f"| {row['ratio_to_original']:.2f} |"
        )
    return table


KINDS = (("float32", "fp32", "fp32"), ("bfloat16", "bf16", "bf16"), ("int8", "int8", "int8"))
"""Of the rows beside peers: in words, the group of the results, the beginning of our recipes."""

INT8_IN_FLOAT32 = ("int8, else float32", "int8", "fp32_int8")


def peers_table(file: str, kinds: tuple[tuple[str, str, str], ...]) -> list[str]:
    """The rows of a table in docs/cpu.md beside peers, as the results have them."""
    content = json.loads((RESULTS / file).read_text(encoding="utf-8"))
    rows = {
        (row["model"], row["group"], row["recipe"].removeprefix("rival:")): row
        for row in content["rows"]
    }
    assert all(row["parity"] for row in rows.values())
    table = []
    for model, name in (("vit_b", "ViT-B"), ("vit_xs", "`vit_xs`")):
        for words, group, ours in kinds:
            named = (
                *(f"{ours}_openvino", f"{ours}_onednn"),
                *(f"openvino_{group}", f"onnxruntime_{group}", "segment-anything"),
            )
            measured = [rows.get((model, group, each)) for each in named]
            cells = [
                "-" if row is None else three_digits(row["median_seconds"]) for row in measured
            ]
            table.append(f"| {name}, {words} | {' | '.join(cells)} |")
    return table


def three_digits(seconds: float) -> str:
    """Seconds with three significant digits."""
    return f"{seconds:#.3g}"


def test_the_tables_for_cpus_are_those_of_the_results():
    text = (ROOT / "docs" / "cpu.md").read_text(encoding="utf-8")
    assert re.findall(r"^\| .*\d.*$", text, re.MULTILINE) == [
        *cpu_table(),
        *peers_table("cpu_peers.json", KINDS),
        *peers_table("cpu_peers_intel.json", (*KINDS, INT8_IN_FLOAT32)),
    ]


def drop_in_table() -> list[str]:
    """The rows of the table in docs/drop-in.md, as the results have them."""
    table = []
    for file, device in (("drop_in_h200.json", "H200"), ("drop_in_cpu.json", "two CPU cores")):
        for row in json.loads((RESULTS / file).read_text(encoding="utf-8")):
            assert row["parity"]
            seconds = [
                sum(row["seconds"][kind].values())
                for kind in ("modules", "registry", "load", "auto")
            ]
            cells = [f"{1e3 * each:.3g}" if each < 1 else f"{1e3 * each:.0f}" for each in seconds]
            table.append(
                f"| {device} | {row['model']} | {' | '.join(cells)} | {row['ratio_to_load']:.2f} |"
            )
    return table


def test_the_table_of_the_drop_in_is_that_of_the_results():
    text = (ROOT / "docs" / "drop-in.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| (?:H200|two CPU cores) .*\|$", text, re.MULTILINE)
    assert rows == drop_in_table()
