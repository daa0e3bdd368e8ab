"""SIGTERM and SIGHUP end a command as Ctrl-C does: files are whole, no temporary ones remain."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

SIGNALS = tuple(
    getattr(signal, name) for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name)
)  # Windows has no SIGHUP


class TerminatedError(KeyboardInterrupt):
    """A signal asked the process to end; `number` is the signal's."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


@contextmanager
def raised_as_exceptions(*, process_ends: bool) -> Iterator[None]:
    """Within the block SIGTERM and SIGHUP raise TerminatedError, unless they are ignored (nohup).

    Only the first one does: a closing terminal sends several, and the clean-up is to be finished.

    process_ends  whether the process ends with the block: then later ones are ignored after it too
    """
    if threading.current_thread() is not threading.main_thread():
        yield  # Python sets handlers on the main thread only
        return
    before = {number: signal.getsignal(number) for number in SIGNALS}
    raised = [number for number, handler in before.items() if handler == signal.SIG_DFL]

    ended = False

    def end(number: int, frame: FrameType | None) -> None:
        nonlocal ended
        ended = True
        for each in raised:
            signal.signal(each, signal.SIG_IGN)
        raise TerminatedError(number)

    for number in raised:
        signal.signal(number, end)
    try:
        yield
    finally:
        if not (ended and process_ends):
            for number in raised:
                signal.signal(number, signal.SIG_DFL)
