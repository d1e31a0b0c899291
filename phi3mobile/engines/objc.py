"""The Objective-C runtime through ctypes: messages, strings, arrays, autorelease pools, and the one block we need.

Sources: objc/message.h and objc/runtime.h; the block's layout is Clang's "Block Implementation Specification".
"""

from __future__ import annotations

import ctypes
import ctypes.util
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from phi3mobile.errors import InputError

_GLOBAL, _HAS_SIGNATURE = 1 << 28, 1 << 30  # BLOCK_IS_GLOBAL, BLOCK_HAS_SIGNATURE
_WIDTHS = {0: 1, 1: 1, 2: 2, 3: 4, 4: 8, 5: 2, 6: 4, 7: 8, 11: 1}  # bytes by ExecuTorchDataType
_HANDLER = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_ssize_t, ctypes.c_int8)


class _Descriptor(ctypes.Structure):
    _fields_ = (("reserved", ctypes.c_ulong), ("size", ctypes.c_ulong), ("signature", ctypes.c_char_p))


class _Block(ctypes.Structure):
    _fields_ = (
        ("isa", ctypes.c_void_p),
        ("flags", ctypes.c_int),
        ("reserved", ctypes.c_int),
        ("invoke", _HANDLER),
        ("descriptor", ctypes.POINTER(_Descriptor)),
    )


class Runtime:
    """See engines.apple.ObjectiveC. Raises InputError where there is no Objective-C or no ExecuTorch in the process."""

    def __init__(self) -> None:
        path = ctypes.util.find_library("objc")
        if path is None:
            raise InputError("this engine runs on iOS and macOS: there is no Objective-C runtime here")
        self._library = ctypes.CDLL(path)
        pointer, text = ctypes.c_void_p, ctypes.c_char_p
        for name, result, arguments in (
            ("objc_getClass", pointer, [text]),
            ("sel_registerName", pointer, [text]),
            ("objc_autoreleasePoolPush", pointer, []),
            ("objc_autoreleasePoolPop", None, [pointer]),
        ):
            function = getattr(self._library, name)
            function.restype, function.argtypes = result, arguments
        if not self._library.objc_getClass(b"ExecuTorchModule"):
            raise InputError("ExecuTorch is not linked into this app: add its frameworks (executorch, backend_xnnpack, ...)")

    def send(self, target: int | str, selector: str, *arguments: Any) -> int:
        target = self._library.objc_getClass(target.encode()) if isinstance(target, str) else target
        kinds = [ctypes.c_ssize_t if isinstance(value, int) else type(value) for value in arguments]
        kinds = [ctypes.c_void_p if kind.__name__ == "CArgObject" else kind for kind in kinds]  # byref(...)
        # arm64 passes variadic arguments elsewhere: objc_msgSend must be called as the function that the selector is.
        kind = ctypes.CFUNCTYPE(ctypes.c_void_p, ctypes.c_void_p, ctypes.c_void_p, *kinds)
        function = ctypes.cast(self._library.objc_msgSend, kind)
        return function(target, self._library.sel_registerName(selector.encode()), *arguments) or 0

    def text(self, value: str) -> int:
        return self.send("NSString", "stringWithUTF8String:", ctypes.c_char_p(value.encode()))

    def array(self, objects: list[int]) -> int:
        array = self.send("NSMutableArray", "array")
        for item in objects:
            self.send(array, "addObject:", ctypes.c_void_p(item))
        return array

    def number(self, value: int) -> int:
        return self.send("NSNumber", "numberWithLongLong:", ctypes.c_longlong(value))

    def read_text(self, string: int) -> str:
        return (ctypes.cast(self.send(string, "UTF8String"), ctypes.c_char_p).value or b"").decode()

    @contextmanager
    def pool(self) -> Iterator[None]:
        token = self._library.objc_autoreleasePoolPush()
        try:
            yield
        finally:
            self._library.objc_autoreleasePoolPop(token)

    def byte_handler(self, sink: list[tuple[bytes, int]]) -> Any:
        def invoke(block: int, pointer: int, count: int, kind: int) -> None:
            sink.append((ctypes.string_at(pointer, count * _WIDTHS[kind]), kind))

        isa = ctypes.addressof(ctypes.c_void_p.in_dll(self._library, "_NSConcreteGlobalBlock"))
        return make_block(isa, invoke)


def make_block(isa: int, invoke: Any) -> Any:
    """A pointer to a block `void (^)(const void *pointer, NSInteger count, ExecuTorchDataType dataType)`.

    The result keeps everything alive that the block needs.
    """
    descriptor = _Descriptor(0, ctypes.sizeof(_Block), b"v32@?0^v8q16c24")
    block = _Block(isa, _GLOBAL | _HAS_SIGNATURE, 0, _HANDLER(invoke), ctypes.pointer(descriptor))
    return ctypes.pointer(block)
