"""What tests ask of the processes that Ray starts: who they are, and where they listen."""

from __future__ import annotations

from pathlib import Path

LISTEN = "0A"
"""The state of a listening socket in /proc/net/tcp."""


def listening_beyond_loopback() -> set[tuple[str, int]]:
    """The addresses and ports on which this machine listens for others."""
    sockets = set()
    for name in ("tcp", "tcp6"):
        for line in Path(f"/proc/net/{name}").read_text().splitlines()[1:]:
            _, local, _, state, *_ = line.split()
            address, port = local.split(":")
            if state == LISTEN and not _is_loopback(address):
                sockets.add((address, int(port, 16)))
    return sockets


def _is_loopback(address: str) -> bool:
    """Of 127.0.0.0/8, ::1 or ::ffff:127.0.0.0/104, as /proc writes them: words, reversed."""
    last = address[-8:]
    first = address[:-8]
    v4 = first in ("", "0000000000000000FFFF0000") and last.endswith("7F")
    return v4 or address == "00000000000000000000000001000000"


def ray_processes(ancestor: int) -> dict[int, str]:
    """The descendants of a process, and how each is called."""
    parents: dict[int, int] = {}
    names: dict[int, str] = {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            status = (folder / "stat").read_text()
            names[int(folder.name)] = (folder / "cmdline").read_text().replace("\0", " ")
        except OSError:
            continue
        parents[int(folder.name)] = int(status.rpartition(")")[2].split()[1])
    descendants: dict[int, str] = {}
    waiting = [ancestor]
    while waiting:
        parent = waiting.pop()
        for pid, its_parent in parents.items():
            if its_parent == parent and pid in names:
                descendants[pid] = names[pid]
                waiting.append(pid)
    return descendants
