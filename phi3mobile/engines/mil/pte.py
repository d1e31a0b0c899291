"""Core ML packages inside an ExecuTorch program."""

from __future__ import annotations

import json
import tempfile
import weakref
from contextlib import ExitStack
from pathlib import Path

from phi3mobile.engines.mil.program import Program, load
from phi3mobile.errors import InputError
from phi3mobile.files import scratch_folder

_BACKEND = "CoreMLBackend"
_REFERENCE = b"CMJR"  # before JSON that names where in the program's named data the package is
_PACKAGE = "model.mlpackage"


def blobs_of_pte(path: str | Path) -> list[Program]:
    """The programs that a .pte delegates to Core ML, in its order; a package shared by several methods comes once.

    They are unpacked into a temporary folder that lives as long as the program. Raises InputError: no .pte, nothing of Core ML
    in it, or compiled packages, which only Apple's framework reads.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(f"{path} is not a file; give a .pte exported for the CoreML backend")
    return [_unpacked(blob, path) for blob in _blobs(path)]


def _blobs(path: Path) -> list[bytes]:
    from executorch.exir._serialize._program import deserialize_pte_binary

    try:
        file = deserialize_pte_binary(path.read_bytes())
    except Exception as error:  # flatbuffer and JSON errors of many kinds
        raise InputError(f"{path} is not an ExecuTorch program ({error}); export it again") from None
    named = file.named_data
    stored = {key: named.buffers[entry.buffer_index] for key, entry in named.pte_data.items()} if named else {}
    found: dict[object, bytes] = {}
    for plan in file.program.execution_plan:
        for delegate in plan.delegates:
            if delegate.id != _BACKEND:
                continue
            index = delegate.processed.index
            data = bytes(file.program.backend_delegate_data[index].data)
            if not data.startswith(_REFERENCE):
                found[index] = data
                continue
            key = json.loads(data[len(_REFERENCE) :])["key"]
            if key not in stored:
                raise InputError(f"{path} lacks the Core ML package {key!r}; which may be in a .ptd file: export in one file")
            found[key] = bytes(stored[key])
    if not found:
        raise InputError(f"{path} delegates nothing to Core ML; export with the recipe ios-executorch")
    return list(found.values())


def _unpacked(blob: bytes, path: Path) -> Program:
    from executorch.backends.apple.coreml import executorchcoreml

    with ExitStack() as stack:
        folder = stack.enter_context(scratch_folder(Path(tempfile.gettempdir()), "phi3mobile-coreml"))
        if not executorchcoreml.unflatten_directory_contents(blob, str(folder)):
            raise InputError(f"{path}: the Core ML package in it can't be unpacked; export it again")
        packages = [*folder.glob(f"**/{_PACKAGE}")]
        if not packages:
            raise InputError(f"{path} holds a compiled Core ML model; export with CoreMLBackend.MODEL_TYPE.MODEL")
        program = load(packages[0])
        weakref.finalize(program, stack.pop_all().close)
        return program
