"""`samfast exec`: run a program with samfast as its segment_anything."""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from samfast.atomic_files import atomic_write
from samfast.cli.common_options import add_command
from samfast.cli.console import CommandLineError, Console
from samfast.errors import OutputError
from samfast.user_cache import cache_dir

SHIM = '''\
"""Written by `samfast exec`: here `import segment_anything` imports samfast."""

import sys

try:
    import samfast
except ModuleNotFoundError as error:
    if error.name != "samfast":
        raise
    python = sys.executable
    raise ImportError(
        f"samfast exec: {python} cannot import samfast; install it there: "
        f"{python} -m pip install samfast"
    ) from error

del sys.modules["segment_anything"]  # this module, whose place samfast's takes
'''
"""The package `segment_anything` that a program finds first; a line that installs follows."""

PROBE = """\
import importlib.util, json, sys
shim, first = sys.argv[1:]
if sys.path[0] == "":
    sys.path[0] = first
specs = {name: importlib.util.find_spec(name) for name in ("samfast", "segment_anything")}
origins = {name: spec and spec.origin for name, spec in specs.items()}
print(json.dumps({"sees_shim": shim in sys.path, **origins}))
"""
"""Asks an interpreter which files it would import, without importing them."""

PROBE_SECONDS = 60
"""An interpreter that answers later than this is not waited for."""


@dataclass(frozen=True)
class Interpreter:
    """What runs a Python program.

    python  the interpreter's path
    flags   those of its flags that change where it looks for modules
    first   the folder in which it looks first: the script's, or the current one
    """

    python: str
    flags: tuple[str, ...]
    first: Path


def add_parser(commands: Any) -> None:
    """Add the command to argparse's `commands`."""
    parser = add_command(
        commands,
        "exec",
        run,
        help="run a program with samfast as its segment_anything",
        description="Run a program written for segment_anything, unchanged, with samfast as its\n"
        "segment_anything, in the Python processes that it starts too.",
        epilog="examples:\n"
        "  samfast exec -- cellpose --dir photos     a program on PATH\n"
        "  samfast exec -- train.py --epochs 3       a script, with samfast's Python\n"
        "  samfast exec -- -m package.tool           a module, with samfast's Python",
    )
    parser.usage = "samfast exec [-h] [--recipe NAME] -- PROGRAM [ARG...]"
    parser.add_argument(
        "--recipe",
        metavar="NAME",
        help="how to run the models that the program builds: auto, or a name that samfast doctor "
        "lists (default: the numbers of the original, in float32)",
    )
    parser.add_argument(
        "program",
        nargs=argparse.REMAINDER,
        metavar="PROGRAM",
        help="a program, a Python script ending in .py, or -m MODULE, and its arguments",
    )


def run(args: argparse.Namespace, console: Console) -> int:
    """Become the program, whose exit code is then the process's."""
    words = args.program[1:] if args.program[:1] == ["--"] else args.program
    if not words:
        raise CommandLineError("exec: name a program after -- (see samfast exec --help)")
    if args.recipe not in (None, "auto"):
        from samfast import recipes

        recipes.get(args.recipe)
    command = find_command(words)
    shim = write_shim(args.recipe)
    path = [str(shim), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path)}
    interpreter = interpreter_of(command)
    if interpreter is not None:
        check_imports(interpreter, shim, environment)
    return become(command, environment)


def find_command(words: Sequence[str]) -> list[str]:
    """The command of PROGRAM ARG...; CommandLineError if there is no such program.

    A program is looked for on PATH, then beside this interpreter. A script ending in .py, and what
    begins with a dash, is given to this interpreter.
    """
    name = words[0]
    if name.startswith("-") or (name.endswith(".py") and Path(name).is_file()):
        return [sys.executable, *words]
    folders = (os.environ.get("PATH", os.defpath), str(Path(sys.executable).parent))
    program = shutil.which(name, path=os.pathsep.join(folders))
    if program is None:
        kind = "file" if name.endswith(".py") else "program on PATH"
        raise CommandLineError(f"exec: {name}: there is no such {kind} (see samfast exec --help)")
    return [program, *words[1:]]


def write_shim(recipe: str | None) -> Path:
    """The folder, in samfast's cache, with a package `segment_anything` that installs samfast.

    The recipe stands in the package's code, so that no environment variable changes results. The
    folder is named by a hash of the code: it is never changed while a program uses it.
    """
    argument = "" if recipe is None else f"recipe={recipe!r}"
    code = f"{SHIM}samfast.install_as_segment_anything({argument})\n".encode()
    folder = cache_dir() / "exec" / hashlib.sha256(code).hexdigest()[:16]
    file = folder / "segment_anything" / "__init__.py"
    if not file.is_file() or file.read_bytes() != code:
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise OutputError(
                f"{file.parent}: cannot be made: {error.strerror}; let SAMFAST_CACHE name a folder "
                "that you may write to"
            ) from error
        atomic_write(file, code)
    return folder


def interpreter_of(command: Sequence[str]) -> Interpreter | None:
    """The interpreter that runs a command, or None where the command is not known as Python's."""
    program, *arguments = command
    if is_python(program):
        flags, rest = import_flags(arguments)
        script = Path(rest[0]).resolve() if rest and not rest[0].startswith("-") else None
        return Interpreter(program, flags, Path.cwd() if script is None else script.parent)
    words = shebang(Path(program))
    python = shutil.which(words[0]) if words else None
    if python is None or not is_python(python):
        return None
    return Interpreter(python, import_flags(words[1:])[0], Path(program).resolve().parent)


def is_python(program: str) -> bool:
    """Whether a program is called as interpreters of Python are."""
    return re.fullmatch(r"(python|pypy)[\d.]*(\.exe)?", Path(program).name) is not None


def import_flags(arguments: Sequence[str]) -> tuple[tuple[str, ...], Sequence[str]]:
    """Of an interpreter's arguments, the flags that say where to look for modules, and the rest.

    The rest begins with the first argument that is not made of flags alone: a script, -m, -c, or an
    option with a value.
    """
    letters = ""
    for index, argument in enumerate(arguments):
        flags = re.match(r"-([bBdEhiIOPqRsSuvVx]+)", argument)
        letters += flags[1] if flags else ""
        if flags is None or flags[0] != argument:
            arguments = arguments[index:]
            break
    else:
        arguments = ()
    return tuple(f"-{letter}" for letter in "EIPsS" if letter in letters), arguments


def shebang(program: Path) -> list[str]:
    """The words of a script's first line, without `env`; none for other files.

    pip writes a long path, or one with spaces, in the second line, for /bin/sh to run.
    """
    with program.open("rb") as file:
        head = file.read(4096)
    if not head.startswith(b"#!"):
        return []
    first, second, *_ = [*head.decode(errors="replace").splitlines(), ""]
    if second.startswith("'''exec' "):
        return shlex.split(second)[1:]
    words = first[2:].split()
    if words and Path(words[0]).name == "env":
        return [word for word in words[1:] if word != "-S"]
    return words


def check_imports(interpreter: Interpreter, shim: Path, environment: Mapping[str, str]) -> None:
    """CommandLineError if the program would import another segment_anything, or no samfast.

    Says nothing where the interpreter does not answer: it will not run the program either.
    """
    python = interpreter.python
    command = [python, *interpreter.flags, "-c", PROBE, str(shim), str(interpreter.first)]
    try:
        answer = subprocess.run(
            command,
            env=environment,
            stdin=subprocess.DEVNULL,  # the program's own
            capture_output=True,
            timeout=PROBE_SECONDS,
            check=True,
        )
        origins = json.loads(answer.stdout)
    except (OSError, ValueError, subprocess.SubprocessError):
        return
    remedy = "or call samfast.install_as_segment_anything() at the top of the program"
    if not origins["sees_shim"]:
        raise CommandLineError(
            f"exec: {python} is told by its flags ({' '.join(interpreter.flags)}) to ignore "
            f"PYTHONPATH, which leads to samfast; leave them out, {remedy}"
        )
    if origins["segment_anything"] != str(shim / "segment_anything" / "__init__.py"):
        raise CommandLineError(
            f"exec: the program has a segment_anything of its own, {origins['segment_anything']}, "
            f"which Python finds first and which may differ from the original; rename it, {remedy}"
        )
    if origins["samfast"] is None:
        raise CommandLineError(
            f"exec: {python}, which runs the program, cannot import samfast; install it there: "
            f"{python} -m pip install samfast"
        )


def become(command: Sequence[str], environment: Mapping[str, str]) -> int:
    """Replace this process by the command; on Windows run it and return its exit code.

    Input, output, signals and the exit code are then the program's. CommandLineError if the system
    cannot run it.
    """
    try:
        if sys.platform == "win32":
            # There exec returns to the shell before the program has ended.
            return subprocess.call(command, env=environment)
        for ignored in (signal.SIGPIPE, signal.SIGXFSZ):
            # Python ignores them, and a program inherits that.
            signal.signal(ignored, signal.SIG_DFL)
        os.execve(command[0], [*command], environment)
    except OSError as error:
        raise CommandLineError(f"exec: {command[0]}: cannot be run: {error.strerror}") from error
