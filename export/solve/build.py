"""Checkpoint -> folder of solved integers, that `phi3mobile export` takes for every target: the slow part, once."""

from __future__ import annotations

import hashlib
import json
import math
import shutil
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from phi3mobile.errors import InputError
from phi3mobile.export.packed import PackedModel
from phi3mobile.export.packed_vision import PackedVision, vision_decibels
from phi3mobile.export.recipe import DEFAULT_RECIPE, Recipe, find_recipe, with_vision_bits
from phi3mobile.export.solve.balance import FormOf
from phi3mobile.export.solve.budget import TOKENS, choose, measure_classes
from phi3mobile.export.solve.calibration import Calibration, calibration_of, card_tokens
from phi3mobile.export.solve.checkpoint import on_grid, solve_checkpoint
from phi3mobile.export.solve.folder import is_solved, write_about, write_part
from phi3mobile.export.solve.keep import TOKENS as KEEP_TOKENS
from phi3mobile.export.solve.keep import is_packed, keep_checkpoint, refuse_whole_rows
from phi3mobile.export.solve.pictures import picture_rows
from phi3mobile.export.solve.rotate import Rotated
from phi3mobile.export.solve.stream import load_layer
from phi3mobile.export.tower_pictures import measured_views
from phi3mobile.files import refuse_existing, require_space
from phi3mobile.hub import resolve
from phi3mobile.models.checkpoint import Checkpoint
from phi3mobile.models.companions import companion_files
from phi3mobile.models.form import Form
from phi3mobile.models.source import open_source
from phi3mobile.partial import alone, remove
from phi3mobile.progress import Progress, silent
from phi3mobile.text.vocabularies import load_tokenizer

METHODS = {
    "gptq": "GPTQ on calibration text, with a quality card",
    "rtn": "round to nearest: fast, no text needed, less exact",
    "keep": "the integers that a checkpoint has already (GGUF, AWQ ...), with a quality card",
}
MOST_KL = 0.15  # nats from the float model on the card's text, above which a bundle is refused: docs/quality.md says why
_KL_OF_BITS = {4.5: 0.092, 4.6: 0.045, 4.7: 0.026, 4.8: 0.014}  # by --bits, docs/quality.md
_KL_ROTATED = 0.91  # of what it is without


def quantize_checkpoint(
    source: str | Path,
    out: str | Path,
    recipe: str = DEFAULT_RECIPE,
    *,
    method: str | None = None,
    calibration: str | Path | None = None,
    bits: float | None = None,
    rotate: bool = False,
    vision_bits: int | None = None,
    progress: Progress = silent,
) -> Path:
    """Make packed integers of the checkpoint folder, GGUF file or hub id `source` in the folder `out`, and return it.

    `method`: "gptq", or "keep" for a source that is integers already: see method_for for the default.

    A killed run leaves `.NAME.unfinished` beside `out`; the same call goes on from there. `calibration`: a UTF-8 text file, or
    a folder of texts and pictures: weights are solved on both, a tower's loss is measured on the pictures. `bits`: per
    weight of the layers, at most, scales included: the most sensitive matrices get more (default: the recipe's form for all).
    `rotate`: turn the hidden states first, see export.solve.rotate. `vision_bits`: of a tower, 4 or 8 (default: 8).
    Raises InputError for a source that is no float checkpoint, an existing `out`, a calibration text that is too short.
    """
    chosen, out = find_recipe(recipe), Path(out)
    floats = float_checkpoint(source, out)
    folder = floats.folder
    floats.check()
    method = method_for(floats, chosen, method, bits, rotate)
    if method == "rtn":
        raise InputError("method rtn takes no folder of its own: give it to export")
    chosen = with_vision_bits(chosen, floats.config, vision_bits)
    chosen.check(floats.config)
    checkpoint = Rotated(floats) if rotate else floats
    text = calibration_of(load_tokenizer(folder), checkpoint.config, calibration)
    require_space(out, checkpoint.config.all_parameters() + (64 << 20))
    floats.check_values(progress)
    partial = out.absolute().with_name(f".{out.name}.unfinished")
    settings = [checkpoint.source_hash(), asdict(chosen), method, text.sha256, bits, rotate, version("phi3mobile")]
    with _alone(partial, out):
        _begin(partial, hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest())
        if method == "keep":
            keep_into(partial, floats, chosen, text, progress, str(source))
        else:
            forms = forms_for(checkpoint, chosen, text, bits, progress)
            solve_into(partial, checkpoint, chosen, text, progress, forms, str(source), bits)
        for path in companion_files(folder):
            shutil.copyfile(path, partial / path.name)
        refuse_existing(out)
        partial.rename(out)
        (out / _SETTINGS).unlink()  # after: without it hours of work would be taken for another's
    return out


def float_checkpoint(source: str | Path, out: Path) -> Checkpoint:
    """The checkpoint that `source` names, to be solved into `out`. InputError: `out` is there, or the integers are already."""
    folder = resolve(source)
    refuse_existing(out)
    if is_solved(folder):
        raise InputError(f"{folder} is quantized already; give the float checkpoint that it was made from")
    return open_source(folder)


def method_for(checkpoint: Checkpoint, recipe: Recipe, method: str | None, bits: float | None, rotate: bool) -> str:
    """The method that was asked for; else keep for what is integers already, unless `bits` or `rotate` ask for others.

    InputError: an unknown method, or one that can't be done with this checkpoint or these options.
    """
    if method is None:
        packed = bits is None and not rotate and is_packed(checkpoint)
        method = "keep" if packed and recipe.group else recipe.method
    if method not in METHODS:
        raise InputError(f"method {method!r} is not known; take one of: {', '.join(METHODS)}")
    if method != "keep":
        return method
    if not is_packed(checkpoint):
        raise InputError("method keep is for what is integers already: GGUF, AWQ, GPTQ and the like; take gptq or rtn")
    if bits is not None or rotate:
        raise InputError("method keep leaves the integers as they are; leave out --bits and --rotate or take gptq")
    refuse_whole_rows(checkpoint, recipe)
    return method


def forms_for(
    checkpoint: Checkpoint | Rotated, recipe: Recipe, text: Calibration, bits: float | None, progress: Progress
) -> dict[str, Form]:
    """Forms of the layer matrices, by name, for a budget of `bits` per weight; {} without a budget. InputError: impossible."""
    if bits is None:
        return {}
    if not recipe.group:
        raise InputError(f"recipe {recipe.name} has one scale a row: it takes no --bits")
    return choose(measure_classes(checkpoint, text.tokens[:1, :TOKENS], progress, recipe.signed), bits)


def solve_into(
    folder: Path,
    checkpoint: Checkpoint | Rotated,
    recipe: Recipe,
    text: Calibration,
    progress: Progress,
    forms: dict[str, Form],
    source: str = "",
    bits: float | None = None,
) -> dict[str, Any]:
    """A solved model in `folder`, but for the tokenizer's files; returns what was written about it."""
    wanted, config = PackedModel(checkpoint, recipe, forms), checkpoint.config
    if isinstance(checkpoint, Rotated):
        _refuse_trained(checkpoint, wanted.matrix_form)
    card = card_tokens(load_tokenizer(checkpoint.folder), config)
    tower = None if config.vision is None else PackedVision(checkpoint, recipe.vision_bits)
    if tower is not None:
        progress("pictures", 0, 1)
    seen = (None, None) if tower is None else picture_rows(checkpoint, tower, text.pictures)
    measured = solve_checkpoint(
        checkpoint, folder, wanted.matrix_form, text.tokens, card, progress, seen, recipe.activation_group
    )
    quality = {
        "method": "gptq",
        "rotated": isinstance(checkpoint, Rotated),
        "bits_per_weight": wanted.bits_per_weight(),
        "calibration": {"text": text.name, "sha256": text.sha256, "tokens": text.tokens.numel(), **_rows_of(seen[0])},
    }
    return _finish(folder, checkpoint, recipe, quality | measured, tower, text, source, bits)


def keep_into(
    folder: Path, checkpoint: Checkpoint, recipe: Recipe, text: Calibration, progress: Progress, source: str = ""
) -> dict[str, Any]:
    """As solve_into by method keep: the integers that the checkpoint has, see export.solve.keep."""
    config, windows = checkpoint.config, text.tokens
    count = max(1, KEEP_TOKENS // windows.shape[1])
    tokens = windows[:: max(1, len(windows) // count)][:count]
    card = card_tokens(load_tokenizer(checkpoint.folder), config)
    measured = keep_checkpoint(checkpoint, folder, recipe, tokens, card, progress)
    tower = None if config.vision is None else PackedVision(checkpoint, recipe.vision_bits)
    quality = {
        "method": "keep",
        "rotated": False,
        "bits_per_weight": measured.pop("bits_per_weight"),
        "calibration": {"text": text.name, "sha256": text.sha256, "tokens": tokens.numel()},
    }
    return _finish(folder, checkpoint, recipe, quality | measured, tower, text, source, None)


def _finish(
    folder: Path,
    checkpoint: Checkpoint | Rotated,
    recipe: Recipe,
    quality: dict[str, Any],
    tower: PackedVision | None,
    text: Calibration,
    source: str,
    bits: float | None,
) -> dict[str, Any]:
    """What is neither layer nor table: tower, config and what was done, written last."""
    if tower is not None:
        write_part(folder / "packed-vision.safetensors", tower.part())
        quality["vision"] = vision_decibels(checkpoint, tower, measured_views(text.pictures))
    (folder / "config.json").write_text(json.dumps(checkpoint.config.to_hf(), indent=2) + "\n")
    about = {
        "source": source or str(checkpoint.folder),
        "source_hash": checkpoint.source_hash(),
        "recipe": recipe.name,
        "bits": bits,
        "tool": version("phi3mobile"),
        "quality": quality,
    }
    write_about(folder, about)
    return about


def _rows_of(seen: torch.Tensor | None) -> dict[str, int]:
    return {} if seen is None else {"picture_rows": seen.shape[0] * seen.shape[1]}


def _refuse_trained(checkpoint: Rotated, form_of: FormOf) -> None:
    """InputError if turning would undo what the weights were trained for."""
    if on_grid(load_layer(checkpoint.config, 0, checkpoint.source.tensor), 0, form_of):
        raise InputError(f"{checkpoint.folder} was trained on the 4-bit grid, which turning destroys: leave out --rotate")


def refuse_loss(quality: dict[str, Any], vocab: int) -> None:
    """InputError if the card shows more loss than a bundle may have, with what would pass. An untrained model guesses: its
    loss says nothing."""
    if not all(math.isfinite(quality[key]) for key in ("ratio", "kl", "perplexity", "perplexity_float")):
        raise InputError(f"the quality card's perplexity is {quality['perplexity']}: the quantized model is of no use")
    if quality["kl"] > MOST_KL and quality["perplexity_float"] < vocab / 2:
        raise InputError(
            f"quantized, the model's answers are {quality['kl']:.3f} nats (KL) from the float model's, perplexity "
            f"{quality['perplexity']:.2f} against {quality['perplexity_float']:.2f}; at most {MOST_KL:.2f} ships: "
            f"{_passing(quality)}, or --accept-quality"
        )


def _passing(quality: dict[str, Any]) -> str:
    """Which option should bring a card's KL under the gate, from what each took off it where they were measured."""
    if quality.get("method") == "keep":
        return "take --method gptq"
    own = max((bits for bits in _KL_OF_BITS if bits <= quality["bits_per_weight"]), default=min(_KL_OF_BITS))
    if not quality.get("rotated") and quality["kl"] * _KL_ROTATED <= MOST_KL:
        return "--rotate should pass"
    for bits, kl in _KL_OF_BITS.items():
        if bits > own and quality["kl"] * kl / _KL_OF_BITS[own] <= MOST_KL:
            return f"--bits {bits} should pass"
    return "take another calibration text (no number of bits measured so far would pass)"


_SETTINGS = "unfinished.txt"


@contextmanager
def _alone(partial: Path, out: Path) -> Iterator[None]:
    """Two runs would write into one unfinished folder."""
    with ExitStack() as stack:
        try:
            partial.parent.mkdir(parents=True, exist_ok=True)
            first = stack.enter_context(alone(partial))
        except OSError as error:
            raise InputError(f"{partial} can't be made ({error.strerror}); write elsewhere") from None
        if not first:
            raise InputError(f"another run is making {out}: wait for it, or give another name")
        yield


def _begin(partial: Path, settings: str) -> None:
    """An empty folder, or what a run with the same settings left."""
    mark = partial / _SETTINGS
    if partial.exists() and not (mark.is_file() and mark.read_text() == settings):
        remove(partial)
    partial.mkdir(exist_ok=True)
    mark.write_text(settings)
