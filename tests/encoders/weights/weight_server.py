"""A file server on this machine for tests of downloads: ranges, cuts in the middle, and a hub's few answers."""

from __future__ import annotations

import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

COMMIT = "c0ffee" + "0" * 34


@dataclass
class Shop:
    """What the server offers and how it behaves.

    Attributes:
        files: path to content.
        cuts: the next answers break off after so many bytes, one number each.
        etag: None sends none.
        ranges: whether `Range` is understood.
        gated: whether the hub refuses.
        seen: (method, path, range) of every request.
    """

    files: dict[str, bytes] = field(default_factory=dict)
    cuts: list[int] = field(default_factory=list)
    etag: bool = True
    ranges: bool = True
    gated: bool = False
    seen: list[tuple[str, str, str | None]] = field(default_factory=list)
    url: str = ""


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.0"
    shop: Shop

    def log_message(self, format: str, *args: object) -> None:
        """Keep still."""

    def do_HEAD(self) -> None:
        self.answer(body=False)

    def do_GET(self) -> None:
        self.answer(body=True)

    def answer(self, body: bool) -> None:
        shop, path = self.shop, self.path.partition("?")[0]
        shop.seen.append((self.command, path, self.headers.get("Range")))
        if shop.gated:
            self.send_response(403)
            self.send_header("X-Error-Code", "GatedRepo")
            self.end_headers()
        elif match := re.fullmatch(r"/api/models/([^/]+/[^/]+)(?:/revision/(.+))?", path):
            self.describe(match[1])
        else:
            match = re.fullmatch(r"/[^/]+/[^/]+/resolve/[^/]+/(.+)", path)
            content = shop.files.get("/" + match[1] if match else path)
            if content is None:
                self.send_error(404)
            else:
                self.send_file(content, body, hub=match is not None)

    def describe(self, repository: str) -> None:
        siblings = [{"rfilename": name.lstrip("/")} for name in self.shop.files]
        text = json.dumps({"id": repository, "sha": COMMIT, "siblings": siblings}).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    def send_file(self, content: bytes, body: bool, hub: bool) -> None:
        shop, begin = self.shop, 0
        tag = f'"{hashlib.sha256(content).hexdigest()}"'
        wanted = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range") or "")
        if wanted and shop.ranges and self.headers.get("If-Range") in (None, tag):
            begin = int(wanted[1])
        if begin >= len(content) > 0 and begin:
            self.send_response(416)
            self.send_header("Content-Range", f"bytes */{len(content)}")
            self.end_headers()
            return
        self.send_response(206 if begin else 200)
        self.send_header("Content-Length", str(len(content) - begin))
        if begin:
            self.send_header("Content-Range", f"bytes {begin}-{len(content) - 1}/{len(content)}")
        if shop.etag:
            self.send_header("ETag", tag)
        if hub:
            self.send_header("X-Repo-Commit", COMMIT)
            self.send_header("X-Linked-Etag", tag)
            self.send_header("X-Linked-Size", str(len(content)))
        self.end_headers()
        if body:
            rest = content[begin:]
            self.wfile.write(rest[: shop.cuts.pop(0)] if shop.cuts else rest)


@contextmanager
def serving(**files: bytes) -> Iterator[Shop]:
    """A server until the block ends; `files` by name, an underscore for each dot."""
    shop = Shop({"/" + name.replace("_", "."): content for name, content in files.items()})
    handler = type("Bound", (Handler,), {"shop": shop})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    shop.url = f"http://127.0.0.1:{server.server_address[1]}"
    try:
        yield shop
    finally:
        server.shutdown()
        server.server_close()
        thread.join(timeout=5)
