"""The whole line: checkpoint -> packed weights -> program -> bundle."""

from __future__ import annotations

import importlib.util
import json
import shutil
from collections.abc import Callable
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

from phi3mobile.bundle import write_manifest
from phi3mobile.chat import load_chat
from phi3mobile.errors import InputError
from phi3mobile.files import new_folder, refuse_existing, require_space
from phi3mobile.hub import resolve
from phi3mobile.models.config import Phi3Config, Phi3SmallConfig
from phi3mobile.models.weights import open_checkpoint
from phi3mobile.tokenizer import load_tokenizer

from .packed import PackedModel
from .recipe import DEFAULT_RECIPE, Recipe, find_recipe

if TYPE_CHECKING:
    from .to_coreml import Program as CoremlProgram
    from .to_executorch import Program as ExecutorchProgram

    Program = ExecutorchProgram | CoremlProgram

DEFAULT_CONTEXT = 2048
PROGRAM = "model.pte"
TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "*.tiktoken", "tokenizer_config.json", "added_tokens.json")

Progress = Callable[[str, int, int], None]  # stage, done, total


def export(
    source: str | Path,
    out: str | Path,
    recipe: str = DEFAULT_RECIPE,
    context: int | None = None,
    *,
    progress: Progress = lambda stage, done, total: None,
) -> Path:
    """Make a bundle at `out` from a checkpoint folder or hub id.

    `context`: positions of the KV cache, default min(2048, what the model takes). Nothing is left behind if it fails.
    Raises InputError for a source that is no checkpoint, an unknown recipe, an existing `out`, a disk too small.
    """
    chosen, out = find_recipe(recipe), Path(out)
    refuse_existing(out)
    folder = resolve(source)
    if folder.is_file():
        raise InputError(f"{folder} is a file; make a checkpoint folder of it first: phi3mobile import {folder} FOLDER")
    checkpoint = open_checkpoint(folder)
    checkpoint.check()
    config, eos = checkpoint.config, stop_ids(folder, checkpoint.config)
    context = min(DEFAULT_CONTEXT, config.max_position_embeddings) if context is None else context
    if type(context) is not int or not 1 <= context <= config.max_position_embeddings:
        raise InputError(f"context {context}: this model takes 1 to {config.max_position_embeddings}")
    if chosen.target == "coreml":
        require_coremltools()
    if chosen.max_context is not None and context > chosen.max_context:
        raise InputError(f"context {context}: recipe {chosen.name} takes 1 to {chosen.max_context}")
    widths = (config.hidden_size, config.intermediate_size, config.num_attention_heads * config.head_dim)
    if uneven := [width for width in widths if chosen.bits == 4 and width % (chosen.group or 2)]:
        raise InputError(f"recipe {chosen.name} takes {chosen.group} columns a scale: {uneven[0]} columns don't divide so")
    tokenizer = load_tokenizer(folder)
    if tokenizer.vocab_size > config.vocab_size:
        raise InputError(
            f"{folder}: the tokenizer has {tokenizer.vocab_size} ids, the model {config.vocab_size}: files of two models?"
        )
    chat = chat_section(folder)
    require_space(out, 2 * packed_bytes(config, chosen) + (64 << 20))
    with new_folder(out) as partial:
        packed = PackedModel(checkpoint, chosen)
        program, runtime = _write_program(packed, partial, context, eos, progress)
        for pattern in TOKENIZER_FILES:
            for path in filter(Path.is_file, folder.glob(pattern)):
                shutil.copyfile(path, partial / path.name)
        progress("hash", 0, 1)
        written = partial / runtime["program"]
        weights = sum(path.stat().st_size for path in (written, *written.rglob("*")) if path.is_file())
        write_manifest(partial, {
            "name": Path(source).resolve().name,
            "family": "phi3small" if isinstance(config, Phi3SmallConfig) else "phi3",
            "runtime": runtime,
            "recipe": asdict(chosen),
            "model": model_section(config, context, min(chosen.chunk, context), weights) | {"back": program.back},
            "tokens": {"bos": config.bos_token_id, "eos": eos},
            "chat": chat,
            "memory": memory_section(program, context, weights),
            "quality": None,
            "provenance": {"source": str(source), "source_hash": checkpoint.source_hash(), "tool": version("phi3mobile")},
            "license": license_of(folder),
        })  # fmt: skip
    return out


def require_coremltools() -> None:
    """InputError with what to install if there is no coremltools."""
    if importlib.util.find_spec("coremltools") is None:
        raise InputError("Core ML recipes need coremltools: pip install 'phi3mobile[coreml]', or take another recipe")


def _write_program(
    packed: PackedModel, folder: Path, context: int, eos: list[int], progress: Progress
) -> tuple[Program, dict[str, object]]:
    """The recipe's program in `folder`, and the manifest's `runtime`. The exporters are imported here: they take seconds."""
    chunk = min(packed.recipe.chunk, context)
    if packed.recipe.target == "coreml":
        from .to_coreml import to_coreml

        program = to_coreml(packed, folder, context, chunk, progress)
        return program, {"kind": "coreml", "version": version("coremltools"), **program.runtime}
    from .to_executorch import to_executorch

    program = to_executorch(packed, folder / PROGRAM, context, chunk, eos, progress)
    runtime = {"kind": "executorch", "version": version("executorch"), "program": PROGRAM, "operators": program.operators}
    return program, runtime


def stop_ids(folder: Path, config: Phi3Config) -> list[int]:
    """The ids that end an answer: generation_config.json's (mini: 32000, 32001, 32007), else the config's."""
    path = folder / "generation_config.json"
    eos = _read_object(path).get("eos_token_id")
    ids = list(config.eos_token_ids) if eos is None else eos if isinstance(eos, list) else [eos]
    wrong = [token for token in ids if type(token) is not int or not 0 <= token < config.vocab_size]
    if wrong or not ids:
        raise InputError(f"{path}: eos_token_id {wrong or 'is missing'}; give ids from 0 to {config.vocab_size - 1}")
    return ids


def packed_bytes(config: Phi3Config, recipe: Recipe) -> int:
    """Bytes of the packed weights, from the shapes: for the disk estimate."""

    def matrix(values: int, width: int, bits: int) -> int:
        return values * bits // 8 + (values // (recipe.group or width) * 2 if bits == 4 else values // width * 4)

    vocabulary = config.vocab_size * config.hidden_size
    tied = vocabulary if config.tie_word_embeddings else 2 * vocabulary
    return (
        matrix(config.parameters() - tied, config.hidden_size, recipe.bits)
        + matrix(vocabulary, config.hidden_size, recipe.embedding_bits)
        + matrix(vocabulary, config.hidden_size, recipe.head_bits)
    )


def chat_section(folder: Path) -> dict[str, object]:
    """The chat template as Jinja and, where regular, as plain segments; all null for a model without one."""
    in_config = _read_object(folder / "tokenizer_config.json").get("chat_template") is not None
    if not in_config and not (folder / "chat_template.jinja").exists():
        return {"template": None, "bos": "", "eos": "", "segments": None}
    chat = load_chat(folder)
    return {"template": chat.template, "bos": chat.bos, "eos": chat.eos, "segments": chat.segments()}


def _read_object(path: Path) -> dict[str, object]:
    """A JSON object; empty if there is no such file."""
    try:
        value = json.loads(path.read_text("utf-8")) if path.exists() else {}
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"{path} can't be read ({error}); download the folder again") from None
    if not isinstance(value, dict):
        raise InputError(f"{path} must hold a JSON object; download the folder again")
    return value


def model_section(config: Phi3Config, context: int, chunk: int, weights: int) -> dict[str, object]:
    """Shapes and limits, for cards and for apps that plan memory."""
    return {
        "vocab": config.vocab_size,
        "context": context,
        "chunk": chunk,
        "original_context": config.original_context,
        "max_context": config.max_position_embeddings,
        "parameters": config.parameters(),
        "bits_per_weight": round(weights * 8 / config.parameters(), 3),
        "layers": config.num_hidden_layers,
        "hidden": config.hidden_size,
        "heads": config.num_attention_heads,
        "kv_heads": config.num_key_value_heads,
        "head_dim": config.head_dim,
        "sliding_window": config.sliding_window,
    }


def memory_section(program: Program, context: int, weights: int) -> dict[str, object]:
    """Bytes: weights, KV cache per token (an evicting one's mean at the bundle's context), activations, what the KV cache at
    the bundle's context need not hold, and at several contexts up to this one the sum of all."""
    cache, activations = program.kv_bytes(context), program.activations
    contexts = sorted({c for c in (512, 1024, 2048, 4096, 8192, 32768, 131072) if c <= context} | {context})
    return {
        "weights": weights,
        "kv_per_token": -(-cache // context),
        "kv_evicted": program.kv_per_token * context - cache,
        "activations": activations,
        "peak": {str(c): weights + program.kv_bytes(c) + activations for c in contexts},
    }


def license_of(folder: Path) -> str | None:
    """First line of the checkpoint's licence file, if it came with one."""
    for path in sorted(filter(Path.is_file, folder.glob("LICENSE*"))):
        return next((line.strip() for line in path.read_text(errors="replace").splitlines() if line.strip()), None)
    return None

