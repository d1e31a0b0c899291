"""A copy of a .pte that keeps what goes into every layer: the same program, where those tensors have memory of their own.

Nothing is added to what is computed: only the plan of memory differs. The plan puts a layer's hidden states where later ones,
or the logits, are written; in the copy they lie behind everything else, and are still there after a forward.
"""

from __future__ import annotations

import ctypes
import math
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from executorch.exir._serialize._flatbuffer_program import _program_to_flatbuffer
from executorch.exir._serialize._program import _ExtendedHeader, _insert_flatbuffer_header

from phi3mobile.bundle import Bundle
from phi3mobile.engines.base import BaseEngine
from phi3mobile.engines.registry import open_engine
from phi3mobile.export.targets.executorch.program import Pte
from phi3mobile.export.targets.executorch.read import open_decoder
from phi3mobile.export.targets.executorch.segments import FROM_EXPERTS, MIDDLE, segment_kinds
from phi3mobile.files import require_space
from phi3mobile.models.config import DecoderConfig

_ALIGNMENT = 128  # of the segments, as they were written


class TappedEngine(BaseEngine):
    """The bundle's engine over the copy. `trace` is told "layer_<i>": what layer i makes, layer_-1 the embedding."""

    def __init__(self, engine: BaseEngine, places: dict[str, int], hidden: int) -> None:
        """places: of each tensor, in bytes behind the logits."""
        super().__init__(engine.info)
        self._engine, self._places, self._hidden = engine, places, hidden

    def _run(self, tokens: np.ndarray, position: int, long: bool) -> np.ndarray:
        if self.info.hidden is None:
            logits = self._engine.forward_view(tokens, position, long)
        else:
            rows = self._engine.embed(tokens)
            logits = self._engine.forward_embeddings_view(rows, position, long)
        if self.trace is not None:
            if self.info.hidden is not None:
                self.trace("layer_-1", "segment", {"layer_-1": rows[None]})
            for name, place in self._places.items():
                values = (ctypes.c_float * (len(tokens) * self._hidden)).from_address(logits.ctypes.data + place)
                self.trace(name, "segment", {name: np.array(values).reshape(1, len(tokens), self._hidden)})
        return logits.copy()

    def _release(self) -> None:
        self._engine.close()


@contextmanager
def open_tapped(bundle: Bundle, config: DecoderConfig) -> Iterator[TappedEngine]:
    """The engine of a copy that lies in a temporary folder meanwhile."""
    pte = open_decoder(bundle.program, config)
    kept = _relocated(pte, config)
    size = bundle.program.stat().st_size
    with TemporaryDirectory(prefix="phi3mobile-verify-") as scratch:
        path = Path(scratch) / bundle.program.name
        require_space(path, size + (64 << 20))
        _write(pte, path)
        runtime, files = bundle.manifest["runtime"], bundle.manifest["files"]
        listed = {str(path): files[runtime["program"]]}
        copied = replace(
            bundle, manifest=bundle.manifest | {"runtime": runtime | {"program": str(path)}, "files": files | listed}
        )
        engine = open_engine(copied)
        assert isinstance(engine, BaseEngine)
        tapped = TappedEngine(engine, kept, config.hidden_size)
        try:
            yield tapped
        finally:
            tapped.close()


def _relocated(pte: Pte, config: DecoderConfig) -> dict[str, int]:
    """Gives what goes into each layer memory of its own, in the plan; returns how far behind the logits each lies."""
    places, plan = {}, pte.plan
    logits = pte.tensor(plan.outputs[0])
    assert logits is not None and logits.allocation_info is not None
    arena = logits.allocation_info.memory_id
    first = -1 if config.vision is None else 0  # of pictures' programs the embedding is what is given
    for number, index in enumerate(_hidden_states(pte, config)[first + 1 :], start=first):
        tensor = pte.tensor(index)
        assert tensor is not None and tensor.allocation_info is not None
        assert tensor.allocation_info.memory_id == arena and tensor.sizes[-1] == config.hidden_size
        tensor.allocation_info.memory_offset_low = end = plan.non_const_buffer_sizes[arena]
        plan.non_const_buffer_sizes[arena] += -(-math.prod(tensor.sizes) * 4 // 64) * 64
        places[f"layer_{number}"] = end - logits.allocation_info.memory_offset_low
    return places


def _hidden_states(pte: Pte, config: DecoderConfig) -> list[int]:
    """Values of the plan: the embedding, and the first result of every segment that ends in the next layer."""
    found: list[int] = []
    written = {*pte.plan.inputs}
    calls = iter(segment_kinds(config))
    delegates = {id(call) for call in pte.calls()}
    for call in pte.instructions:
        arguments = getattr(call, "args", [])
        if id(call) in delegates:
            kind, _ = next(calls)
            if not found:
                found.append(next(index for index in arguments if index in written and _is_rows(pte, index, config)))
            if kind in (MIDDLE, FROM_EXPERTS):
                found.append(next(i for i in arguments if i not in written and pte.constant(i) is None))
        written.update(arguments)
    return found


def _is_rows(pte: Pte, index: int, config: DecoderConfig) -> bool:
    tensor = pte.tensor(index)
    return tensor is not None and len(tensor.sizes) == 2 and tensor.sizes[1] == config.hidden_size


def _write(pte: Pte, path: Path) -> None:
    """The changed plan, and the segments as they are."""
    flat = _program_to_flatbuffer(pte.program, constant_tensor_alignment=16, delegate_alignment=None)
    header = -(-_ExtendedHeader.EXPECTED_LENGTH // flat.max_alignment) * flat.max_alignment
    size = header + len(flat.data)
    base = -(-size // _ALIGNMENT) * _ALIGNMENT
    extended = _ExtendedHeader(
        program_size=size, segment_base_offset=base, segment_data_size=pte.path.stat().st_size - pte.base
    )
    head = _insert_flatbuffer_header(flat.data, r"ET[0-9a-zA-Z][0-9a-zA-Z]", extended.to_bytes().ljust(header, b"\0"))
    with path.open("wb") as file, pte.path.open("rb") as source:
        file.write(head.ljust(base, b"\0"))
        source.seek(pte.base)
        shutil.copyfileobj(source, file, 1 << 24)
