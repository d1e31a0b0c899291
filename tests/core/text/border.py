"""The core's tokenizer through its C border, and how tests get it: built from its sources with the machine's own compiler."""

from __future__ import annotations

import ctypes
import json
import os
import shutil
import subprocess
from collections.abc import Iterable
from ctypes import POINTER, byref, c_char_p, c_int, c_int64, c_size_t, c_void_p
from pathlib import Path

CORE = Path(__file__).parents[3] / "phi3mobile" / "core"
SOURCES = [path for room in ("base", "text") for path in sorted((CORE / "src" / room).glob("*.cpp"))]
Spans = list[tuple[str, bool]]


def compiler() -> str | None:
    return os.environ.get("CXX") or next((name for name in ("c++", "g++", "clang++") if shutil.which(name)), None)


def build(target: Path, *flags: str, more: Iterable[Path] = ()) -> Path:
    """`target` compiled and linked from the sources of the tokenizer, each on its own, two at a time."""
    folder = target.parent / f"{target.name}.objects"
    folder.mkdir(parents=True)
    common = [str(compiler()), "-std=c++17", "-fPIC", f"-I{CORE / 'src'}", f"-I{CORE / 'include'}", "-Wall", "-Wextra", *flags]
    waiting, running, objects = [*SOURCES, *more], [], []
    while waiting or running:
        if waiting and len(running) < 2:
            source = waiting.pop()
            objects.append(folder / f"{source.parent.name}-{source.stem}.o")
            running.append(subprocess.Popen([*common, "-c", str(source), "-o", str(objects[-1])]))
            continue
        done = running.pop(0)
        if done.wait():
            raise RuntimeError(f"{done.args} failed")
    link = ["-shared"] if target.suffix == ".so" else []
    subprocess.run([*common, *link, *map(str, objects), "-o", str(target)], check=True)
    return target


def load(path: Path) -> ctypes.CDLL:
    library = ctypes.CDLL(str(path))
    text, error, ids = (c_char_p, c_size_t), (c_char_p, c_size_t), (POINTER(c_int64), c_size_t)
    signatures = {
        "p3m_tokenizer_open": (c_void_p, c_char_p, *error),
        "p3m_tokenizer_close": (None, c_void_p),
        "p3m_vocab_size": (c_int64, c_void_p),
        "p3m_control_id": (c_int64, c_void_p, c_char_p),
        "p3m_is_control": (c_int, c_void_p, c_int64),
        "p3m_token_bytes": (c_void_p, c_void_p, c_int64, POINTER(c_size_t)),
        "p3m_encode": (c_int64, c_void_p, *text, c_int, *ids, *error),
        "p3m_encode_spans": (c_int64, c_void_p, c_char_p, *ids, *error),
        "p3m_encode_chat": (c_int64, c_void_p, c_char_p, c_char_p, *ids, *error),
        "p3m_decode": (c_int64, c_void_p, *ids, *text, *error),
        "p3m_stream_open": (c_void_p, c_void_p, c_int, *error),
        "p3m_stream_push": (c_void_p, c_void_p, c_int64, POINTER(c_size_t)),
        "p3m_stream_finish": (c_void_p, c_void_p, POINTER(c_size_t)),
        "p3m_stream_close": (None, c_void_p),
    }
    for name, (result, *arguments) in signatures.items():
        function = getattr(library, name)
        function.restype, function.argtypes = result, arguments
    return library


class Refused(Exception):
    """What a function of the border said."""


class CoreTokenizer:
    """The core's tokenizer with the methods of phi3mobile.text.tokenizer.Tokenizer."""

    def __init__(self, library: ctypes.CDLL, folder: Path) -> None:
        self._library, self._error = library, ctypes.create_string_buffer(2000)
        self._ids = (c_int64 * 1000)()
        self._self = library.p3m_tokenizer_open(os.fsencode(folder), self._error, 2000)
        if not self._self:
            raise Refused(self._said())
        self.vocab_size: int = library.p3m_vocab_size(self._self)

    def __del__(self) -> None:
        self._library.p3m_tokenizer_close(self._self)

    def encode(self, text: str, special: bool = True) -> list[int]:
        return self.encode_bytes(text.encode("utf-8", "surrogatepass"), special)

    def encode_bytes(self, data: bytes, special: bool = True) -> list[int]:
        return self._counted(lambda *ids: self._library.p3m_encode(self._self, data, len(data), special, *ids))

    def encode_spans(self, spans: Spans) -> list[int]:
        data = json.dumps(spans, ensure_ascii=False).encode()
        return self._counted(lambda *ids: self._library.p3m_encode_spans(self._self, data, *ids))

    def encode_chat(self, segments: object, messages: object) -> list[int]:
        texts = [json.dumps(value, ensure_ascii=False).encode() for value in (segments, messages)]
        return self._counted(lambda *ids: self._library.p3m_encode_chat(self._self, *texts, *ids))

    def control_id(self, text: str) -> int:
        return self._library.p3m_control_id(self._self, text.encode())

    def is_control(self, token: int) -> bool:
        return bool(self._library.p3m_is_control(self._self, token))

    def token_bytes(self, token: int) -> bytes:
        size = c_size_t()
        return ctypes.string_at(self._library.p3m_token_bytes(self._self, token, byref(size)), size.value)

    def decode(self, ids: list[int]) -> str:
        given = (c_int64 * len(ids))(*ids)
        size = self._library.p3m_decode(self._self, given, len(ids), None, 0, self._error, 2000)
        text = ctypes.create_string_buffer(size)
        assert self._library.p3m_decode(self._self, given, len(ids), text, size, self._error, 2000) == size
        return text.raw.decode()

    def stream(self, at_start: bool = False) -> CoreStream:
        return CoreStream(self._library, self._self, at_start)

    def _counted(self, call) -> list[int]:
        count = call(self._ids, len(self._ids), self._error, 2000)
        if count < 0:
            raise Refused(self._said())
        if count > len(self._ids):
            self._ids = (c_int64 * count)()
            assert call(self._ids, count, self._error, 2000) == count
        return self._ids[:count]

    def _said(self) -> str:
        return self._error.value.decode()


class CoreStream:
    def __init__(self, library: ctypes.CDLL, tokenizer: int, at_start: bool) -> None:
        self._library, self._self = library, library.p3m_stream_open(tokenizer, at_start, None, 0)

    def __del__(self) -> None:
        self._library.p3m_stream_close(self._self)

    def push(self, token: int) -> str:
        size = c_size_t()
        return ctypes.string_at(self._library.p3m_stream_push(self._self, token, byref(size)), size.value).decode()

    def finish(self) -> str:
        size = c_size_t()
        return ctypes.string_at(self._library.p3m_stream_finish(self._self, byref(size)), size.value).decode()
