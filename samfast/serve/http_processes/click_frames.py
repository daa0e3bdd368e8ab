"""What the channel between an HTTP process and that of the device carries: clicks and answers.

A frame is its length, four bytes, and that many bytes. To the device go JSON lists that begin with
one of the words below. Back come masks, those of all clicks that were decoded together in one
frame, and answers that are text already. The first frame of all is the HTTP process's `Setup`.
Nobody else can write to the channel.
"""

from __future__ import annotations

import asyncio
import json
import struct
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple, cast

from samfast.serve.http_processes.clicked_masks import ClickedMasks
from samfast.serve.settings import Settings

_LENGTH = struct.Struct("!I")
_HEAD = struct.Struct("!cIHI")


CLICK = "click"
"""Before the values of a `Click`."""

DROP = "drop"
"""Before the number of a click whose client has left."""

REFUSED = "refused"
"""Before status and seconds of a request that the HTTP process has refused by itself, for the
metrics.
"""


@dataclass(frozen=True)
class Setup:
    """What an HTTP process is told when it starts.

    address    path of the socket at which the other process answers HTTP
    public     paths that need no token
    log_level  of its log
    settings   its limits
    """

    address: str
    public: tuple[str, ...]
    log_level: int
    settings: Settings

    def to_json(self) -> bytes:
        """As a frame's content."""
        return json.dumps(asdict(self), default=str).encode()

    @classmethod
    def from_json(cls, data: bytes) -> Setup:
        """From a frame's content."""
        values = json.loads(data)
        given = values["settings"]
        root = None if given["root"] is None else Path(given["root"])
        settings = Settings(**{**given, "root": root, "wires": tuple(given["wires"])})
        return cls(values["address"], tuple(values["public"]), values["log_level"], settings)


ANSWER, MASKS = b"a", b"m"
"""The first bytes of a frame that is an `Answer`, and of one that has `ClickedMasks`."""


class Answer(NamedTuple):
    """The answer to the click of that number: status of HTTP, seconds for Retry-After or 0, body
    as JSON.
    """

    number: int
    status: int
    retry_after: int
    body: bytes

    def to_bytes(self) -> bytes:
        """As a frame's content."""
        return _HEAD.pack(ANSWER, self.number, self.status, self.retry_after) + self.body

    @classmethod
    def from_bytes(cls, data: bytes) -> Answer:
        """From a frame's content."""
        _, number, status, retry_after = _HEAD.unpack_from(data)
        return cls(number, status, retry_after, data[_HEAD.size :])


def answers_in(content: bytes) -> Iterator[Answer]:
    """The answers that a frame's content has, of either kind."""
    if content[:1] == ANSWER:
        yield Answer.from_bytes(content)
        return
    for number, body in ClickedMasks.from_bytes(content).answers():
        yield Answer(number, 200, 0, body)


class Click(NamedTuple):
    """A click: its number, the image's id, whose turn it is, three masks or one, and of each object
    points, labels, box or None, mask's name or None.
    """

    number: int
    image_id: str
    client: str
    multimask: bool
    objects: list[list[Any]]


def frame(content: bytes) -> bytes:
    """The content with its length before it."""
    return _LENGTH.pack(len(content)) + content


class FrameWriter:
    """Writes frames to a stream: those of one step of the event loop together, or of a longer time,
    since each call of the system takes longer than all else that is done for a frame.
    """

    def __init__(self) -> None:
        self._transport: asyncio.WriteTransport | None = None
        self._frames: list[bytes] = []

    @property
    def connected(self) -> bool:
        """Whether there is a stream."""
        return self._transport is not None

    def connect(self, transport: asyncio.BaseTransport | None) -> None:
        """Write to that stream from now on, or for None to nobody."""
        # A stream's, whether of asyncio or of uvloop, whose own do not derive from it.
        self._transport = cast("asyncio.WriteTransport | None", transport)

    def write(self, content: bytes, within: float = 0.0) -> None:
        """Write a frame in this step of the event loop, or within so many seconds, together with
        those that come until then.
        """
        if not self._frames:
            asyncio.get_running_loop().call_later(within, self._flush)
        self._frames += _LENGTH.pack(len(content)), content

    def _flush(self) -> None:
        data = b"".join(self._frames)
        self._frames.clear()
        if self._transport is not None:
            self._transport.write(data)


class FrameReader:
    """Puts frames together from the parts in which a stream arrives."""

    def __init__(self) -> None:
        self._buffer = bytearray()

    def feed(self, data: bytes) -> list[bytes]:
        """The contents of the frames that are whole now."""
        self._buffer += data
        contents, start = [], 0
        while len(self._buffer) - start >= _LENGTH.size:
            (length,) = _LENGTH.unpack_from(self._buffer, start)
            end = start + _LENGTH.size + length
            if len(self._buffer) < end:
                break
            contents.append(bytes(self._buffer[start + _LENGTH.size : end]))
            start = end
        del self._buffer[:start]
        return contents
