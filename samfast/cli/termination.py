"""Ctrl-C, SIGTERM and SIGHUP end a command the same way, and leave no half or temporary files."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType

SIGNALS = tuple(
    getattr(signal, name) for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name)
)  # Windows has no SIGHUP

AGAIN_SECONDS = 0.01
"""How much later a signal is sent again that came while it could not be raised."""

IMPORT_SECONDS = 10.0
"""How long a signal waits for modules that are imported: an import may hang, on a lost disk."""

OUTERMOST = ("samfast.cli.main", "_outcome")
"""Module and function that runs a command. It may itself be called while a module is imported."""

STARTING_A_THREAD = {("concurrent.futures.thread", "submit"), ("threading", "start")}
"""Modules, and functions of theirs that start a thread and return at once."""


class TerminatedError(KeyboardInterrupt):
    """A signal asked the process to end; `number` is the signal's."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


@dataclass
class Raised:
    """What the signals raised.

    first  the first exception that a signal raised, or None. A C++ module that it interrupts while
           it is imported may turn it into an ImportError.
    """

    first: KeyboardInterrupt | None = None


@contextmanager
def raised_as_exceptions(*, process_ends: bool) -> Iterator[Raised]:
    """Within the block signals raise exceptions, unless they are ignored (nohup).

    SIGINT raises KeyboardInterrupt, SIGTERM and SIGHUP raise TerminatedError. Of these only the
    first does: a closing terminal sends several, and the clean-up is to be finished.

    process_ends  whether the process ends with the block: then later ones are ignored after it too
    """
    raised = Raised()
    if threading.current_thread() is not threading.main_thread():
        yield raised  # Python sets handlers on the main thread only
        return
    numbers = [number for number in SIGNALS if signal.getsignal(number) == signal.SIG_DFL]
    takes_ctrl_c = signal.getsignal(signal.SIGINT) is signal.default_int_handler
    ended = False
    came: float | None = None

    def arrive(number: int, frame: FrameType | None) -> None:
        nonlocal ended, came
        came = came or time.monotonic()
        waits = time.monotonic() - came < IMPORT_SECONDS
        if _is_indivisible(frame) or (waits and _imports(frame)):
            _send_again(number)
            return
        came = None
        error = KeyboardInterrupt()
        if number in numbers:
            ended, error = True, TerminatedError(number)
            for each in numbers:
                signal.signal(each, signal.SIG_IGN)
        raised.first = raised.first or error
        raise error

    for number in [*numbers, *([signal.SIGINT] if takes_ctrl_c else [])]:
        signal.signal(number, arrive)
    try:
        yield raised
    finally:
        if takes_ctrl_c:
            signal.signal(signal.SIGINT, signal.default_int_handler)
        if not (ended and process_ends):
            for number in numbers:
                signal.signal(number, signal.SIG_DFL)


def _send_again(number: int) -> None:
    """Send this thread a signal once more, a moment later."""
    again = threading.Timer(AGAIN_SECONDS, _send, (number, threading.get_ident()))
    again.daemon = True
    again.start()


def _is_indivisible(frame: FrameType | None) -> bool:
    """Whether an exception in the frame would make threads wait for ever.

    That is so between steps of Python's import, where the lock of imports would stay taken (and an
    exception in the callback of a weak reference be dropped), and where an executor starts a
    thread, which would not be told that the process ends.
    """
    if frame is None:
        return False
    if frame.f_code.co_filename.startswith("<frozen importlib"):
        return True
    while frame is not None:
        if (frame.f_globals.get("__name__"), frame.f_code.co_name) in STARTING_A_THREAD:
            return True
        frame = frame.f_back
    return False


def _imports(frame: FrameType | None) -> bool:
    """Whether a command is importing a module: one in C++, as torch, may abort the process when an
    exception comes while it begins.
    """
    while frame is not None:
        if (frame.f_globals.get("__name__"), frame.f_code.co_name) == OUTERMOST:
            return False
        if frame.f_code.co_filename.startswith("<frozen importlib"):
            return True
        frame = frame.f_back
    return False


def _send(number: int, thread: int) -> None:
    """Send a thread a signal, which ends a call of the system in which it waits."""
    if hasattr(signal, "pthread_kill"):
        signal.pthread_kill(thread, number)
    else:  # Windows
        signal.raise_signal(number)
