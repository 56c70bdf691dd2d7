"""A file server on this machine that can misbehave."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class Server(ThreadingHTTPServer):
    """Serves ``files`` by path, and notes what of them was asked for.

    Attributes:
        files: contents by path.
        requests: the header ``Range`` of every request, None where it had none.
        headers: all headers of every request.
        ranges: whether it honours Range.
        breaks: how many answers stop half-way.
        etag: the mark of all files.
        answers: by path, codes that are sent instead of the file, one after the other; then the file.
        extra: headers of every answer, errors too.
        chunked: the length is not told, and an answer that stops half-way lacks its end.
        places: by path, the address that it is sent on to.
    """

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.files: dict[str, bytes] = {}
        self.requests: list[str | None] = []
        self.headers: list[dict[str, str]] = []
        self.ranges = True
        self.breaks = 0
        self.etag: str | None = None
        self.answers: dict[str, list[int]] = {}
        self.extra: dict[str, str] = {}
        self.chunked = False
        self.places: dict[str, str] = {}

    def url(self, name: str) -> str:
        return f"http://127.0.0.1:{self.server_port}/{name}"


class Handler(BaseHTTPRequestHandler):
    server: Server
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        server, name = self.server, self.path.removeprefix("/")
        self.close_connection = True
        asked = self.headers.get("Range")
        server.requests.append(asked)
        server.headers.append(dict(self.headers))
        if server.answers.get(name):
            self._answer(server.answers[name].pop(0))
            return
        if name in server.places:
            self._answer(302, Location=server.places[name])
            return
        contents = server.files.get(name)
        if contents is None:
            self._answer(404)
            return
        changed = self.headers.get("If-Range") not in (None, server.etag)
        start = int(asked.removeprefix("bytes=").rstrip("-")) if asked and server.ranges and not changed else 0
        if start >= len(contents) > 0:
            self._answer(416, Content_Range=f"bytes */{len(contents)}")
            return
        body = contents[start:]
        length = {"Transfer-Encoding": "chunked"} if server.chunked else {"Content-Length": str(len(body))}
        part = {"Content-Range": f"bytes {start}-{len(contents) - 1}/{len(contents)}"} if start else {}
        mark = {"ETag": server.etag} if server.etag else {}
        self.send_response(206 if start else 200)
        for header, value in {**length, **part, **mark, **server.extra}.items():
            self.send_header(header, value)
        self.end_headers()
        broken = server.breaks > 0
        if broken:
            server.breaks -= 1
            body = body[: len(body) // 2]
        if server.chunked:
            body = b"%x\r\n%s\r\n" % (len(body), body) + (b"" if broken else b"0\r\n\r\n")
        if self.command != "HEAD":
            with suppress(ConnectionError):  # who asked has heard enough
                self.wfile.write(body)

    do_HEAD = do_GET  # noqa: N815

    def _answer(self, code: int, **headers: str) -> None:
        self.send_response(code)
        for name, value in {**headers, **self.server.extra, "Content-Length": "0"}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()

    def log_message(self, *args: object) -> None:
        pass


@contextmanager
def running() -> Iterator[Server]:
    with Server() as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()
