"""Builds the documentation site from `docs/`: python docs/site/build.py [--out site].

The pages are written for readers of the repository, and so they link to files outside `docs/`,
which a site generator does not know. This script copies the pages to a scratch folder, brings the
linked Markdown documents along under `project/`, turns the notebooks into pages, and lets Zensical
build the result with strict links. Zensical is the successor of MkDocs' Material theme, by the
same authors, and reads the same `mkdocs.yml`; Material itself reached its end of life in 2026.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import yaml
from nbconvert import MarkdownExporter

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"
PROJECT = "project"
"""The site's folder for Markdown documents that lie outside `docs/`."""
LINK = re.compile(r"(?<!!)\[((?:`[^`]*`|[^\]`])*)\]\(([^)\s]+)\)")
REFERENCE = re.compile(r"^\[[^\]]+\]:\s*(\S+)$", re.MULTILINE)
CODE = re.compile(r"```.*?```", re.DOTALL)


class SiteSource:
    """The folder that the generator reads, filled page by page.

    folder   where pages go
    pending  Markdown documents outside `docs/` that pages link to and that are still to be copied
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.pending: list[Path] = []
        self.copied: set[Path] = set()

    def fill(self) -> None:
        """Copy pages, pictures, notebooks, and the documents that these link to."""
        for path in sorted(DOCS.rglob("*")):
            if path.is_dir() or path.is_relative_to(DOCS / "site"):
                continue
            self.copy(path)
        while self.pending:
            path = self.pending.pop()
            if path not in self.copied:
                self.copied.add(path)
                self.copy(path)

    def copy(self, path: Path) -> None:
        """Copy one file of the repository to its place in the site."""
        target = self.folder / self.place(path)
        target.parent.mkdir(parents=True, exist_ok=True)
        if path.suffix == ".md":
            text = self.relink(path.read_text(encoding="utf-8"), path)
            target.write_text(text, encoding="utf-8")
        elif path.suffix == ".ipynb":
            write_notebook(path, target.with_suffix(".md"))
        else:
            shutil.copyfile(path, target)

    def place(self, path: Path) -> Path:
        """Where a file of the repository stands in the site."""
        if path.is_relative_to(DOCS):
            return path.relative_to(DOCS)
        return Path(PROJECT) / path.relative_to(ROOT)

    def relink(self, text: str, page: Path) -> str:
        """The page's text with its links as the site needs them. Code blocks stay as they are."""
        parts, start = [], 0
        for block in CODE.finditer(text):
            parts += [self._relink(text[start : block.start()], page), block.group()]
            start = block.end()
        return "".join((*parts, self._relink(text[start:], page)))

    def _relink(self, text: str, page: Path) -> str:
        def inline(match: re.Match[str]) -> str:
            label, link = match.groups()
            target = self.target(link, page)
            # A source file has no page in the site: its name stays, without a link.
            return label if target is None else f"[{label}]({target})"

        def reference(match: re.Match[str]) -> str:
            target = self.target(match[1], page)
            return match[0].replace(match[1], target or page.name)

        text = re.sub(r"(!\[[^\]]*\]\()([^)\s]+)", lambda m: m[1] + self.file(m[2], page), text)
        return REFERENCE.sub(reference, LINK.sub(inline, text))

    def target(self, link: str, page: Path) -> str | None:
        """A link of the page in the site; None where the site has nothing to show."""
        if "://" in link or link.startswith(("#", "mailto:")):
            return link
        name, mark, anchor = link.partition("#")
        path = (page.parent / name).resolve()
        if path.suffix == ".ipynb":
            return self.relative(path.with_suffix(".md"), page)
        if path.is_relative_to(DOCS):
            return self.relative(path, page) + mark + anchor
        if path.suffix != ".md":
            return None
        self.pending.append(path)
        return self.relative(path, page) + mark + anchor

    def file(self, link: str, page: Path) -> str:
        """A picture's path in the site."""
        return link if "://" in link else self.relative((page.parent / link).resolve(), page)

    def relative(self, path: Path, page: Path) -> str:
        return Path(os.path.relpath(self.place(path), self.place(page).parent)).as_posix()


def write_notebook(path: Path, target: Path) -> None:
    """Write an executed notebook as a page, with its pictures in a folder beside it."""
    pictures = f"{path.stem}_files"
    exporter = MarkdownExporter()  # type: ignore[no-untyped-call]
    text, resources = exporter.from_filename(str(path), {"output_files_dir": pictures})
    (target.parent / pictures).mkdir(exist_ok=True)
    for name, content in resources["outputs"].items():
        (target.parent / name).write_bytes(content)
    target.write_text(text, encoding="utf-8")


def build(out: Path) -> int:
    """Build the site into a folder; the generator's exit code, not 0 for a broken link."""
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        SiteSource(folder / "docs").fill()
        settings = yaml.safe_load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"))
        handlers = settings["plugins"][1]["mkdocstrings"]["handlers"]
        handlers["python"]["paths"] = [str(ROOT)]
        handlers["python"]["options"]["extensions"] = [str(DOCS / "site" / "docstrings.py")]
        (folder / "mkdocs.yml").write_text(yaml.safe_dump(settings), encoding="utf-8")
        command = [sys.executable, "-m", "zensical", "build", "--strict", "--clean"]
        done = subprocess.run(command, cwd=folder, env={**os.environ, "NO_COLOR": "1"}, check=False)
        if done.returncode == 0:
            shutil.rmtree(out, ignore_errors=True)
            shutil.copytree(folder / "site", out)
        return done.returncode


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=ROOT / "site", help="folder of the site")
    sys.exit(build(parser.parse_args().out))
