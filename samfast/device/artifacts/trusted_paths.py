"""Whether other users of the machine could have put code into the cache, which torch would run."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable
from pathlib import Path


def distrust(paths: Iterable[Path]) -> str | None:
    """Why one of the files or folders may hold what another user wrote, and the remedy; or None.

    Each must belong to this user or to root, and be writable by its owner alone, or also by a group
    that only this user is in, as some systems make one for each user. Paths that do not exist are
    left out. Windows keeps the cache in the user's profile and has none of these permissions.
    """
    if os.name != "posix":
        return None
    user = os.geteuid()
    for path in paths:
        try:
            status = path.stat()
        except OSError:
            continue
        if status.st_uid not in (0, user):
            return (
                f"{path} belongs to another user (number {status.st_uid}); delete it, or set "
                "SAMFAST_CACHE to a folder of your own"
            )
        mode = status.st_mode
        if mode & stat.S_IWOTH or (mode & stat.S_IWGRP and not _is_private(status.st_gid, user)):
            return f"others may write to {path}; run: samfast cache clear, then chmod go-w {path}"
    return None


def _is_private(group: int, user: int) -> bool:
    """Whether a group is this user's own: of the same name, and without other members."""
    import grp
    import pwd

    try:
        name, entry = pwd.getpwuid(user).pw_name, grp.getgrgid(group)
    except KeyError:
        return False
    return entry.gr_name == name and set(entry.gr_mem) <= {name}
