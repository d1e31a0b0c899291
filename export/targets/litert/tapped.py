"""A copy of a .tflite that also gives what goes into every layer: the same operators, with more outputs."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import flatbuffers
import numpy as np
from ai_edge_litert import schema_py_generated as schema

from phi3mobile.bundle import Bundle
from phi3mobile.engines.litert import LitertEngine
from phi3mobile.files import require_space
from phi3mobile.models.config import DecoderConfig

_ALIGNMENT = 64  # of the weights


@contextmanager
def open_tapped(bundle: Bundle, config: DecoderConfig) -> Iterator[LitertEngine]:
    """The engine of a copy that lies in a temporary folder meanwhile; its `trace` is told "layer_<i>", -1 the embedding."""
    with TemporaryDirectory(prefix="phi3mobile-verify-") as scratch:
        path = Path(scratch) / bundle.program.name
        require_space(path, bundle.program.stat().st_size + (64 << 20))
        _write(bundle.program, path, config.num_hidden_layers)
        engine = LitertEngine(path, bundle.info, bundle.manifest["runtime"])
        try:
            yield engine
        finally:
            engine.close()


def _write(program: Path, path: Path, layers: int) -> None:
    """The flatbuffer with more outputs, and the weights behind it as they are, as far as they move."""
    with program.open("rb") as file:
        begin = _begin(program)
        model = schema.ModelT.InitFromPackedBuf(file.read(begin))
        for graph, signature in zip(model.subgraphs, model.signatureDefs, strict=True):
            for number, tensor in enumerate(_hidden_states(model, graph, layers), start=-1):
                graph.outputs = [*graph.outputs, tensor]
                signature.outputs.append(schema.TensorMapT(f"layer_{number}", tensor))
        head = _packed(model)
        moved = -(-len(head) // _ALIGNMENT) * _ALIGNMENT - begin
        for buffer in model.buffers:
            if buffer.offset > 1:
                buffer.offset += moved
        head = _packed(model)  # numbers of a fixed width: as long as before
        with path.open("wb") as copy:
            copy.write(head.ljust(begin + moved, b"\0"))
            file.seek(begin)
            shutil.copyfileobj(file, copy, 1 << 24)


def _begin(program: Path) -> int:
    """Where the weights begin."""
    model = schema.Model.GetRootAs(np.memmap(program, np.uint8, "r"))
    return min(model.Buffers(i).Offset() for i in range(model.BuffersLength()) if model.Buffers(i).Offset() > 1)


def _hidden_states(model: Any, graph: Any, layers: int) -> list[int]:
    """Tensors of a graph: the embedding, and what every layer but the last makes. Each layer adds to it twice."""
    codes = [code.builtinCode for code in model.operatorCodes]
    looked_up = next(op for op in graph.operators if codes[op.opcodeIndex] == schema.BuiltinOperator.EMBEDDING_LOOKUP)
    adds = {
        int(op.inputs[0]): int(op.outputs[0]) for op in graph.operators if codes[op.opcodeIndex] == schema.BuiltinOperator.ADD
    }
    found = [int(looked_up.outputs[0])]
    while len(found) < layers:
        found.append(adds[adds[found[-1]]])
    return found


def _packed(model: Any) -> bytes:
    builder = flatbuffers.Builder(1 << 20)
    builder.Finish(model.Pack(builder), file_identifier=b"TFL3")
    return bytes(builder.Output())
