"""Other runtimes on the same weights: what is installed, and their model files, made once and kept beside the checkpoint."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from phi3mobile.bench.worker import Worker, WorkerDied
from phi3mobile.bundle import Bundle, open_bundle
from phi3mobile.errors import InputError
from phi3mobile.files import cache_folder, new_folder, scratch_folder
from phi3mobile.manifest import tower_bytes
from phi3mobile.models.pieces import pieces
from phi3mobile.progress import Progress

if TYPE_CHECKING:
    from phi3mobile.models.checkpoint import Checkpoint

LLAMA, GENAI, LITERT = "llama.cpp", "onnxruntime-genai", "LiteRT"
PEERS_PIECES = {"rmsnorm", "swiglu", "window", "longrope"}  # that what makes their models knows
PACKAGES = {
    LLAMA: ("llama-cpp-python", "llama_cpp"),
    GENAI: ("onnxruntime-genai", "onnxruntime_genai"),
    LITERT: ("ai-edge-litert", "ai_edge_litert"),
}
# Bytes a weight as each format stores it: block of 32 with its scale.
GGUF_TABLE = {4: 18 / 32, 8: 34 / 32}
GENAI_TABLE = {4: 0.5 + 4 / 32, 8: 1 + 4 / 32}
_SHAPE_OF_DEMO = {"vocab": 49152, "layers": 30, "hidden": 576, "heads": 9}


@dataclass(frozen=True)
class Entry:
    """One column of the table: a runtime with its model, and the bytes that one decoded token reads."""

    runtime: str  # a key of bench.runtimes.RUNTIMES
    path: Path
    weight_bytes: int  # without an embedding table of which a token reads one row
    kv_per_token: int  # bytes in all layers
    window: int | None = None  # keys that attention reads at most

    @property
    def files(self) -> list[Path]:
        return sorted(filter(Path.is_file, self.path.rglob("*"))) if self.path.is_dir() else [self.path]

    def bytes_read(self, depth: int) -> int:
        return self.weight_bytes + self.kv_per_token * min(depth, self.window or depth)


def our_entry(bundle: Bundle) -> Entry:
    memory, model = bundle.manifest["memory"], bundle.manifest["model"]
    return Entry("phi3mobile", bundle.folder, decode_bytes(bundle), memory["kv_per_token"], model.get("sliding_window"))


def decode_bytes(bundle: Bundle) -> int:
    """Weight bytes that one decoded token reads: all but the embedding table, of which it reads one row, and idle experts."""
    recipe, model = bundle.manifest["recipe"], bundle.manifest["model"]
    table = model["vocab"] * model["hidden"] * recipe["embedding_bits"] // 8
    if bundle.manifest["runtime"].get("one_table"):  # which the head reads
        table = 0
    mixture = bundle.manifest["runtime"].get("experts")
    idle = mixture["bytes"] * (mixture["experts"] - mixture["used"]) // mixture["experts"] if mixture else 0
    return bundle.manifest["memory"]["weights"] - tower_bytes(bundle.manifest) - table - idle


def missing_peers() -> dict[str, str]:
    """Runtime -> why it is not in the table."""
    return {
        name: f"{package} is not installed: make bench installs it"
        for name, (package, module) in PACKAGES.items()
        if importlib.util.find_spec(module) is None
    }


def prepare_peers(
    bundle: Bundle, checkpoint: Checkpoint, gguf: Path | None, progress: Progress
) -> tuple[dict[str, Entry], dict[str, str]]:
    """Column -> Entry of every peer that could be made, and column -> reason of every other one.

    Layers at 4 bit; embedding and head at 8 bit where the bundle's head is, so that all read comparable bytes.
    gguf: one more file for llama.cpp.
    """
    entries, missing = {}, missing_peers()
    if checkpoint.config.rope_scaling or checkpoint.config.rotary_dim != checkpoint.config.head_dim:
        missing[LLAMA] = "our GGUF writer knows plain, full rope only"
    if other := sorted(pieces(checkpoint.config).keys() - PEERS_PIECES):
        missing |= dict.fromkeys((LLAMA, GENAI, LITERT), f"what makes its model knows no {other[0]}")
    prepared = {LLAMA: _llama_entry, GENAI: _genai_entry, LITERT: _litert_entry}
    if bundle.manifest["runtime"]["name"] == LITERT:
        del prepared[LITERT]
    for runtime, prepare in prepared.items():
        if runtime in missing:
            continue
        try:
            column, entry = prepare(checkpoint, bundle, progress)
            entries[column] = entry
        except WorkerDied as died:
            missing[runtime] = f"its model can't be made here: {died}"
    if importlib.util.find_spec(PACKAGES[LLAMA][1]) and (gguf := gguf or _demo_gguf(bundle)):
        entries[f"llama.cpp {gguf.name}"] = _gguf_entry(checkpoint, gguf, 0)
    return entries, missing


def _llama_entry(checkpoint: Checkpoint, bundle: Bundle, progress: Progress) -> tuple[str, Entry]:
    bits = bundle.manifest["recipe"]["head_bits"]
    table = {4: "Q4_0", 8: "Q8_0"}[bits]
    path = _beside(checkpoint, f"Q4_0-{table}.gguf")
    _make(path, "gguf", progress, checkpoint, kind="Q4_0", table_kind=table)
    return "llama.cpp Q4_0", _gguf_entry(checkpoint, path, bits)


def _gguf_entry(checkpoint: Checkpoint, path: Path, table_bits: int) -> Entry:
    """table_bits 0: a file that is not ours; its embedding table is counted unless tied."""
    config = checkpoint.config
    unread = 0 if config.tie_word_embeddings else GGUF_TABLE.get(table_bits, 0)
    # llama.cpp keeps 16-bit keys and values, and reads all of them under Phi-3's window too.
    return Entry(LLAMA, path, path.stat().st_size - _table(checkpoint, unread), 2 * _kv_values(checkpoint))


def _genai_entry(checkpoint: Checkpoint, bundle: Bundle, progress: Progress) -> tuple[str, Entry]:
    """Built by onnxruntime-genai's own model builder: blocks of 32, int8 activations, rtn, its defaults for CPUs."""
    bits = bundle.manifest["recipe"]["head_bits"]
    path = _beside(checkpoint, f"ort{version('onnxruntime-genai')}-int4-head{bits}")
    if not path.exists():
        progress(GENAI, 0, 1)
        options = ["block_size=32", "algo_config=rtn"] + ["matmul_mixed_precision=last_matmul:int8"] * (bits == 8)
        with scratch_folder(cache_folder(), "builder") as cache, new_folder(path) as partial:
            built = subprocess.run(
                [
                    sys.executable,
                    "-m",
                    "onnxruntime_genai.models.builder",
                    "-m",
                    checkpoint.folder.name,
                    "-i",
                    str(checkpoint.folder),
                    "-o",
                    str(partial),
                    "-c",
                    str(cache),
                    "-p",
                    "int4",
                    "-e",
                    "cpu",
                    "--extra_options",
                    *options,
                ],
                capture_output=True,
                text=True,
                errors="replace",
                env=os.environ | {"HF_HUB_OFFLINE": "1"},
            )
            if built.returncode:
                last = (built.stderr.strip().splitlines() or ["no message"])[-1]
                raise WorkerDied(f"its builder ended with {built.returncode}: {last[:200]}")
    config = checkpoint.config
    weights = (path / "model.onnx.data").stat().st_size
    unread = 0 if config.tie_word_embeddings else GENAI_TABLE[bits]
    kv = 4 * _kv_values(checkpoint)
    return "onnxruntime-genai int4", Entry(GENAI, path, weights - _table(checkpoint, unread), kv, config.sliding_window)


def _litert_entry(checkpoint: Checkpoint, bundle: Bundle, progress: Progress) -> tuple[str, Entry]:
    """Our own program for LiteRT, in our engine over it: recipe litert, rounded to nearest as the other peers."""
    context = bundle.info.max_context
    path = _beside(checkpoint, f"litert{version('ai-edge-litert')}-{context}.bundle")
    _make(path, "export", progress, checkpoint, recipe="litert", context=context)
    return "LiteRT int4", our_entry(open_bundle(path))


def _make(path: Path, do: str, progress: Progress, checkpoint: Checkpoint, **arguments: Any) -> None:
    """`path` by a worker's action, whose memory goes with it; nothing if it is there."""
    if path.exists():
        return
    worker = Worker()
    try:
        worker.ask(do, progress, source=str(checkpoint.folder), out=str(path), **arguments)
    finally:
        worker.close()


def _beside(checkpoint: Checkpoint, suffix: str) -> Path:
    """A name that changes with the weights."""
    folder = checkpoint.folder.absolute()
    return folder.with_name(f"{folder.name}-{checkpoint.source_hash()[:8]}-{suffix}")


def _table(checkpoint: Checkpoint, bytes_each: float) -> int:
    return int(checkpoint.config.vocab_size * checkpoint.config.hidden_size * bytes_each)


def _kv_values(checkpoint: Checkpoint) -> int:
    config = checkpoint.config
    return 2 * config.num_hidden_layers * config.num_key_value_heads * config.head_dim


def _demo_gguf(bundle: Bundle) -> Path | None:
    """The file that the demo model came from, 4 bit as its makers chose."""
    from phi3mobile.export.demo_model import demo_gguf

    model: dict[str, Any] = bundle.manifest["model"]
    if any(model[name] != value for name, value in _SHAPE_OF_DEMO.items()):
        return None
    try:
        return demo_gguf()
    except InputError:
        return None
