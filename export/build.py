"""The whole line: checkpoint -> packed weights -> program -> bundle, as plan.py decided it."""

from __future__ import annotations

import shutil
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory

from phi3mobile.bundle import write_manifest
from phi3mobile.export.packed import PackedModel
from phi3mobile.export.plan import ExportPlan, plan_export
from phi3mobile.export.recipe import DEFAULT_RECIPE
from phi3mobile.export.solve.build import forms_for, keep_into, refuse_loss, solve_into
from phi3mobile.export.solve.calibration import calibration_of
from phi3mobile.export.solve.folder import Solved
from phi3mobile.export.target import Written
from phi3mobile.files import new_folder
from phi3mobile.manifest import VISION_FILES
from phi3mobile.models.checkpoint import Checkpoint
from phi3mobile.models.companions import TOKENIZER_FILES
from phi3mobile.models.config import DecoderConfig
from phi3mobile.progress import Progress, silent
from phi3mobile.unicode import printable


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
    experts_memory: int | None = None,
    vision_bits: int | None = None,
    progress: Progress = silent,
) -> Path:
    """Make a bundle at `out` from a checkpoint folder, a GGUF file, a folder of `quantize`, or hub id.

    `context`: positions of the KV cache, default min(2048, what the model takes). `method`: "gptq", "rtn" or "keep"; default
    "keep" for what is integers already, else the recipe's; a quantized folder has had its own. `calibration`, `bits`,
    `rotate`, `vision_bits`: see export.solve.build.quantize_checkpoint.
    `experts_memory`: bytes that a mixture's experts take by default where it runs; None: all that they need.
    `accept_quality`: ship it even if the quality card shows more loss than MOST_KL there. Nothing is left if it fails.
    Raises InputError for a source that is no checkpoint, an unknown recipe, an existing `out`, a disk too small, too much loss.
    """
    plan = plan_export(
        source,
        out,
        recipe,
        context,
        method=method,
        calibration=calibration,
        bits=bits,
        rotate=rotate,
        experts_memory=experts_memory,
        vision_bits=vision_bits,
    )
    return write_bundle(plan, accept_quality, progress)


def write_bundle(plan: ExportPlan, accept_quality: bool = False, progress: Progress = silent) -> Path:
    """Carry the plan out; returns the bundle's folder.

    InputError: a weight that is NaN or infinite, told before anything is written; too much loss, or what only writing shows.
    """
    plan.checkpoint.check_values(progress)
    with new_folder(plan.out) as partial:
        with TemporaryDirectory(dir=partial, prefix=".solved-") as scratch:  # gone before the manifest lists the files
            packed, quality = _packed(plan, Path(scratch), progress)
            if quality is not None and not accept_quality:
                refuse_loss(quality, plan.config.vocab_size)
            written = plan.target.write(packed, partial, plan, progress)
        for pattern in TOKENIZER_FILES:
            for path in filter(Path.is_file, plan.folder.glob(pattern)):
                shutil.copyfile(path, partial / printable(path.name))
        plan.target.finish(partial, plan)
        progress("hash", 0, 1)
        write_manifest(partial, _manifest(plan, written, partial, quality))
    return plan.out


def _packed(plan: ExportPlan, scratch: Path, progress: Progress) -> tuple[PackedModel, dict[str, object] | None]:
    """The integers, solved into `scratch` if they have to be, and the quality card if there is one."""
    checkpoint, recipe = plan.checkpoint, plan.recipe
    if isinstance(checkpoint, Solved):
        return PackedModel(checkpoint, recipe), checkpoint.about["quality"]
    if plan.method == "rtn":
        return PackedModel(checkpoint, recipe), None
    text = calibration_of(plan.tokenizer, checkpoint.config, plan.calibration)
    if plan.method == "keep":
        assert isinstance(checkpoint, Checkpoint), plan.source
        about = keep_into(scratch, checkpoint, recipe, text, progress)
        return PackedModel(Solved(scratch), recipe), about["quality"]
    about = solve_into(scratch, checkpoint, recipe, text, progress, forms_for(checkpoint, recipe, text, plan.bits, progress))
    return PackedModel(Solved(scratch), recipe), about["quality"]


def _manifest(plan: ExportPlan, written: Written, folder: Path, quality: dict[str, object] | None) -> dict[str, object]:
    """All of manifest.json but its format and the files' hashes."""
    weights = _bytes(folder / written.runtime["program"])
    config, again = plan.config, 0  # bytes of a tower in the decoder's program
    if written.vision is not None and "grid" in written.vision:
        again = _bytes(folder / written.vision["program"])
    if (experts := written.runtime.get("experts")) is not None:
        weights += experts["bytes"]
        experts["memory"] = plan.experts_memory
    model = model_section(config, plan.context, plan.chunk, weights - again) | {"back": written.back}
    if written.vision is not None:
        weights += sum(_bytes(folder / written.vision[part]) for part in VISION_FILES)
    return {
        "name": plan.name,
        "family": config.family,
        "engine": plan.target.engine(plan.recipe),
        "weights_mapped": plan.target.weights_mapped(plan.recipe),
        "programs": list(written.programs) or [written.runtime["program"]],
        "runtime": written.runtime,
        **({} if written.vision is None else {"vision": written.vision}),
        "recipe": asdict(plan.recipe),
        "model": model,
        "tokens": {"bos": config.bos_token_id, "eos": plan.eos},
        "chat": plan.chat,
        "generation": plan.generation,
        "notes": plan.notes,
        "memory": memory_section(written, plan.context, weights),
        "quality": quality,
        "provenance": {"source": plan.source, "source_hash": plan.checkpoint.source_hash(), "tool": version("phi3mobile")},
        "license": license_of(plan.folder),
    }


def _bytes(program: Path) -> int:
    """Of a file, or of all in a folder."""
    return sum(path.stat().st_size for path in (program, *program.rglob("*")) if path.is_file())


def model_section(config: DecoderConfig, context: int, chunk: int, weights: int) -> dict[str, object]:
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


def memory_section(written: Written, context: int, weights: int) -> dict[str, object]:
    """Bytes: weights, KV cache per token (an evicting one's mean at the bundle's context), activations, what the KV cache at
    the bundle's context need not hold, and at several contexts up to this one the sum of all."""
    cache, activations = written.kv_bytes(context), written.activations
    contexts = sorted({c for c in (512, 1024, 2048, 4096, 8192, 32768, 131072) if c <= context} | {context})
    return {
        "weights": weights,
        "kv_per_token": -(-cache // context),
        "kv_evicted": written.kv_per_token * context - cache,
        "activations": activations,
        "peak": {str(c): weights + written.kv_bytes(c) + activations for c in contexts},
    }


def license_of(folder: Path) -> str | None:
    """First line of the checkpoint's licence file, if it came with one."""
    for path in sorted(filter(Path.is_file, folder.glob("LICENSE*"))):
        return next((line.strip() for line in path.read_text("utf-8", "replace").splitlines() if line.strip()), None)
    return None
