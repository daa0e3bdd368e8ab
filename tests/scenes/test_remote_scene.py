"""A scene on a server that stops answering."""

from __future__ import annotations

import re
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread

import numpy as np
import pytest

from samfast.errors import ImageError, ImageWarning
from samfast.scenes import raster_source
from samfast.scenes.segment_scene import SceneOptions, segment_scene
from tests.scenes.colour_engine import ColourEngine, coloured_scene
from tests.scenes.scene_files import write_tiff


class Server(ThreadingHTTPServer):
    """Has bytes to serve, and a limit of how many it may send."""

    data, sent, limit = b"", 0, 0


class Handler(BaseHTTPRequestHandler):
    """Serves the server's bytes in ranges, until it has sent as many as it may."""

    server: Server

    def log_message(self, *args):
        pass

    def do_HEAD(self):
        self.send_response(200)
        self.send_header("Content-Length", str(len(self.server.data)))
        self.send_header("Accept-Ranges", "bytes")
        self.end_headers()

    def do_GET(self):
        data = self.server.data
        asked = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", ""))
        low, high = (int(asked[1]), int(asked[2])) if asked else (0, len(data) - 1)
        part = data[low : high + 1]
        self.server.sent += len(part)
        if self.server.sent > self.server.limit:
            self.send_response(500)
            self.end_headers()
            return
        self.send_response(206)
        self.send_header("Content-Range", f"bytes {low}-{low + len(part) - 1}/{len(data)}")
        self.send_header("Content-Length", str(len(part)))
        self.end_headers()
        self.wfile.write(part)


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setitem(raster_source.REMOTE, "GDAL_HTTP_MAX_RETRY", "0")
    with Server(("127.0.0.1", 0), Handler) as made:
        Thread(target=made.serve_forever, daemon=True).start()
        yield made
        made.shutdown()


def test_a_server_that_breaks_midway_loses_nothing_that_is_done(server, tmp_path):
    scene, _ = coloured_scene((1500, 1500), 60)
    noise = np.random.default_rng(0).integers(0, 2, scene.shape, dtype=np.uint8)
    server.data = write_tiff(tmp_path / "scene.tif", scene ^ noise).read_bytes()
    server.limit = len(server.data) // 2
    url = f"http://127.0.0.1:{server.server_address[1]}/scene.tif"
    options, work = SceneOptions(tile=256, overlap=32), tmp_path / "tiles"

    class Smoothing(ColourEngine):
        def segment_each(self, images, **options):
            for image in images:
                pixels = np.where(
                    image.pixels == (124, 116, 104), image.pixels, image.pixels & 0xFE
                )
                yield from super().segment_each(
                    iter([type(image)(pixels.astype(np.uint8), image.name)])
                )

    with pytest.warns(ImageWarning) as warned:
        first = segment_scene(Smoothing(), url, options, {}, work)
    with first:
        assert "scene.tif: columns" in str(warned[0].message)
        done = len(first.store.done())
        assert 0 < done < len(first.grid)
        assert "tiles in a row could not be read" in first.failures[-1]
        assert all("\n" not in failure for failure in first.failures)
    server.limit = 10 * len(server.data)
    engine = Smoothing()
    with segment_scene(engine, url, options, {}, work) as second:
        assert engine.images == len(second.grid) - done
        assert second.failures == ()


def test_a_url_that_answers_nothing_is_one_line(server):
    server.data, server.limit = b"", -1
    url = f"http://127.0.0.1:{server.server_address[1]}/absent.tif"
    with pytest.raises(ImageError, match=r"absent.tif: cannot be opened") as error:
        segment_scene(ColourEngine(), url, SceneOptions(), {})
    assert "\n" not in str(error.value)
