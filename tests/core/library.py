"""The core through its C border: what an app in another language does, for tests."""

from __future__ import annotations

import ctypes
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from phi3mobile.engines.native import native_library

ERROR, DONE, TEXT, NOTE, PROGRESS, TOOL_CALL = -1, 0, 1, 2, 3, 4
SIZE, TEXT_P, POINTER = ctypes.c_int64, ctypes.c_char_p, ctypes.c_void_p
FORWARD = ctypes.CFUNCTYPE(
    ctypes.c_int,
    POINTER,
    ctypes.POINTER(SIZE),
    SIZE,
    SIZE,
    ctypes.c_int,
    ctypes.POINTER(ctypes.c_float),
    POINTER,
    ctypes.c_size_t,
)
FLOATS = ctypes.POINTER(ctypes.c_float)
FORWARD_ROWS = ctypes.CFUNCTYPE(ctypes.c_int, POINTER, FLOATS, SIZE, SIZE, ctypes.c_int, FLOATS, POINTER, ctypes.c_size_t)
ENCODE = ctypes.CFUNCTYPE(ctypes.c_int, POINTER, FLOATS, FLOATS, POINTER, ctypes.c_size_t)
PROJECT = ctypes.CFUNCTYPE(ctypes.c_int, POINTER, FLOATS, SIZE, FLOATS, POINTER, ctypes.c_size_t)
HOOK = ctypes.CFUNCTYPE(None, POINTER)
VERIFIED = ctypes.CFUNCTYPE(ctypes.c_int, POINTER, SIZE, SIZE)


class CoreError(Exception):
    """The line that a call failed with."""


class HostEngine(ctypes.Structure):
    _fields_ = (("version", ctypes.c_int32), ("user", POINTER), ("forward", FORWARD), ("reset", HOOK), ("close", HOOK))


class HostTower(ctypes.Structure):
    _fields_ = (("num_crops", ctypes.c_int32), ("forward_rows", FORWARD_ROWS), ("encode", ENCODE), ("project", PROJECT))


def core() -> ctypes.CDLL:
    """The library with the signatures of core/include/phi3mobile_session.h."""
    path = native_library()
    assert path is not None
    library = ctypes.CDLL(str(path))
    failing = [TEXT_P, ctypes.c_size_t]
    for name, result, arguments in (
        ("p3m_api_version", ctypes.c_int, []),
        ("p3m_bundle_open", POINTER, [TEXT_P, *failing]),
        ("p3m_bundle_manifest", TEXT_P, [POINTER]),
        ("p3m_bundle_verify", ctypes.c_int, [POINTER, VERIFIED, POINTER, *failing]),
        ("p3m_bundle_close", None, [POINTER]),
        ("p3m_session_open", POINTER, [TEXT_P, TEXT_P, *failing]),
        ("p3m_session_open_with", POINTER, [TEXT_P, ctypes.POINTER(HostEngine), *failing]),
        ("p3m_session_open_seeing", POINTER, [TEXT_P, ctypes.POINTER(HostEngine), ctypes.POINTER(HostTower), *failing]),
        ("p3m_session_picture", SIZE, [POINTER, POINTER, SIZE, SIZE, SIZE, ctypes.c_int, ctypes.c_int, *failing]),
        ("p3m_session_keep_features", ctypes.c_int, [POINTER, TEXT_P, TEXT_P, *failing]),
        ("p3m_session_start", ctypes.c_int, [POINTER, TEXT_P, *failing]),
        ("p3m_guidance", TEXT_P, [TEXT_P, *failing]),
        ("p3m_session_next", ctypes.c_int, [POINTER, ctypes.POINTER(POINTER), ctypes.POINTER(ctypes.c_size_t)]),
        ("p3m_session_cancel", None, [POINTER]),
        ("p3m_session_reset", None, [POINTER]),
        ("p3m_session_save", SIZE, [POINTER, TEXT_P, *failing]),
        ("p3m_session_restore", SIZE, [POINTER, TEXT_P, *failing]),
        ("p3m_session_close", None, [POINTER]),
    ):
        function = getattr(library, name)
        function.restype, function.argtypes = result, arguments
    return library


def has_guidance() -> bool:
    """Whether this build has constrained output."""
    if native_library() is None:
        return False
    return core().p3m_guidance(None, None, 0) is not None


def asked(call: Callable[..., Any], *arguments: Any) -> Any:
    """What a call that may fail gives. CoreError: null, or less than 0."""
    error = ctypes.create_string_buffer(2000)
    result = call(*arguments, error, len(error))
    if result is None or (isinstance(result, int) and result < 0):
        raise CoreError(error.value.decode())
    return result


@dataclass
class Answer:
    text: str
    pieces: list[str]
    notes: list[str]
    progress: list[tuple[int, int]]
    statistics: dict[str, Any]


def told(error: Any, size: int, work: Callable[[], None]) -> int:
    """What a function of the host's gives: 0, or 1 and the line of what `work` raised."""
    try:
        work()
    except Exception as failed:
        line = str(failed).encode()[: size - 1] + b"\0"
        ctypes.memmove(error, line, len(line))
        return 1
    return 0


class CoreSession:
    """A session of the core. engine: any phi3mobile Engine, called back, and a Tower where it sees; None: the bundle's own."""

    def __init__(
        self, folder: Path, engine: Any = None, options: dict[str, Any] | None = None, tower: Any = None, num_crops: int = 0
    ) -> None:
        self.library = core()
        self.closed = False
        if engine is None:
            text = None if options is None else json.dumps(options).encode()
            self.handle = asked(self.library.p3m_session_open, bytes(folder), text)
            return
        self._engine = self._host_engine(engine)
        if tower is None:
            self.handle = asked(self.library.p3m_session_open_with, bytes(folder), ctypes.byref(self._engine))
            return
        self._tower = self._host_tower(engine, tower, num_crops)
        given = ctypes.byref(self._engine), ctypes.byref(self._tower)
        self.handle = asked(self.library.p3m_session_open_seeing, bytes(folder), *given)

    def _host_engine(self, engine: Any) -> HostEngine:
        def forward(user: Any, tokens: Any, count: int, position: int, is_long: int, logits: Any, error: Any, size: int) -> int:
            def work() -> None:
                found = engine.forward(np.ctypeslib.as_array(tokens, (count,)).copy(), position, bool(is_long))
                np.ctypeslib.as_array(logits, (count, engine.info.vocab))[:] = found

            return told(error, size, work)

        def close(user: Any) -> None:
            self.closed = True

        return HostEngine(1, None, FORWARD(forward), HOOK(lambda user: engine.reset()), HOOK(close))

    def _host_tower(self, engine: Any, tower: Any, num_crops: int) -> HostTower:
        width = len(tower.separators[0])

        def rows(user: Any, given: Any, count: int, position: int, is_long: int, logits: Any, error: Any, size: int) -> int:
            def work() -> None:
                found = engine.forward_embeddings(
                    np.ctypeslib.as_array(given, (count, tower.hidden)).copy(), position, bool(is_long)
                )
                np.ctypeslib.as_array(logits, (count, engine.info.vocab))[:] = found

            return told(error, size, work)

        def encode(user: Any, view: Any, patches: Any, error: Any, size: int) -> int:
            def work() -> None:
                found = tower.encode(np.ctypeslib.as_array(view, (3, 336, 336)).copy())
                np.ctypeslib.as_array(patches, (576, width // 4))[:] = found

            return told(error, size, work)

        def project(user: Any, given: Any, count: int, embedded: Any, error: Any, size: int) -> int:
            def work() -> None:
                found = tower.project(np.ctypeslib.as_array(given, (count, width)).copy())
                np.ctypeslib.as_array(embedded, (count, tower.hidden))[:] = found

            return told(error, size, work)

        return HostTower(num_crops, FORWARD_ROWS(rows), ENCODE(encode), PROJECT(project))

    def picture(self, pixels: np.ndarray, orientation: int = 1) -> int:
        """The number that stands for uint8 [height, width, 3 or 4] in messages; rows may have gaps."""
        height, width, channels = pixels.shape
        place = pixels.ctypes.data, width, height, pixels.strides[0], channels, orientation
        return asked(self.library.p3m_session_picture, self.handle, *place)

    def keep_features(self, folder: Path | str | None, runtime: str | None = None) -> None:
        place = None if folder is None else str(folder).encode()
        asked(self.library.p3m_session_keep_features, self.handle, place, None if runtime is None else runtime.encode())

    def start(self, request: dict[str, Any] | str) -> None:
        text = request if isinstance(request, str) else json.dumps(request, ensure_ascii=False)
        asked(self.library.p3m_session_start, self.handle, text.encode())

    def next(self) -> tuple[int, str]:
        text, size = ctypes.c_void_p(), ctypes.c_size_t()
        kind = self.library.p3m_session_next(self.handle, ctypes.byref(text), ctypes.byref(size))
        return kind, ctypes.string_at(text.value or 0, size.value).decode()

    def cancel(self) -> None:
        self.library.p3m_session_cancel(self.handle)

    def answer(self, request: dict[str, Any] | str, cancel_after: int | None = None) -> Answer:
        """The whole answer; cancelled after so many pieces of text. CoreError: refused, or ended by an error."""
        self.start(request)
        found = Answer("", [], [], [], {})
        while True:
            kind, text = self.next()
            if kind == DONE:
                found.statistics = json.loads(text)
                found.text = "".join(found.pieces)
                return found
            if kind == ERROR:
                raise CoreError(text)
            if kind == TEXT:
                found.pieces.append(text)
                if len(found.pieces) == cancel_after:
                    self.cancel()
            elif kind == NOTE:
                found.notes.append(json.loads(text)["message"])
            elif kind == PROGRESS:
                progress = json.loads(text)
                found.progress.append((progress["done"], progress["total"]))

    def reset(self) -> None:
        self.library.p3m_session_reset(self.handle)

    def save(self, path: Path) -> int:
        return asked(self.library.p3m_session_save, self.handle, bytes(path))

    def restore(self, path: Path) -> int:
        return asked(self.library.p3m_session_restore, self.handle, bytes(path))

    def close(self) -> None:
        if self.handle is not None:
            self.library.p3m_session_close(self.handle)
            self.handle = None


@contextmanager
def core_session(
    folder: Path, engine: Any = None, options: dict[str, Any] | None = None, tower: Any = None, num_crops: int = 0
) -> Iterator[CoreSession]:
    session = CoreSession(folder, engine, options, tower, num_crops)
    try:
        yield session
    finally:
        session.close()
