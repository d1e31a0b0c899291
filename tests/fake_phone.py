"""Stand-ins for what a phone has: ExecuTorch's Java classes as pyjnius shows them, and its Objective-C classes.

As strict as the real ones where a mistake would show only on a phone: types of arguments, buffers, retain counts. The .pte
itself is run by ExecuTorch's Python bindings. Signatures: executorch_android's Module.kt, Tensor.kt, EValue.kt and
ExecuTorchModule.h, ...Tensor.h, ...Value.h of 1.5.
"""

from __future__ import annotations

import ctypes
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

DTYPES = {4: np.int64, 6: np.float32}  # ExecuTorch's codes, the same in Java and Objective-C


class Program:
    """A loaded .pte: arrays in, arrays out."""

    def __init__(self, path: str) -> None:
        import torch

        from phi3mobile.engines.bindings import load_bindings

        self._torch, self._module = torch, load_bindings()._load_for_executorch(path)
        self._module.method_meta("forward")  # the bindings load a method when it is first used

    def run(self, inputs: list[np.ndarray]) -> list[np.ndarray]:
        return [value.numpy() for value in self._module.forward([self._torch.from_numpy(array) for array in inputs])]


class JavaException(Exception):
    pass


@dataclass
class LongBuffer:
    values: np.ndarray
    direct: bool = True

    def put(self, index: int, value: int) -> LongBuffer:
        assert type(index) is int and type(value) is int, "pyjnius converts Python's own integers"
        self.values[index] = value
        return self


@dataclass
class Tensor:
    array: np.ndarray
    direct: bool = True

    @staticmethod
    def allocateLongBuffer(count: int) -> LongBuffer:
        return LongBuffer(np.zeros(count, np.int64))

    @staticmethod
    def fromBlob(data: LongBuffer, shape: list[int]) -> Tensor:
        assert isinstance(data, LongBuffer), "a list would fit byte[], short[], int[], long[], ..."
        assert type(shape) is list and all(type(size) is int for size in shape)
        if len(data.values) != np.prod(shape):
            raise JavaException("JVM exception occurred: Inconsistent data capacity")
        return Tensor(data.values.reshape(shape))

    @staticmethod
    def fromByteArray(data: bytes) -> Tensor:
        shape = np.frombuffer(data, ">i4", data[1], 2)
        dtype = np.dtype(DTYPES[data[0]]).newbyteorder(">")
        return Tensor(np.frombuffer(data, dtype, offset=2 + 4 * data[1]).reshape(shape), direct=False)


class ByteArray:
    """pyjnius's: no buffer protocol."""

    def __init__(self, data: bytes) -> None:
        self._data = data

    def tostring(self) -> bytes:
        return self._data


@dataclass
class EValue:
    tensor: Tensor

    def toByteArray(self) -> ByteArray:
        array = self.tensor.array
        code = next(code for code, dtype in DTYPES.items() if dtype == array.dtype)
        sizes = np.array(array.shape, ">i4").tobytes()
        return ByteArray(bytes([1, code, array.ndim]) + sizes + array.astype(array.dtype.newbyteorder(">")).tobytes())


setattr(EValue, "from", staticmethod(lambda tensor: EValue(tensor)))


class Module:
    LOAD_MODE_FILE, LOAD_MODE_MMAP = 0, 1

    def __init__(self, program: Program) -> None:
        self._program: Program | None = program

    @staticmethod
    def load(path: str, mode: int, threads: int) -> Module:
        assert type(path) is str and path.startswith("/") and mode in (0, 1, 2, 3) and type(threads) is int
        try:
            return Module(Program(path))
        except RuntimeError as error:
            raise JavaException(f"JVM exception occurred: {error}") from None

    def loadMethod(self, name: str) -> None:
        assert name == "forward"

    def forward(self, *inputs: EValue) -> list[EValue]:
        if self._program is None:
            raise JavaException("JVM exception occurred: Module has been destroyed")
        assert all(value.tensor.direct for value in inputs), "JNI asks for the address of a direct buffer"
        return [EValue(Tensor(array)) for array in self._program.run([value.tensor.array for value in inputs])]

    def destroy(self) -> None:
        self._program = None


def find_class(name: str) -> Any:
    """jnius.autoclass."""
    package, _, own = name.rpartition(".")
    assert package == "org.pytorch.executorch"
    return {"Module": Module, "Tensor": Tensor, "EValue": EValue}[own]


class Intent:
    def __init__(self, extras: dict[str, str]) -> None:
        self._extras = extras

    def getStringExtra(self, name: str) -> str | None:
        return self._extras.get(name)


class File:
    def __init__(self, path: Path) -> None:
        self._path = path

    def getAbsolutePath(self) -> str:
        return str(self._path)


def java(shared: Path, extras: dict[str, str]) -> Any:
    """jnius.autoclass in an app of python-for-android: its activity was started by an intent with `extras`."""

    class Activity:
        def getIntent(self) -> Intent:
            return Intent(extras)

        def getExternalFilesDir(self, kind: None) -> File:
            shared.mkdir(parents=True, exist_ok=True)
            return File(shared)

        def getFilesDir(self) -> File:
            return File(shared.parent)

    class PythonActivity:
        mActivity = Activity()

    return lambda name: PythonActivity if name == "org.kivy.android.PythonActivity" else find_class(name)


@dataclass
class Instance:
    kind: str
    value: Any = None
    retained: int = 1


@dataclass
class FakeObjectiveC:
    """engines.apple.ObjectiveC over Python objects that count their references. `live` is what was never given back."""

    objects: dict[int, Instance] = field(default_factory=dict)
    pools: list[list[int]] = field(default_factory=list)
    _next: int = 0x1000

    @property
    def live(self) -> list[str]:
        return [instance.kind for instance in self.objects.values()]

    def _new(self, kind: str, value: Any = None, autorelease: bool = False) -> int:
        self._next += 16
        self.objects[self._next] = Instance(kind, value)
        if autorelease:
            assert self.pools, "autoreleased with no pool in place: leaks"
            self.pools[-1].append(self._next)
        return self._next

    def _release(self, address: int) -> None:
        instance = self.objects[address]  # KeyError: released too often
        instance.retained -= 1
        if instance.retained == 0:
            for held in instance.value if instance.kind == "NSArray" else ():
                self._release(held)
            del self.objects[address]

    def send(self, target: int | str, selector: str, *arguments: Any) -> int:
        assert selector.count(":") == len(arguments)
        if isinstance(target, str):
            assert selector == "alloc"
            return self._new(target)
        if target == 0:
            return 0
        kind = self.objects[target].kind
        method = getattr(self, f"{kind}_{selector.replace(':', '_')}", None)
        if selector == "release":
            self._release(target)
            return 0
        assert method, f"{kind} does not answer to {selector}"
        return method(target, *arguments)

    def text(self, value: str) -> int:
        return self._new("NSString", value, autorelease=True)

    def number(self, value: int) -> int:
        assert type(value) is int
        return self._new("NSNumber", value, autorelease=True)

    def array(self, objects: list[int]) -> int:
        for item in objects:
            self.objects[item].retained += 1
        return self._new("NSArray", list(objects), autorelease=True)

    def read_text(self, string: int) -> str:
        return self.objects[string].value

    @contextmanager
    def pool(self):
        self.pools.append([])
        try:
            yield
        finally:
            for address in self.pools.pop():
                self._release(address)

    def byte_handler(self, sink: list[tuple[bytes, int]]) -> Any:
        return lambda data, kind: sink.append((data, kind))

    def ExecuTorchModule_initWithFilePath_loadMode_(self, own: int, path: int, mode: int) -> int:
        assert mode in (0, 1, 2, 3)
        self.objects[own].value = self.objects[path].value  # loads lazily
        return own

    def ExecuTorchModule_loadMethod_error_(self, own: int, name: int, error: Any) -> int:
        assert self.objects[name].value == "forward"
        try:
            self.objects[own].value = Program(self.objects[own].value)
        except RuntimeError as problem:
            ctypes.cast(error, ctypes.POINTER(ctypes.c_void_p))[0] = self._new("NSError", str(problem), autorelease=True)
            return 0x7F00  # NO, with what was left in the register
        return 0x7F01

    def NSError_localizedDescription(self, own: int) -> int:
        return self.text(self.objects[own].value)

    def ExecuTorchTensor_initWithBytes_shape_dataType_(self, own: int, pointer: Any, shape: int, kind: int) -> int:
        assert isinstance(pointer, ctypes.c_void_p)
        sizes = [self.objects[size].value for size in self.objects[shape].value]
        dtype = np.dtype(DTYPES[kind])
        data = ctypes.string_at(pointer, int(np.prod(sizes)) * dtype.itemsize)
        self.objects[own].value = np.frombuffer(data, dtype).reshape(sizes).copy()
        return own

    def ExecuTorchModule_forwardWithTensors_error_(self, own: int, tensors: int, error: Any) -> int:
        outputs = self.objects[own].value.run([self.objects[tensor].value for tensor in self.objects[tensors].value])
        values = [self._new("ExecuTorchValue", self._new("ExecuTorchTensor", array, True), True) for array in outputs]
        for value in values:
            self.objects[value].retained += 1
        return self._new("NSArray", values)  # NS_RETURNS_RETAINED

    def NSArray_objectAtIndex_(self, own: int, index: int) -> int:
        return self.objects[own].value[index]

    def ExecuTorchValue_tensorValue(self, own: int) -> int:
        return self.objects[own].value

    def ExecuTorchTensor_bytesWithHandler_(self, own: int, handler: Any) -> int:
        array = self.objects[own].value
        code = next(code for code, dtype in DTYPES.items() if dtype == array.dtype)
        handler(array.tobytes(), code)
        return 0


class FakePhone(FakeObjectiveC):
    """The same with UIDevice and NSProcessInfo: 80 %, unplugged, fair."""

    def send(self, target: int | str, selector: str, *arguments: Any) -> int:
        if isinstance(target, str) and selector in ("currentDevice", "processInfo"):
            return self._new(target, autorelease=True)
        return super().send(target, selector, *arguments)

    def UIDevice_setBatteryMonitoringEnabled_(self, own: int, on: int) -> int:
        self.objects[own].value = on
        return 0

    def UIDevice_valueForKey_(self, own: int, key: Any) -> int:
        assert isinstance(key, ctypes.c_void_p) and self.objects[key.value].value == "batteryLevel"
        return self._new("NSNumber", 0.8 if self.objects[own].value else -1.0, autorelease=True)

    def UIDevice_batteryState(self, own: int) -> int:
        return 1 if self.objects[own].value else 0

    def NSNumber_stringValue(self, own: int) -> int:
        return self.text(f"{self.objects[own].value:g}")

    def NSProcessInfo_thermalState(self, own: int) -> int:
        return 1


def pte_of(bundle: Path) -> Path:
    return bundle / "model.pte"
