"""`samfast exec`: programs see samfast as segment_anything, or the command says why they would not.

Programs run in new processes: exec replaces the one that calls it.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

import samfast
from samfast.cli import exec_command

ROOT = Path(__file__).resolve().parents[2]

SAYS_WHAT_IT_SEES = """
import sys
import segment_anything
from segment_anything.utils import amg
print(segment_anything.__name__, amg.__name__, sys.argv[1:])
"""

SEEN = "samfast.segment_anything samfast.segment_anything.utils.amg"


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """An empty current folder, with a cache of its own, in which processes can import samfast."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SAMFAST_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.delenv("PYTHONSAFEPATH", raising=False)
    return tmp_path


def samfast_exec(*words: str, **options) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "samfast", "exec", *words]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, **options)


def write(path: Path, text: str, *, executable: bool = False) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    path.chmod(0o755 if executable else 0o644)
    return path


@pytest.fixture
def replaced(monkeypatch):
    """Instead of becoming the program, exec notes the command and the environment."""
    seen: list = []

    def become(command, environment):
        seen.append((list(command), environment))
        return 0

    monkeypatch.setattr(exec_command, "become", become)
    return seen


# ------------------------------------------------------------------------------------------------
# programs that run


def test_a_script_sees_samfast_its_arguments_and_its_input(folder):
    write(folder / "tool.py", SAYS_WHAT_IT_SEES + "print(sys.stdin.read())\nsys.exit(7)\n")
    done = samfast_exec("--", "tool.py", "--recipe", "x", "--", "y", input="what it reads")
    assert done.stdout == f"{SEEN} ['--recipe', 'x', '--', 'y']\nwhat it reads\n"
    assert (done.returncode, done.stderr) == (7, "")


def test_a_recipe_reaches_the_program(folder):
    write(folder / "tool.py", SAYS_WHAT_IT_SEES)
    done = samfast_exec("--recipe", "auto", "--", "tool.py")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == f"{SEEN} []\n"


def test_a_module_and_the_processes_that_it_starts_see_samfast(folder):
    write(
        folder / "package" / "tool.py",
        """
import multiprocessing
import subprocess
import sys

def name():
    import segment_anything
    return segment_anything.__name__

if __name__ == "__main__":
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        print(pool.apply(name), flush=True)
    code = "import segment_anything; print(segment_anything.__name__)"
    subprocess.run([sys.executable, "-c", code], check=True)
""",
    )
    done = samfast_exec("--", "-m", "package.tool")
    assert done.stderr == ""
    assert done.stdout == "samfast.segment_anything\n" * 2


def test_a_program_on_path_with_its_own_interpreter(folder, monkeypatch):
    write(folder / "bin" / "tool", f"#!{sys.executable}\n{SAYS_WHAT_IT_SEES}", executable=True)
    monkeypatch.setenv("PATH", str(folder / "bin"), prepend=os.pathsep)
    done = samfast_exec("--", "tool", "--dir", "x")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == f"{SEEN} ['--dir', 'x']\n"


def test_a_signal_ends_the_program_itself(folder):
    write(
        folder / "tool.py",
        "import sys\nprint('ready', flush=True)\nsys.stdin.read()\nprint('on')\n",
    )
    command = [sys.executable, "-m", "samfast", "exec", "--", "tool.py"]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as running:
        assert running.stdout.readline() == "ready\n"
        running.send_signal(signal.SIGTERM)
        assert running.wait(30) == -signal.SIGTERM
        assert running.stdout.read() == ""


def test_a_program_that_is_not_pythons_has_a_fresh_process(folder):
    """Signals that Python ignores are not ignored in the program."""
    done = samfast_exec("--", "sh", "-c", "kill -PIPE $$; echo still here")
    assert (done.returncode, done.stdout) == (-signal.SIGPIPE, "")


# ------------------------------------------------------------------------------------------------
# the shim


def test_the_recipe_stands_in_the_code_and_nowhere_else(run, folder, replaced, monkeypatch):
    assert run("exec", "--", "tool")[0] == 2
    write(folder / "tool.py", "")
    assert run("exec", "--", "tool.py") == (0, "", "")
    assert run("exec", "--recipe", "auto", "--", "tool.py") == (0, "", "")
    (_, plain), (_, auto) = replaced
    changed = [
        {name for name in environment if environment[name] != os.environ.get(name)}
        for environment in (plain, auto)
    ]
    assert changed == [{"PYTHONPATH"}, {"PYTHONPATH"}]
    asked = []
    monkeypatch.setattr(samfast, "install_as_segment_anything", lambda **given: asked.append(given))
    for environment in (plain, auto):
        shim, rest = environment["PYTHONPATH"].split(os.pathsep)
        assert rest == str(ROOT)
        monkeypatch.setitem(sys.modules, "segment_anything", None)
        exec((Path(shim) / "segment_anything" / "__init__.py").read_text(), {})
        assert "segment_anything" not in sys.modules
    assert asked == [{}, {"recipe": "auto"}]


def test_an_unknown_recipe_is_refused_before_the_program_runs(run, folder, replaced):
    write(folder / "tool.py", "")
    code, out, err = run("exec", "--recipe", "fastest", "--", "tool.py")
    assert (code, out, replaced) == (2, "", [])
    assert "unknown recipe 'fastest'" in err


def test_a_damaged_shim_is_written_again(folder):
    file = exec_command.write_shim(None) / "segment_anything" / "__init__.py"
    code = file.read_text()
    file.write_text("")
    assert exec_command.write_shim(None) == file.parents[1]
    assert file.read_text() == code


def test_a_cache_that_cannot_be_made_is_said(run, folder, replaced, monkeypatch):
    write(folder / "tool.py", "")
    monkeypatch.setenv("SAMFAST_CACHE", str(write(folder / "file", "") / "cache"))
    code, _, err = run("exec", "--", "tool.py")
    assert (code, replaced) == (2, [])
    assert "SAMFAST_CACHE" in err


# ------------------------------------------------------------------------------------------------
# programs that would not see samfast


def test_no_program_and_an_unknown_one(run, folder, replaced):
    for words, said in (
        ((), "name a program after --"),
        (("--",), "name a program after --"),
        (("--", "no-such-program"), "no-such-program: there is no such program on PATH"),
        (("--", "no_such.py"), "no_such.py: there is no such file"),
    ):
        code, out, err = run("exec", *words)
        assert (code, out, replaced) == (2, "", [])
        assert said in err
        assert len(err.splitlines()) == 1


def test_an_interpreter_without_samfast_is_named(run, folder, replaced, monkeypatch):
    monkeypatch.delenv("PYTHONPATH")
    bare = folder / "python"
    bare.symlink_to(os.path.realpath(sys.executable))  # outside of any virtual environment
    code, _, err = run("exec", "--", str(bare), "-S", "-c", "")
    assert (code, replaced) == (2, [])
    assert f"{bare}, which runs the program, cannot import samfast" in err
    assert f"{bare} -m pip install samfast" in err


def test_where_it_could_not_be_asked_the_import_says_so(folder, monkeypatch):
    """A shell script starts the interpreter without samfast, which exec cannot know."""
    shim = exec_command.write_shim(None)
    monkeypatch.setenv("PYTHONPATH", str(shim))
    command = [os.path.realpath(sys.executable), "-S", "-c", "import segment_anything"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 1
    assert f"ImportError: samfast exec: {command[0]} cannot import samfast" in done.stderr


@pytest.mark.parametrize("flags", ["-I", "-E", "-uE", "-Im"])
def test_an_interpreter_that_ignores_pythonpath_is_refused(run, folder, replaced, flags):
    code, _, err = run("exec", "--", sys.executable, flags, "tool")
    assert (code, replaced) == (2, [])
    assert "ignore PYTHONPATH" in err


def test_a_copy_that_the_program_finds_first_is_refused(run, folder, replaced, monkeypatch):
    copy = write(folder / "project" / "segment_anything" / "__init__.py", "")
    script = write(folder / "project" / "train.py", "")
    link = folder / "link"
    link.symlink_to(script)
    python = sys.executable
    assert run("exec", "--", "-m", "train") == (0, "", "")  # the copy is elsewhere
    for words in (["project/train.py"], [python, "-u", str(link)], [python, str(script), "-I"]):
        code, _, err = run("exec", "--", *words)
        assert code == 2
        assert str(copy) in err
        assert "rename it" in err
    monkeypatch.chdir(folder / "project")
    assert run("exec", "--", "-m", "train")[0] == 2
    assert len(replaced) == 1


# ------------------------------------------------------------------------------------------------
# the interpreter of a program


@pytest.mark.parametrize(
    ("first_lines", "flags"),
    [
        (f"#!{sys.executable}", ()),
        (f"#! {sys.executable} -sE", ("-E", "-s")),
        ("#!/usr/bin/env python", ()),
        ("#!/usr/bin/env -S python -I", ("-I",)),
        (f"#!/bin/sh\n'''exec' \"{sys.executable}\" -E \"$0\" \"$@\"\n' '''", ("-E",)),
    ],
)
def test_the_interpreter_of_a_script_on_path(folder, monkeypatch, first_lines, flags):
    monkeypatch.setenv("PATH", str(Path(sys.executable).parent))
    tool = write(folder / "bin" / "tool", f"{first_lines}\n", executable=True)
    found = exec_command.interpreter_of([str(tool), "-m", "x"])
    assert found is not None
    assert Path(found.python).name.startswith("python")
    assert (found.flags, found.first) == (flags, folder / "bin")


@pytest.mark.parametrize("first_line", ["#!", "#!/bin/sh", "#!/no/such/python", "\x7fELF", ""])
def test_programs_of_no_known_interpreter(folder, first_line):
    tool = write(folder / "tool", f"{first_line}\nbody\n", executable=True)
    assert exec_command.interpreter_of([str(tool)]) is None


def test_a_program_beside_the_interpreter_is_found_without_path(folder, monkeypatch):
    python = write(folder / "venv" / "bin" / "python", "", executable=True)
    tool = write(folder / "venv" / "bin" / "tool", "", executable=True)
    monkeypatch.setattr(sys, "executable", str(python))
    assert exec_command.find_command(["tool", "x"]) == [str(tool), "x"]
    assert exec_command.find_command(["-c", "x"]) == [str(python), "-c", "x"]
    monkeypatch.setenv("PATH", str(folder / "bin"))
    other = write(folder / "bin" / "tool", "", executable=True)
    assert exec_command.find_command(["tool"]) == [str(other)]


def test_a_program_that_the_system_cannot_run(folder):
    write(folder / "tool", "no first line that names an interpreter\n", executable=True)
    done = samfast_exec("--", "./tool")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("samfast: exec: ./tool: cannot be run: ")
