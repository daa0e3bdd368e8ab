"""The server's log: lines of JSON while it runs, and the caller's own logging afterwards."""

from __future__ import annotations

import json
import logging

import pytest

from samfast.serve.json_log import logs_on_stderr


def test_logs_are_lines_of_json_and_the_callers_again_afterwards(
    capsys: pytest.CaptureFixture[str],
) -> None:
    logger = logging.getLogger("samfast")
    handlers, level, propagate = list(logger.handlers), logger.level, logger.propagate
    with logs_on_stderr(logging.INFO):
        logging.getLogger("samfast.serve").info("ready", extra={"images": 3})
    line = json.loads(capsys.readouterr().err)
    assert line["event"] == "ready"
    assert line["images"] == 3
    assert (logger.handlers, logger.level, logger.propagate) == (handlers, level, propagate)
