"""A small HTTP server on 127.0.0.1 that misbehaves as asked."""

from __future__ import annotations

import http.server
import re
import threading
from dataclasses import dataclass, field


@dataclass
class Behaviour:
    """What the server does; `drops` connections are cut after `drop_after` bytes of each."""

    data: bytes
    ranges: bool = True
    drops: int = 0
    drop_after: int = 0
    statuses: list[int] = field(default_factory=list)  # one answered to each request, then 200
    length: bool = True
    wrong_range: bool = False
    requests: list[str | None] = field(default_factory=list)  # the Range header of each


class Server:
    """Serves one Behaviour; a context manager."""

    def __init__(self, behaviour: Behaviour) -> None:
        self.behaviour = behaviour
        handler = type("Handler", (_Handler,), {"behaviour": behaviour})
        self.httpd = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self.url = f"http://127.0.0.1:{self.httpd.server_address[1]}/weights.pth"
        self.thread = threading.Thread(
            target=self.httpd.serve_forever, kwargs={"poll_interval": 0.01}
        )

    def __enter__(self) -> Server:
        self.thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self.httpd.shutdown()
        self.thread.join()
        self.httpd.server_close()


class _Handler(http.server.BaseHTTPRequestHandler):
    behaviour: Behaviour

    def do_GET(self) -> None:
        b = self.behaviour
        asked = self.headers.get("Range")
        b.requests.append(asked)
        if b.statuses:
            status = b.statuses.pop(0)
            if status != 200:
                self.send_error(status)
                return
        start = 0
        if asked and b.ranges:
            match = re.fullmatch(r"bytes=(\d+)-", asked)
            assert match
            start = int(match[1])
            if start >= len(b.data):
                self.send_error(416)
                return
            self.send_response(206)
            first = start + 1 if b.wrong_range else start
            self.send_header("Content-Range", f"bytes {first}-{len(b.data) - 1}/{len(b.data)}")
        else:
            self.send_response(200)
        if b.length:
            self.send_header("Content-Length", str(len(b.data) - start))
        self.end_headers()
        body = b.data[start:]
        if b.drops:
            b.drops -= 1
            body = body[: b.drop_after]
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        pass
