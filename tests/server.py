"""A file server on this machine that fails as servers do, for tests of downloads."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread


class Served:
    """What to answer, and the byte ranges that were asked for.

    `drop`: break the line after so many bytes, for so many answers as the list is long. `ranges`:
    honour them. `shift`: of the first byte of a range. `codes`: answers that come first. `etag`:
    the name of these bytes, for If-Range. `files`: what lies at other addresses, by their path.
    """

    def __init__(self, content=b"", drop=(), ranges=True, shift=0, codes=(), etag="", files=None):
        self.content = content
        self.drop = list(drop)
        self.ranges = ranges
        self.shift = shift
        self.codes = list(codes)
        self.etag = etag
        self.files = files or {}
        self.paths: list[str] = []
        self.asked: list[int] = []
        self.address = ""


@contextmanager
def serving(served: Served) -> Iterator[Served]:
    """The server while the block runs; `served.address` is that of its file."""

    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *_):
            pass

        def do_GET(self):
            asked = re.match(r"bytes=(\d+)-", self.headers.get("Range", ""))
            start = int(asked[1]) if asked else 0
            served.asked.append(start)
            served.paths.append(self.path)
            if served.files and self.path not in served.files:
                self.send_error(404)
                return
            content = served.files.get(self.path, served.content)
            if served.codes:
                self.send_error(served.codes.pop(0))
                return
            same = self.headers.get("If-Range", served.etag) == served.etag
            part = asked is not None and served.ranges and same
            if part and start >= len(content):
                self.send_error(416)
                return
            first = max(start + served.shift, 0) if part else 0
            body = content[first:]
            self.send_response(206 if part else 200)
            if part:
                last = len(content) - 1
                self.send_header("Content-Range", f"bytes {first}-{last}/{last + 1}")
            if served.etag:
                self.send_header("ETag", served.etag)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body[: served.drop.pop(0)] if served.drop else body)

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    served.address = f"http://127.0.0.1:{server.server_address[1]}/run.zip"
    thread = Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    try:
        yield served
    finally:
        server.shutdown()
        server.server_close()
