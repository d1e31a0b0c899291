"""All settings, one after the other; what is done stands in results.jsonl and is not done again."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from phi3mobile.bench.ablate.measure import float_reference, measure, measure_solved
from phi3mobile.bench.ablate.page import ablation_markdown, ablation_page, ablation_plots, ablation_table, document
from phi3mobile.bench.ablate.settings import FLOAT, Setting, default_settings, grid_settings
from phi3mobile.bench.perplexity import TEXT
from phi3mobile.errors import InputError
from phi3mobile.export.solve.calibration import calibration_of
from phi3mobile.export.solve.folder import Solved
from phi3mobile.files import whole_file
from phi3mobile.hub import resolve
from phi3mobile.models.checkpoint import Checkpoint, open_checkpoint
from phi3mobile.progress import Progress, silent
from phi3mobile.text.vocabularies import load_tokenizer

FORMAT = 1


def compare(
    source: str | Path,
    out: Path,
    axes: Mapping[str, Sequence[Any]],
    text: Path | None = None,
    count: int = 2048,
    calibration: Path | None = None,
    calibration_count: int = 4096,
    window: int = 512,
    solved: Sequence[Path] = (),
    progress: Progress = silent,
) -> dict[str, Any]:
    """Measure every setting on `count` tokens of `text`, and write results.jsonl, ablation.html and ablation.md to `out`.

    axes: values by Setting's names, combined; all empty: default_settings. A second call measures what is missing.
    solved: folders of `phi3mobile quantize`, measured with int8 activations and KV cache, anew each time.
    Raises InputError: an unreadable text or checkpoint, one too short, a setting that is not known, another run's folder.
    """
    settings = grid_settings(**axes) if any(axes.values()) else default_settings()
    folder = resolve(source)
    checkpoint = open_checkpoint(folder)
    checkpoint.check()
    tokenizer, name = load_tokenizer(folder), (text or TEXT).name
    tokens = _windows(tokenizer.encode(_read(text or TEXT), special=False), count, window, name, checkpoint)
    solved_on = calibration_of(tokenizer, checkpoint.config, calibration).tokens
    solved_on = solved_on[: max(1, calibration_count // solved_on.shape[1])]
    head = {"format": FORMAT, "source": checkpoint.source_hash(), "tokens": _hash(tokens), "calibration": _hash(solved_on)}
    done = _read_results(out, head)
    progress("float", 0, len(settings))
    reference = float_reference(checkpoint, tokens)
    for number, setting in enumerate(settings):
        if setting not in done:
            progress(setting.label[:24], number, len(settings))
            done[setting] = measure(reference, setting, solved_on)
            _write_results(out, head, done)
    found = [(setting, done[setting]) for setting in settings]
    phone = Setting(bits=FLOAT, activations="int8", kv=8)
    made = []
    for path in solved:
        progress(path.name, 0, 1)
        made.append((path.resolve().name, measure_solved(reference, Solved(path), phone)))
    about = (
        f"{folder.resolve().name} on {tokens.numel()} tokens of {name} in windows of {tokens.shape[1]}; "
        f"gptq solved on {solved_on.numel()} tokens of another text."
    )
    rows = [(setting.label, figures) for setting, figures in found]
    rows += [(f"{name}, as quantized, int8 activations, 8-bit KV cache", figures) for name, figures in made]
    table = ablation_table(rows, "What quantization costs", reference.perplexity)
    for path, page in (
        (out / "ablation.html", ablation_page(table, ablation_plots(found), about)),
        (out / "ablation.md", ablation_markdown(table, about)),
    ):
        with whole_file(path) as partial:
            partial.write_text(page, "utf-8")
    return {
        "checkpoint": str(folder),
        "out": str(out),
        "tokens": tokens.numel(),
        "perplexity_float": round(reference.perplexity, 4),
        "settings": document(rows),
    }


def _windows(ids: list[int], count: int, window: int, name: str, checkpoint: Checkpoint) -> torch.Tensor:
    config = checkpoint.config
    window = min(window, count, config.original_context or config.max_position_embeddings)
    whole = min(len(ids), count) // window
    if whole < 1 or window < 2:
        raise InputError(f"{name} has {len(ids)} tokens: give a text of {window} at least")
    if (largest := max(ids)) >= config.vocab_size:
        raise InputError(f"the tokenizer makes id {largest}, the model knows {config.vocab_size}: they don't belong together")
    return torch.tensor(ids[: whole * window]).view(whole, window)


def _read(path: Path) -> str:
    try:
        return path.read_text("utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path} can't be read ({error}); give a UTF-8 text file") from None


def _hash(tokens: torch.Tensor) -> str:
    return hashlib.sha256(repr(tokens.tolist()).encode()).hexdigest()[:16]


def _read_results(out: Path, head: dict[str, Any]) -> dict[Setting, dict[str, float]]:
    """What an earlier run measured. InputError if it was of another model or text."""
    path = out / "results.jsonl"
    if not path.exists():
        try:
            out.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise InputError(f"{out} can't be made ({error.strerror}); write elsewhere") from None
        return {}
    try:
        first, *lines = [json.loads(line) for line in path.read_text("utf-8").splitlines()]
        found = {Setting(**line["setting"]): line["found"] for line in lines}
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise InputError(f"{path} is damaged ({type(error).__name__}: {error}); remove it or give another folder") from None
    if first != head:
        raise InputError(f"{out} holds results of another model, text or number of tokens; give another folder")
    return found


def _write_results(out: Path, head: dict[str, Any], done: Mapping[Setting, dict[str, float]]) -> None:
    lines = [head, *({"setting": asdict(setting), "found": found} for setting, found in done.items())]
    with whole_file(out / "results.jsonl") as partial:
        partial.write_text("".join(json.dumps(line) + "\n" for line in lines), "utf-8")
