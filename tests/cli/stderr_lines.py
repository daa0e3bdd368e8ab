"""What a test looks for on stderr."""

from __future__ import annotations

import re


def complaints(err):
    """The lines on stderr but those that say how many masks an image has, and the closing one."""
    routine = re.compile(r": \d+ masks?(:|;|$)| done, \d+ failed, \d+ skipped; ")
    return [line for line in err.splitlines() if not routine.search(line)]
