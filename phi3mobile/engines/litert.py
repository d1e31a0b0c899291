"""Engine over LiteRT (ai-edge-litert, XNNPACK on the CPU): a .tflite with a signature for each number of tokens."""

from __future__ import annotations

import importlib.util
import math
import os
import re
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from phi3mobile import extras
from phi3mobile.engines import packed_cache
from phi3mobile.engines.base import BaseEngine, check_bundle, marked
from phi3mobile.errors import InputError
from phi3mobile.files import whole_file
from phi3mobile.info import EngineInfo
from phi3mobile.quiet import at_the_end, without

if TYPE_CHECKING:
    from phi3mobile.bundle import Bundle


def open_litert(bundle: Bundle, threads: int = 0) -> LitertEngine:
    """The engine of a bundle; `load_s` on it is the time this took. InputError without LiteRT, or with an older one."""
    require_litert()
    start = time.perf_counter()
    check_bundle(bundle, version("ai-edge-litert"), None, check_litert)
    program = bundle.manifest["files"][bundle.manifest["runtime"]["program"]]
    file = packed_cache.file_for(program["sha256"], f"litert-{version('ai-edge-litert')}")
    with _reserved(file, program["bytes"]) as cache_file, without(_CHATTER):
        engine = LitertEngine(bundle.program, bundle.info, bundle.manifest["runtime"], threads, cache_file)
    engine.load_s = time.perf_counter() - start
    return engine


@contextmanager
def _reserved(file: Path, size: int) -> Iterator[Path | None]:
    """Where LiteRT maps packed weights from, and where it writes them the first time; None if there is no place for them.

    Under another name until the engine is ready: what a killed process leaves is never taken for whole.
    """
    if file.is_file():
        yield file
        return
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        has_room = shutil.disk_usage(file.parent).free > 2 * size and os.access(file.parent, os.W_OK)
    except OSError:
        has_room = False
    if not has_room:
        yield None
        return
    with whole_file(file) as partial:
        yield partial


def require_litert() -> None:
    """InputError with what to install if LiteRT is missing."""
    if importlib.util.find_spec("ai_edge_litert") is None:
        raise InputError(f"the engine litert needs ai-edge-litert: {extras.command('litert')}, or take another bundle")


def check_litert(exported: str, installed: str) -> None:
    """A LiteRT runs the programs of older ones; what newer ones write it may not know."""
    made, here = (tuple(int(part) for part in text.split(".")[:2]) for text in (exported, installed))
    if here < made:
        raise InputError(
            f"the bundle was made for LiteRT {exported}, installed is {installed}: "
            f"pip install 'ai-edge-litert>={exported}', or export it again"
        )


_CHATTER = re.compile(r"(INFO|VERBOSE): ")  # LiteRT's messages begin with their severity
ROW_STEP = 256  # the cache has a multiple of so many rows: attention goes over all of them, padding included


class LitertEngine(BaseEngine):
    """Signatures of fixed lengths T over one KV cache (export/targets/litert/decoder.py says what they take).

    The cache is passed as input and output of every run: LiteRT updates it in place. It has as many rows as the sequence
    needs, grows and shrinks with it, and is copied only then.
    """

    def __init__(
        self, program: Path, info: EngineInfo, runtime: dict[str, Any], threads: int = 0, cache_file: Path | None = None
    ) -> None:
        """runtime: the manifest's, with `functions` (name -> T). threads: 0 is every core that this process may use.

        cache_file: of packed weights, mapped instead of copied; written if it is not there. InputError for a bad program.
        """
        if not isinstance(runtime.get("functions"), dict):
            raise InputError("the manifest's runtime lacks functions; export with the recipe litert")
        if threads < 0:
            raise InputError(f"{threads} threads were asked for: give 0 (all cores) or more")
        super().__init__(info)
        at_the_end()  # LiteRT keeps an environment of its own, and tells when the process drops that
        self._model = _compiled(program, threads or usable_cores(), cache_file)
        try:
            self._prepare(program, runtime)
        except BaseException:
            self._model = None  # here, and not where the exception is dropped
            raise

    def _prepare(self, program: Path, runtime: dict[str, Any]) -> None:
        self._lengths = sorted((length, name) for name, length in runtime["functions"].items())
        signatures = self._model.get_signature_list()
        if lacking := [name for _, name in self._lengths if name not in signatures]:
            raise InputError(f"{program} lacks the signatures {', '.join(lacking)}; export it again")
        details = self._model.get_input_tensor_details(self._lengths[0][1])
        self._cache: dict[str, Any] = {}
        self._shapes = {name: list(tensor["shape"]) for name, tensor in details.items() if name.startswith("kv_cache_")}
        self._rows = 0
        self._resize(ROW_STEP, 0)
        self._buffers = {
            name: {key: self._model.create_input_buffer_by_name(name, key) for key in ("tokens", "input_pos")}
            for _, name in self._lengths
        }
        told = self._model.get_output_tensor_details(self._lengths[0][1])
        self._widths = {key: int(tensor["shape"][-1]) for key, tensor in told.items()}
        self._outputs = {  # besides the cache: logits, and what a copy made to be verified gives of its layers
            name: {
                key: self._model.create_output_buffer_by_name(name, key)
                for key in self._model.get_output_tensor_details(name)
                if key not in self._shapes
            }
            for _, name in self._lengths
        }
        self.forward(np.zeros(1, np.int64), 0)  # the rest of the packing, before a cache file counts as whole

    def _run(self, tokens: np.ndarray, position: int, long: bool) -> np.ndarray:
        """The shortest signature that takes the tokens runs; what pads them is overwritten later."""
        count, end = len(tokens), position + len(tokens)
        length, name = next(item for item in self._lengths if item[0] >= count)
        padded, places = np.zeros(length, np.int32), np.full(length, position, np.int32)
        padded[:count], places[:count] = tokens, np.arange(position, end)
        places += marked(0, long)
        wanted = -(-(position + length) // ROW_STEP) * ROW_STEP
        if not wanted <= self._rows <= 2 * wanted:
            self._resize(wanted, position)
        inputs, outputs = self._buffers[name], self._outputs[name]
        inputs["tokens"].write(padded)
        inputs["input_pos"].write(places)
        self._model.run_by_name(name, inputs | self._cache, outputs | self._cache)
        if self.trace is not None:
            for key in outputs.keys() - {"logits"}:
                self.trace(key, "layer", {key: outputs[key].read(count * self._widths[key], np.float32).reshape(1, count, -1)})
        return outputs["logits"].read(count * self.info.vocab, np.float32).reshape(count, self.info.vocab)

    def _release(self) -> None:
        with without(_CHATTER):
            self._model, self._cache, self._buffers, self._outputs = None, {}, {}, {}

    def _resize(self, rows: int, kept: int) -> None:
        """Give the cache `rows` rows, of which the first `kept` keep their values; one tensor after the other."""
        first = self._lengths[0][1]
        for name, shape in self._shapes.items():
            axis = 2 if name.startswith("kv_cache_k_") else 3
            old, shape[axis] = tuple(shape), rows
            for _, signature in self._lengths:
                self._model.resize_input_tensor_by_name(signature, name, shape)
            values = np.zeros(shape, np.float32)  # rows not written yet are multiplied by 0, and must not be NaN
            if kept:
                rest = (slice(None),) * axis + (slice(kept),)
                values[rest] = self._cache[name].read(math.prod(old), np.float32).reshape(old)[rest]
            self._cache.pop(name, None)
            self._cache[name] = self._model.create_input_buffer_by_name(first, name)
            self._cache[name].write(values)
        self._rows = rows


def usable_cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _compiled(program: Path, threads: int, cache_file: Path | None) -> Any:
    from ai_edge_litert.compiled_model import CompiledModel, CpuOptions, HardwareAccelerator
    from ai_edge_litert.options import Options

    cpu = CpuOptions(num_threads=threads, xnnpack_weight_cache_path=str(cache_file or ""))
    options = Options(HardwareAccelerator.CPU, cpu)
    try:
        return CompiledModel.from_file(str(program), options=options)
    except RuntimeError as error:
        raise InputError(f"{program}: LiteRT can't load it ({' '.join(str(error).split())[:200]}); export it again") from None
