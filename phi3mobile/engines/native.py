"""The native runner as an engine: .pte memory-mapped, packed weights in a file, our kernels; no torch.

A wheel brings the library; in a checkout `make native` builds it; an Android app has it among its own (apps/android/README.md).
"""

from __future__ import annotations

import ctypes
import re
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from phi3mobile.engines import expert_file, packed_cache
from phi3mobile.engines.base import BaseEngine, check_bundle, marked
from phi3mobile.errors import InputError
from phi3mobile.info import EngineInfo

if TYPE_CHECKING:
    from phi3mobile.bundle import Bundle

_ERROR_SIZE = 2000
_ANDROID = "libphi3mobile.so"
_CREATED, _REUSED, _NONE = 1, 2, 3


def native_library() -> Path | None:
    """The built library, if it is there: in this package, on Android among the app's, whose loader knows it by its name."""
    if hasattr(sys, "getandroidapilevel"):
        return Path(_ANDROID) if _android_finds(_ANDROID) else None
    name = "libphi3mobile.dylib" if sys.platform == "darwin" else "libphi3mobile.so"
    path = Path(__file__).parents[1] / "native" / name
    return path if path.is_file() else None


def _android_finds(name: str) -> bool:
    """Whether the loader finds a library. One that is there and does not load is found: load_library says why."""
    try:
        ctypes.CDLL(name)
    except OSError as error:
        return not re.search(rf'{re.escape(name)}("? not found|: cannot open shared object)', str(error))
    return True


def where_from() -> str:
    """How this installation gets the library."""
    if hasattr(sys, "getandroidapilevel"):
        return f"build the app with {_ANDROID} (apps/android/README.md)"
    if (Path(__file__).parents[2] / "Makefile").is_file():
        return "run `make native`"
    return "install phi3mobile's wheel for this platform, or clone its repository and run `make native` there"


def load_library() -> ctypes.CDLL:
    """The library with the signatures of core/include/phi3mobile.h; loading it registers our operators in this process."""
    path = native_library()
    if path is None:
        raise InputError(
            f"this bundle needs phi3mobile's kernels, which are not here: {where_from()}; a bundle of recipe android-cpu does "
            "without them"
        )
    try:
        library = ctypes.CDLL(str(path))
    except OSError as error:
        raise InputError(f"the native library does not load ({error}); get it again: {where_from()}") from error
    pointer, text, size = ctypes.c_void_p, ctypes.c_char_p, ctypes.c_int64
    for name, result, arguments in (
        ("p3m_open", pointer, [text, text, ctypes.c_int, text, ctypes.c_size_t]),
        ("p3m_forward", ctypes.c_int, [pointer, pointer, size, size, pointer]),
        ("p3m_forward_embeddings", ctypes.c_int, [pointer, pointer, size, size, size, pointer]),
        ("p3m_prefill", ctypes.c_int, [pointer, pointer, size, size]),
        ("p3m_prefill_embeddings", ctypes.c_int, [pointer, pointer, size, size, size]),
        ("p3m_embed", ctypes.c_int, [pointer, pointer, size, pointer]),
        ("p3m_compute", size, [pointer, text, pointer, ctypes.POINTER(size), ctypes.c_int, pointer, size]),
        ("p3m_logits", pointer, [pointer, ctypes.POINTER(size), ctypes.POINTER(size)]),
        ("p3m_metadata", size, [pointer, text, ctypes.POINTER(size), size]),
        ("p3m_error", text, [pointer]),
        ("p3m_packed_state", ctypes.c_int, [pointer]),
        ("p3m_packed_reason", text, [pointer]),
        ("p3m_threads", ctypes.c_int, []),
        ("p3m_set_threads", ctypes.c_int, [ctypes.c_int]),
        ("p3m_use_isa", ctypes.c_int, [text]),
        ("p3m_isa", text, []),
        (
            "p3m_round_groups",
            ctypes.c_int,
            [pointer, pointer, size, size, ctypes.c_int, ctypes.c_int, pointer, ctypes.c_int, pointer, pointer],
        ),
        ("p3m_has_operator", ctypes.c_int, [text]),
        ("p3m_runtime_version", text, []),
        ("p3m_open_experts", ctypes.c_int, [pointer, text, ctypes.c_uint64, ctypes.c_int, text, ctypes.c_size_t]),
        ("p3m_expert_statistics", size, [pointer, ctypes.POINTER(size), size]),
        ("p3m_save_state", size, [pointer, text, text, text, ctypes.c_size_t]),
        ("p3m_load_state", ctypes.c_int, [pointer, text, text, ctypes.c_size_t]),
        ("p3m_state_about", size, [text, text, ctypes.c_size_t, text, ctypes.c_size_t]),
        ("p3m_close", None, [pointer]),
    ):
        function = getattr(library, name, None)
        if function is None:
            raise InputError(f"the native library is of another version of phi3mobile; get it again: {where_from()}")
        function.restype, function.argtypes = result, arguments
    return library


def runtime_version() -> str:
    """The ExecuTorch version the library was built for."""
    return load_library().p3m_runtime_version().decode()


def instruction_set() -> str:
    """What our kernels use on this machine: avx512, avx2, neon or baseline."""
    return load_library().p3m_isa().decode()


def open_native(bundle: Bundle, threads: int = 0, experts_memory: int | None = None) -> NativeEngine:
    """The engine of a bundle, its packed weights in the user's cache; `load_s` on it is the time this took.

    experts_memory: bytes for a mixture's experts; None: the manifest's default, else as much as they need. Raises InputError.
    """
    start = time.perf_counter()
    library, needed = load_library(), bundle.manifest["runtime"]["operators"]
    check_bundle(bundle, runtime_version(), [name for name in needed if library.p3m_has_operator(name.encode())])
    program = bundle.manifest["files"][bundle.manifest["runtime"]["program"]]
    packs = bundle.manifest["runtime"].get("packs", True)
    file = packed_cache.file_for(program["sha256"], runtime_version()) if packs else None
    engine = NativeEngine(bundle.program, bundle.info, file, threads)
    if (about := bundle.manifest["runtime"].get("experts")) is not None:
        try:
            memory = experts_memory if experts_memory is not None else about.get("memory")
            engine.open_experts(bundle.folder / about["file"], memory or 0, about["used"])
        except BaseException:
            engine.close()
            raise
    engine.load_s = time.perf_counter() - start
    return engine


class NativeProgram:
    """An opened .pte.

    `packed_cache` tells where its packed weights are: "created" or "reused" (in the file), "heap: <why>", or "none".
    """

    def __init__(self, pte: Path, cache_file: Path | None, threads: int = 0) -> None:
        """threads: size of the process's one thread pool; 0: every physical core. Raises InputError."""
        if not pte.is_file():
            raise InputError(f"{pte} is not a file: give the .pte of a bundle")
        if threads < 0:
            raise InputError(f"{threads} threads were asked for: give 0 (all cores) or more")
        self.model: int | None = None
        self.library = load_library()
        if cache_file is None:
            self._open(pte, None, threads)
            self.packed_cache = self._packed("no cache file was given")
            return
        # Packed weights are about as large as the program that holds them.
        with packed_cache.reserve(cache_file.absolute(), pte.stat().st_size) as slot:
            self._open(pte, slot.file, threads)
            self.packed_cache = f"heap: {slot.reason}"
            if slot.file is not None:
                self.packed_cache = self._packed()
                if self.packed_cache == "created":
                    slot.keep()

    def _open(self, pte: Path, cache_file: Path | None, threads: int) -> None:
        error = ctypes.create_string_buffer(_ERROR_SIZE)
        cache = bytes(cache_file) if cache_file else None
        self.model = self.library.p3m_open(bytes(pte), cache, threads, error, _ERROR_SIZE)
        if not self.model:
            raise InputError(f"{pte}: {error.value.decode(errors='replace')}")

    def _packed(self, why_not: str = "") -> str:
        state = self.library.p3m_packed_state(self.model)
        if state == _NONE:
            return "none"
        if state == _CREATED:
            return "created"
        if state == _REUSED:
            return "reused"
        reason = self.library.p3m_packed_reason(self.model).decode(errors="replace")
        return f"heap: {why_not or reason}"

    def error(self) -> str:
        """What the last failed call said."""
        return self.library.p3m_error(self.model).decode(errors="replace")

    def compute(self, method: str, given: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
        """The result of a method that makes one tensor of one, float32 of `shape`, of contiguous float32 values."""
        found, sizes = np.empty(shape, np.float32), (ctypes.c_int64 * given.ndim)(*given.shape)
        count = self.library.p3m_compute(
            self.model, method.encode(), given.ctypes.data, sizes, given.ndim, found.ctypes.data, found.size
        )
        if count != found.size:
            raise RuntimeError(self.error() if count < 0 else f"{method} gave {count} values, not {found.size}")
        return found

    def close(self) -> None:
        """Give the memory back, once."""
        if self.model is not None:
            self.library.p3m_close(self.model)
            self.model = None

    def __del__(self) -> None:
        if getattr(self, "model", None) is not None:
            self.close()


class NativeEngine(BaseEngine):
    """Runs `forward(tokens, input_pos)` of a .pte, or `token_embedding` and `text_decoder` where info.hidden says that it has
    these."""

    borrows = True

    def __init__(self, pte: Path, info: EngineInfo, cache_file: Path | None, threads: int = 0) -> None:
        """As NativeProgram."""
        super().__init__(info)
        self._program = NativeProgram(pte, cache_file, threads)
        self._library = self._program.library

    @property
    def _model(self) -> int | None:
        return self._program.model

    @property
    def packed_cache(self) -> str:
        """See NativeProgram."""
        return self._program.packed_cache

    @property
    def threads(self) -> int:
        """Threads of the pool that the model runs on."""
        return self._library.p3m_threads()

    def prefill(self, tokens: np.ndarray, position: int, long: bool = False) -> np.ndarray:
        tokens = self._checked(tokens, position)
        place = (len(tokens), marked(position, self._is_long(position + len(tokens), long)))
        return self._logits(self._library.p3m_prefill(self._model, tokens.ctypes.data, *place))[-1].copy()

    def prefill_embeddings(self, rows: np.ndarray, position: int, long: bool = False) -> np.ndarray:
        rows = self._checked_rows(rows, position)
        place = (*rows.shape, marked(position, self._is_long(position + len(rows), long)))
        return self._logits(self._library.p3m_prefill_embeddings(self._model, rows.ctypes.data, *place))[-1].copy()

    def _run(self, tokens: np.ndarray, position: int, long: bool) -> np.ndarray:
        return self._logits(
            self._library.p3m_forward(self._model, tokens.ctypes.data, len(tokens), marked(position, long), None)
        )

    def _run_embeddings(self, rows: np.ndarray, position: int, long: bool) -> np.ndarray:
        place = (*rows.shape, marked(position, long))
        return self._logits(self._library.p3m_forward_embeddings(self._model, rows.ctypes.data, *place, None))

    def _embed(self, tokens: np.ndarray) -> np.ndarray:
        rows = np.empty((len(tokens), self.info.hidden or 0), np.float32)
        if self._library.p3m_embed(self._model, tokens.ctypes.data, len(tokens), rows.ctypes.data):
            raise RuntimeError(self._program.error())
        return rows

    def _logits(self, failed: int) -> np.ndarray:
        if failed:
            message = self._program.error()
            raise InputError(message) if message.startswith("experts: ") else RuntimeError(message)
        count, vocab = ctypes.c_int64(), ctypes.c_int64()
        logits = self._library.p3m_logits(self._model, ctypes.byref(count), ctypes.byref(vocab))
        values = (ctypes.c_float * (count.value * vocab.value)).from_address(logits)
        return np.ctypeslib.as_array(values).reshape(count.value, vocab.value)

    def open_experts(self, file: Path, memory: int, used: int) -> None:
        """Give the model its file of experts, `memory` bytes for them (0: all of them, mapped), of which a
        token goes to `used`. InputError: a damaged file, or memory for less than a token needs."""
        error = ctypes.create_string_buffer(_ERROR_SIZE)
        if self._library.p3m_open_experts(self._model, bytes(file), memory, used, error, _ERROR_SIZE):
            raise InputError(error.value.decode(errors="replace"))

    @property
    def experts(self) -> dict[str, Any] | None:
        """What was counted of the experts since they were opened (expert_file.statistics); None: a model without."""
        return None if self._model is None else expert_file.statistics(self._library, self._model)

    def save_state(self, path: Path, about: str) -> int:
        """Write the KV cache and a text about it to `path`, whole or not at all: bytes of the file. Raises InputError."""
        error = ctypes.create_string_buffer(_ERROR_SIZE)
        size = self._library.p3m_save_state(self._model, bytes(path), about.encode(), error, _ERROR_SIZE)
        if size < 0:
            raise InputError(error.value.decode(errors="replace"))
        return size

    def load_state(self, path: Path) -> None:
        """Fill the KV cache as it was. InputError: another program's, or damaged; what the cache holds then is unknown."""
        error = ctypes.create_string_buffer(_ERROR_SIZE)
        if self._library.p3m_load_state(self._model, bytes(path), error, _ERROR_SIZE):
            raise InputError(error.value.decode(errors="replace"))

    def state_about(self, path: Path) -> str:
        """The text of a saved state. InputError: no such file, or no state."""
        error = ctypes.create_string_buffer(_ERROR_SIZE)
        size = self._library.p3m_state_about(bytes(path), None, 0, error, _ERROR_SIZE)
        if size < 0:
            raise InputError(error.value.decode(errors="replace"))
        about = ctypes.create_string_buffer(size + 1)
        self._library.p3m_state_about(bytes(path), about, size + 1, error, _ERROR_SIZE)
        return about.value.decode(errors="replace")

    def state_runtime(self) -> str:
        """The runtime that a saved KV cache belongs to."""
        return self._library.p3m_runtime_version().decode()

    def metadata(self, name: str) -> list[int]:
        """The integers of a metadata method, such as get_eos_ids; empty if there is none."""
        values = (ctypes.c_int64 * 64)()
        count = self._library.p3m_metadata(self._model, name.encode(), values, len(values))
        return list(values[: max(count, 0)])

    def _release(self) -> None:
        self._program.close()
