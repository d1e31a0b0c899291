"""The whole line: checkpoint -> packed weights -> program -> bundle."""

from __future__ import annotations

import importlib.util
import json
import shutil
from collections.abc import Callable
from dataclasses import asdict, replace
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from phi3mobile.bundle import write_manifest
from phi3mobile.errors import InputError
from phi3mobile.export.packed import EMBEDDING, HEAD, PackedModel
from phi3mobile.export.recipe import DEFAULT_RECIPE, Recipe, find_recipe
from phi3mobile.export.solve.build import METHODS, forms_for, refuse_loss, solve_into
from phi3mobile.export.solve.calibration import calibration_of
from phi3mobile.export.solve.folder import Solved, is_solved
from phi3mobile.export.solve.rotate import Rotated
from phi3mobile.files import new_folder, refuse_existing, require_space
from phi3mobile.hub import resolve
from phi3mobile.models.companions import TOKENIZER_FILES
from phi3mobile.models.config import Phi3Config, Phi3SmallConfig
from phi3mobile.models.form import Form
from phi3mobile.models.weights import Checkpoint, expected_tensors, open_checkpoint
from phi3mobile.text.chat import load_chat
from phi3mobile.text.tokenizer import Tokenizer, load_tokenizer

if TYPE_CHECKING:
    from phi3mobile.export.targets.coreml.write import Program as CoremlProgram
    from phi3mobile.export.targets.executorch.write import Program as ExecutorchProgram
    from phi3mobile.export.targets.litert.write import Program as LitertProgram

    Program = ExecutorchProgram | CoremlProgram | LitertProgram

DEFAULT_CONTEXT = 2048
PROGRAM = "model.pte"

Progress = Callable[[str, int, int], None]  # stage, done, total


def export(
    source: str | Path,
    out: str | Path,
    recipe: str = DEFAULT_RECIPE,
    context: int | None = None,
    *,
    method: str | None = None,
    calibration: str | Path | None = None,
    bits: float | None = None,
    rotate: bool = False,
    accept_quality: bool = False,
    progress: Progress = lambda stage, done, total: None,
) -> Path:
    """Make a bundle at `out` from a checkpoint folder, a folder of `quantize`, or hub id.

    `context`: positions of the KV cache, default min(2048, what the model takes). `method`: "gptq" or "rtn", default the
    recipe's; a quantized folder has had its own. `calibration`, `bits`, `rotate`: see export.solve.build.quantize_checkpoint.
    `accept_quality`: ship it even if the quality card shows more loss than MOST_LOSS there. Nothing is left if it fails.
    Raises InputError for a source that is no checkpoint, an unknown recipe, an existing `out`, a disk too small, too much loss.
    """
    chosen, out = find_recipe(recipe), Path(out)
    refuse_existing(out)
    folder = resolve(source)
    if folder.is_file():
        raise InputError(f"{folder} is a file; make a checkpoint folder of it first: phi3mobile import {folder} FOLDER")
    checkpoint = Solved(folder) if is_solved(folder) else open_checkpoint(folder)
    checkpoint.check()
    chosen, method = _as_made(checkpoint, chosen, method, calibration, bits, rotate)
    checkpoint = Rotated(checkpoint) if rotate else checkpoint
    config, eos = checkpoint.config, stop_ids(folder, checkpoint.config)
    context = min(DEFAULT_CONTEXT, config.max_position_embeddings) if context is None else context
    if type(context) is not int or not 1 <= context <= config.max_position_embeddings:
        raise InputError(f"context {context}: this model takes 1 to {config.max_position_embeddings}")
    if chosen.target == "coreml":
        require_coremltools()
    if chosen.target == "litert":
        from phi3mobile.export.targets.litert.package import require_packages

        require_packages()
    if chosen.max_context is not None and context > chosen.max_context:
        raise InputError(f"context {context}: recipe {chosen.name} takes 1 to {chosen.max_context}")
    chosen.check(config)
    tokenizer = load_tokenizer(folder)
    if tokenizer.vocab_size > config.vocab_size:
        raise InputError(
            f"{folder}: the tokenizer has {tokenizer.vocab_size} ids, the model {config.vocab_size}: files of two models?"
        )
    chat = chat_section(folder)
    copies = 4 if chosen.target == "litert" else 2  # two programs, and one of them in a package
    require_space(out, copies * packed_bytes(config, chosen) + (64 << 20))
    with new_folder(out) as partial:
        with TemporaryDirectory(dir=partial, prefix=".solved-") as scratch:  # gone before the manifest lists the files
            packed, quality = _packed(checkpoint, chosen, method, tokenizer, calibration, bits, Path(scratch), progress)
            if quality is not None and not accept_quality:
                refuse_loss(quality, config.vocab_size)
            program, runtime = _write_program(packed, partial, context, eos, progress)
        for pattern in TOKENIZER_FILES:
            for path in filter(Path.is_file, folder.glob(pattern)):
                shutil.copyfile(path, partial / path.name)
        if chosen.target == "litert":
            from phi3mobile.export.targets.litert.package import write_package
            from phi3mobile.export.targets.litert.write import FIXED

            write_package(partial, partial / FIXED, chat["template"], eos, min(context, config.original_context or context))
        progress("hash", 0, 1)
        written = partial / runtime["program"]
        weights = sum(path.stat().st_size for path in (written, *written.rglob("*")) if path.is_file())
        write_manifest(
            partial,
            {
                "name": Path(source).resolve().name,
                "family": "phi3small" if isinstance(config, Phi3SmallConfig) else "phi3",
                "runtime": runtime,
                "recipe": asdict(chosen),
                "model": model_section(config, context, min(chosen.chunk, context), weights) | {"back": program.back},
                "tokens": {"bos": config.bos_token_id, "eos": eos},
                "chat": chat,
                "memory": memory_section(program, context, weights),
                "quality": quality,
                "provenance": {"source": str(source), "source_hash": checkpoint.source_hash(), "tool": version("phi3mobile")},
                "license": license_of(folder),
            },
        )
    return out


def _as_made(
    checkpoint: Checkpoint | Solved,
    recipe: Recipe,
    method: str | None,
    calibration: str | Path | None,
    bits: float | None,
    rotate: bool,
) -> tuple[Recipe, str]:
    """The recipe and method of what is exported: a quantized folder's tables and method are what they are."""
    if isinstance(checkpoint, Solved):
        if (method, calibration, bits, rotate) != (None, None, None, False):
            refused = "--method, --calibration, --bits or --rotate"
            raise InputError(f"{checkpoint.folder} is quantized already: it takes no {refused}")
        whole_rows = checkpoint.bits_of(first := "model.layers.0.mlp.down_proj.weight") == Form(4, checkpoint.shape(first)[1])
        if (recipe.group == 0) != whole_rows:
            raise InputError(f"recipe {recipe.name} has other groups of columns; quantize again with --recipe {recipe.name}")
        tables = {"embedding_bits": checkpoint.bits_of(EMBEDDING)[0], "head_bits": checkpoint.bits_of(HEAD)[0]}
        return replace(recipe, **tables), checkpoint.about["quality"]["method"]
    method = recipe.method if method is None else method
    if method not in METHODS:
        raise InputError(f"method {method!r} is not known; take one of: {', '.join(METHODS)}")
    if method == "rtn" and (calibration, bits) != (None, None):
        raise InputError("method rtn reads no calibration text; leave out --calibration and --bits or take gptq")
    if method == "rtn" and rotate:
        raise InputError("method rtn rounds the checkpoint as it is; leave out --rotate or take gptq")
    return replace(recipe, method=method), method


def _packed(
    checkpoint: Checkpoint | Rotated | Solved,
    recipe: Recipe,
    method: str,
    tokenizer: Tokenizer,
    calibration: str | Path | None,
    bits: float | None,
    scratch: Path,
    progress: Progress,
) -> tuple[PackedModel, dict[str, object] | None]:
    """The integers, solved into `scratch` if they have to be, and the quality card if there is one."""
    if isinstance(checkpoint, Solved):
        return PackedModel(checkpoint, recipe), checkpoint.about["quality"]
    if method == "rtn":
        return PackedModel(checkpoint, recipe), None
    text = calibration_of(tokenizer, checkpoint.config, calibration)
    about = solve_into(scratch, checkpoint, recipe, text, progress, forms_for(checkpoint, recipe, text, bits, progress))
    return PackedModel(Solved(scratch), recipe), about["quality"]


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
        from phi3mobile.export.targets.coreml.write import to_coreml

        program = to_coreml(packed, folder, context, chunk, progress)
        return program, {"kind": "coreml", "version": version("coremltools"), **program.runtime}
    if packed.recipe.target == "litert":
        from phi3mobile.export.targets.litert.write import to_litert

        program = to_litert(packed, folder, context, chunk, progress)
        return program, {"kind": "litert", "version": version("ai-edge-litert"), **program.runtime}
    from phi3mobile.export.targets.executorch.write import to_executorch

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
    """Bytes of the packed weights and float32 vectors, from the shapes."""
    shapes = expected_tensors(config)
    total = 0
    for name, (rows, *columns) in (shapes | {HEAD: shapes[EMBEDDING]}).items():
        if not columns:
            total += 4 * rows
            continue
        bits, group, _ = recipe.bits_of(name, columns[0])
        scale = 2 if bits == 4 and name != EMBEDDING else 4  # the embedding's operators take float32
        total += rows * (columns[0] * bits // 8 + columns[0] // group * scale)
    return total


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
