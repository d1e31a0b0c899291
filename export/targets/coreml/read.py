"""The integers of Core ML programs, read back from their constants: matrices.py and delegate.py the other way round.

A program keeps float16: 8-bit scales, norms and biases are those that were packed, rounded.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

import numpy as np
import torch

from phi3mobile.bundle import Bundle
from phi3mobile.engines.coreml import EMBED
from phi3mobile.engines.mil.program import Program, load
from phi3mobile.engines.mil.pte import blobs_of_pte
from phi3mobile.engines.mil.spec import Blob, Op
from phi3mobile.engines.mil.weights import WeightFiles
from phi3mobile.errors import InputError
from phi3mobile.export.integers import HEAD, Integers
from phi3mobile.export.recipe import EMBEDDING
from phi3mobile.export.targets.coreml.matrices import identifier
from phi3mobile.models.config import DecoderConfig
from phi3mobile.models.form import Form
from phi3mobile.models.quantized import Packed, pack_nibbles
from phi3mobile.models.tensors import ATTENTION_NORM, FINAL_NORM, LINEARS, MLP_NORM

_CONSTEXPR = "constexpr_blockwise_shift_scale"
_ROWS = re.compile(r"(.+?)(?:_from(\d+)(?:_by(\d+))?)?(_bias)?")
_DELEGATED = re.compile(r"p_(?:layers_(\d+)_)?(before|between|norm)_weight_to_fp16")

Found = tuple[str, tuple[int, int], WeightFiles, Op]  # a tensor's name; first row and step; where it is
Parts = list[tuple[slice, torch.Tensor]]


class MilIntegers(Integers):
    """Of a bundle's packages, or of the one inside its .pte."""

    rounding = 2.0**-10

    def __init__(self, bundle: Bundle, config: DecoderConfig) -> None:
        self.config = config
        delegated = bundle.manifest["engine"] == "coreml-delegate"
        self._programs = blobs_of_pte(bundle.program)[:1] if delegated else [load(path) for path in bundle.programs]
        self._found: dict[str, list[Found]] = {}
        for program in self._programs:
            for found in self._delegated(program) if delegated else self._by_name(program):
                self._found.setdefault(found[0], []).append(found)
        if missing := [name for name in (*self.names(), HEAD) if name not in self._found]:
            raise InputError(f"{bundle.program} lacks {', '.join(missing[:6])}; export it again")

    def shape(self, name: str) -> tuple[int, ...]:
        return (self.config.vocab_size, self.config.hidden_size) if name == HEAD else self.config.tensors()[name].shape

    def form_of(self, name: str) -> Form | None:
        op = self._found[name][0][3]
        if op.type == "const":
            return None
        data, scale = op.arguments["data"], op.arguments["scale"]
        if data.type.dtype == "int8":
            return Form(8, data.type.shape[1])
        return Form(4, data.type.shape[1] // scale.type.shape[1], "offset" in op.arguments or f"{name}.offsets" in self._found)

    def tensor(self, name: str) -> Packed | torch.Tensor:
        form, shape = self.form_of(name), self.shape(name)
        if form is None:
            return self._joined(name, "val", 1).float().view(shape)
        codes, scales = self._joined(name, "data", 2), self._joined(name, "scale", 2)
        if form.bits == 8:
            return Packed(8, form.group, codes, scales.float())
        offsets = None
        if f"{name}.offsets" in self._found:
            own, sizes = self._joined(f"{name}.offsets", "data", 2), self._joined(f"{name}.offsets", "scale", 2)
            offsets = Packed(8, own.shape[1], own, sizes.float())
        elif form.offsets:  # float16 in units of the scales: each is its own scale here
            values = -self._joined(name, "offset", 2).float() * scales.float()
            offsets = Packed(8, 1, torch.ones(values.shape, dtype=torch.int8), values)
        return Packed(4, form.group, pack_nibbles(codes), scales.bfloat16(), offsets=offsets)

    def _joined(self, name: str, argument: str, dims: int) -> torch.Tensor:
        """A constant of an operator, of all the tensor's rows; `dims` dimensions, behind which there are only ones."""
        parts = []
        for _, (start, step), files, op in self._found[name]:
            values = torch.from_numpy(np.array(files.read(op.arguments[argument])))
            values = values.view(values.shape[:dims]) if dims == 2 else values.flatten()
            parts.append((start + step * torch.arange(len(values)), values))
        whole = torch.empty(sum(len(values) for _, values in parts), *parts[0][1].shape[1:], dtype=parts[0][1].dtype)
        for rows, values in parts:
            whole[rows] = values
        return whole

    def _by_name(self, program: Program) -> Iterator[Found]:
        """The constants that Matrices names after the tensors."""
        files, tensors = WeightFiles(program.folder), {identifier(name): name for name in (*self.names(), HEAD)}
        for op in _constants(program):
            split = _ROWS.fullmatch(op.name)
            assert split is not None
            name = tensors.get(op.name) or tensors.get(f"{split[1]}{split[4] or ''}")
            if name is not None:
                yield name, (int(split[2] or 0), int(split[3] or 1)), files, op

    def _delegated(self, program: Program) -> Iterator[Found]:
        """Those that torch named: matrices in the order that they are multiplied by, a matrix's offsets behind it."""
        config, files = self.config, WeightFiles(program.folder)
        layers = range(config.num_hidden_layers)
        order = [EMBEDDING, *(config.tensor(role, layer).name for layer in layers for role in LINEARS), HEAD]
        norms, expected, before = {"before": ATTENTION_NORM, "between": MLP_NORM, "norm": FINAL_NORM}, iter(order), None
        for op in _constants(program):
            if op.type == "const":
                if split := _DELEGATED.fullmatch(op.name):
                    yield config.tensor(norms[split[2]], int(split[1]) if split[1] else None).name, (0, 1), files, op
                continue
            shape = op.arguments["data"].type.shape
            if before is not None and shape == before[1] and shape[1] > 1:
                yield f"{before[0]}.offsets", (0, 1), files, op
                before = None
                continue
            name = next(expected, "")
            if not name or shape != self.shape(name):
                raise InputError(
                    f"{program.folder} multiplies by {list(shape)} in place of {name or 'nothing'}; export it again"
                )
            before = name, op.arguments["scale"].type.shape
            yield name, (0, 1), files, op


def _constants(program: Program) -> Iterator[Op]:
    """Of the default function, for all decoders have the same, and of the one that makes rows of tokens, where there is one."""
    functions = [program.function(), *(function for name, function in program.functions.items() if name == EMBED)]
    for op in (op for function in functions for op in function.block.walk()):
        if op.type == _CONSTEXPR or (op.type == "const" and isinstance(op.arguments.get("val"), Blob)):
            yield op
