"""The documentation site: it builds with strict links, and shows docstrings as they are meant."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from docs.site import build, docstrings

ROOT = Path(__file__).resolve().parents[2]


def test_the_site_builds_with_strict_links(tmp_path, capfd):
    assert build.build(tmp_path / "site") == 0, capfd.readouterr()
    reference = (tmp_path / "site" / "reference" / "index.html").read_text(encoding="utf-8")
    assert "accuracy_budget" in reference
    assert (tmp_path / "site" / "project" / "ARCHITECTURE" / "index.html").is_file()


def test_a_broken_link_stops_the_build(tmp_path, monkeypatch, capfd):
    real = build.SiteSource.fill

    def fill_and_break(source: build.SiteSource) -> None:
        real(source)
        page = source.folder / "index.md"
        page.write_text(page.read_text(encoding="utf-8") + "\n[x](gone.md)\n", encoding="utf-8")

    monkeypatch.setattr(build.SiteSource, "fill", fill_and_break)
    assert build.build(tmp_path / "site") != 0
    assert "page does not exist" in "".join(capfd.readouterr())
    assert not (tmp_path / "site").exists()


def test_every_page_is_in_the_navigation(tmp_path):
    build.SiteSource(tmp_path).fill()
    pages = {path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*.md")}
    settings = yaml.safe_load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"))
    listed: set[str] = set()
    waiting = [settings["nav"]]
    while waiting:
        entry = waiting.pop()
        if isinstance(entry, str):
            listed.add(entry)
        else:
            waiting += entry.values() if isinstance(entry, dict) else entry
    assert listed <= pages
    unlisted = {page for page in pages - listed if not page.startswith("project/")}
    assert unlisted == set()


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("[a](limits.md#x)", "[a](limits.md#x)"),
        ("[a](../README.md#recipes)", "[a](project/README.md#recipes)"),
        ("[`a`](../samfast/errors.py)", "`a`"),
        ("![p](images/coins.jpg)", "![p](images/coins.jpg)"),
        ("[n](notebooks/first-masks.ipynb)", "[n](notebooks/first-masks.md)"),
        ("```\n[a](../samfast/errors.py)\n```", "```\n[a](../samfast/errors.py)\n```"),
        ("[w](https://a.b/c)", "[w](https://a.b/c)"),
    ],
)
def test_links_lead_to_the_site(tmp_path, text, shown):
    assert build.SiteSource(tmp_path).relink(text, build.DOCS / "index.md") == shown


def test_aligned_parameters_become_a_table():
    text = "Load it.\n\nname     of it,\n         or None\na, b     two\n\n>>> load()"
    assert docstrings.tabulate(text).split("\n\n") == [
        "Load it.",
        "| name | meaning |\n| --- | --- |\n| `name` | of it, or None |\n| `a, b` | two |",
        "```pycon\n>>> load()\n```",
    ]
