"""A server on the loopback interface that gives a bundle's files as badly as real ones do."""

from __future__ import annotations

import hashlib
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote

Fault = Callable[["Answer"], None]


@dataclass
class Server:
    folder: Path
    address: str = ""
    faults: dict[str, list[Fault]] = field(default_factory=dict)  # path -> for its next requests
    always: dict[str, Fault] = field(default_factory=dict)
    ranges: bool = True
    seen: list[tuple[str, str | None, str | None, int]] = field(default_factory=list)  # path, Range, If-Range, code
    headers: list[dict[str, str]] = field(default_factory=list)
    sent: dict[str, int] = field(default_factory=dict)  # path -> bytes

    def requests(self, path: str) -> list[tuple[str | None, str | None, int]]:
        return [rest for seen, *rest in self.seen if seen == path]  # type: ignore[misc]


class Answer(BaseHTTPRequestHandler):
    """What a fault may change before it is sent."""

    protocol_version = "HTTP/1.1"
    server_state: Server

    def log_message(self, *ignored: object) -> None:
        pass

    def do_GET(self) -> None:
        state, self.path = self.server_state, unquote(self.path).lstrip("/")
        self.data = data = (state.folder / self.path).read_bytes() if (state.folder / self.path).is_file() else None
        self.etag: str | None = None if data is None else f'"{hashlib.md5(data).hexdigest()}"'
        self.cut: int | None = None  # bytes after which the connection breaks
        self.slow = 0.0
        self.code, self.extra, self.start = 200, {}, 0
        self.whole = len(data or b"")
        asked, condition = self.headers.get("Range"), self.headers.get("If-Range")
        state.headers.append(dict(self.headers))
        faults = state.faults.get(self.path, [])
        fault = faults.pop(0) if faults else state.always.get(self.path)
        if fault:
            fault(self)
        if self.data is None and self.code == 200:
            self.code = 404
        if self.code == 200 and asked and state.ranges and (condition is None or condition == self.etag):
            self.start = int(asked.removeprefix("bytes=").removesuffix("-"))
            self.code = 206 if self.start < len(self.data or b"") else 416
        state.seen.append((self.path, asked, condition, self.code))
        self.answer(state)

    def answer(self, state: Server) -> None:
        body = (self.data or b"")[self.start :] if self.code in (200, 206) else b"no"
        self.send_response(self.code)
        self.send_header("Content-Length", str(len(body)))
        if self.code == 206:
            self.send_header("Content-Range", self.extra.pop("range", f"bytes {self.start}-{self.whole - 1}/{self.whole}"))
        if self.etag:
            self.send_header("ETag", self.etag)
        for name, value in self.extra.items():
            self.send_header(name, value)
        self.end_headers()
        left = body if self.cut is None else body[: self.cut]
        try:
            for at in range(0, len(left), 1 << 14):
                self.wfile.write(left[at : at + (1 << 14)])
                state.sent[self.path] = state.sent.get(self.path, 0) + len(left[at : at + (1 << 14)])
                time.sleep(self.slow)
        except OSError:
            self.close_connection = True
            return
        if self.cut is not None:
            self.wfile.flush()
            self.close_connection = True
            self.connection.close()


@contextmanager
def serving(folder: Path) -> Iterator[Server]:
    state = Server(folder)
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Bound", (Answer,), {"server_state": state}))
    server.daemon_threads = True
    state.address = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    try:
        yield state
    finally:
        server.shutdown()
        server.server_close()


def cut(after: int) -> Fault:
    return lambda answer: setattr(answer, "cut", after)


def slow(seconds: float) -> Fault:
    """Between two pieces of 16 KiB."""
    return lambda answer: setattr(answer, "slow", seconds)


def status(code: int, **headers: str) -> Fault:
    def change(answer: Answer) -> None:
        answer.code, answer.extra = code, {name.replace("_", "-"): value for name, value in headers.items()}

    return change


def wrong_bytes(answer: Answer) -> None:
    assert answer.data
    answer.data = bytes([answer.data[0] ^ 1]) + answer.data[1:]


def another_version(answer: Answer) -> None:
    answer.etag = '"another"'


def wrong_range(answer: Answer) -> None:
    answer.extra = {"range": "bytes 0-9/10"}


def longer(answer: Answer) -> None:
    assert answer.data is not None
    answer.data += b"more"
