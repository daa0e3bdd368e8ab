"""What a request is refused with: an HTTP status, a code for programs, a message for people."""

from __future__ import annotations

from samfast.errors import SamfastError


class ProblemError(SamfastError):
    """A request that cannot be answered.

    status       of HTTP
    code         a word for programs, such as "not_found"
    retry_after  seconds after which to try again, or None
    """

    def __init__(
        self, status: int, code: str, message: str, *, retry_after: float | None = None
    ) -> None:
        super().__init__(message)
        self.status, self.code, self.retry_after = status, code, retry_after


def not_found(message: str) -> ProblemError:
    """404: there is no such image, mask or file."""
    return ProblemError(404, "not_found", message)


def bad_request(message: str) -> ProblemError:
    """400: the request contradicts itself or cannot be read."""
    return ProblemError(400, "bad_request", message)


def too_large(message: str) -> ProblemError:
    """413: more bytes, pixels or objects than the server takes."""
    return ProblemError(413, "too_large", message)


def overloaded(retry_after: float) -> ProblemError:
    """429: the queue is full."""
    return ProblemError(
        429, "overloaded", "too many requests wait already; try again", retry_after=retry_after
    )


def draining() -> ProblemError:
    """503: the server is ending and accepts nothing new."""
    return ProblemError(503, "draining", "the server is shutting down", retry_after=5)


def device_lost() -> ProblemError:
    """503: the process that has the model has ended."""
    return ProblemError(503, "device_lost", "the process that has the model has ended")
