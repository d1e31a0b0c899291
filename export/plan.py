"""What an export will do, decided before anything is written: every refusal of what was asked for is here."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from phi3mobile.errors import InputError
from phi3mobile.export.packed import EMBEDDING, HEAD
from phi3mobile.export.packed_vision import PackedVision
from phi3mobile.export.recipe import DEFAULT_RECIPE, Recipe, find_recipe, with_vision_bits
from phi3mobile.export.solve.build import method_for
from phi3mobile.export.solve.estimate import told
from phi3mobile.export.solve.folder import Solved, is_solved
from phi3mobile.export.solve.rotate import Rotated
from phi3mobile.export.target import Target
from phi3mobile.export.targets import recipes, target_of
from phi3mobile.files import read_object, refuse_existing, require_space
from phi3mobile.hub import resolve
from phi3mobile.models.checkpoint import Checkpoint
from phi3mobile.models.config import DecoderConfig
from phi3mobile.models.form import Form
from phi3mobile.models.pieces import pieces
from phi3mobile.models.source import open_source
from phi3mobile.models.tensors import DOWN, shapes
from phi3mobile.session.defaults import generation_section
from phi3mobile.text.chat import ChatFormat, load_chat
from phi3mobile.text.tokenizer import Tokenizer
from phi3mobile.text.vocabularies import load_tokenizer

DEFAULT_CONTEXT = 2048
MOST_OF_FOUR = 5.0  # bits a weight, scales included, of a type that 4 bits may hold
MARGIN = 64 << 20  # bytes of disk besides what the target asks for


def model_name(source: str) -> str:
    """A source's last part, a GGUF file's without its ending."""
    return Path(source).resolve().name.removesuffix(".gguf")


@dataclass(frozen=True)
class ExportPlan:
    """One export, all decided; build.py carries it out."""

    source: str  # as it was given
    folder: Path  # of the checkpoint, or of a GGUF's tokenizer
    out: Path
    checkpoint: Checkpoint | Rotated | Solved
    recipe: Recipe
    target: Target
    method: str  # "gptq", "rtn" or "keep"; of a quantized folder, the one that it was made by
    calibration: str | Path | None
    bits: float | None
    context: int  # positions of the KV cache
    chunk: int  # tokens of one prefill step
    eos: list[int]
    tokenizer: Tokenizer
    chat: dict[str, Any]  # the manifest's section
    generation: dict[str, Any]  # the manifest's section
    notes: list[str]  # what was decided that a user should know
    space: int  # bytes of disk that it takes at most
    experts_memory: int | None = None  # bytes, the bundle's default for a mixture's experts; None: all that they need

    @property
    def name(self) -> str:
        """Of the model, for people: the source's last part."""
        return model_name(self.source)

    @property
    def config(self) -> DecoderConfig:
        return self.checkpoint.config

    def to_tell(self) -> list[str]:
        """What a person should know before the work begins: that it takes long, that the bundle will not run here."""
        takes = told(self.config) if self.method == "gptq" and not isinstance(self.checkpoint, Solved) else ""
        return [line for line in (takes, self.target.not_here(self.recipe)) if line]


def plan_export(
    source: str | Path,
    out: str | Path,
    recipe: str = DEFAULT_RECIPE,
    context: int | None = None,
    *,
    method: str | None = None,
    calibration: str | Path | None = None,
    bits: float | None = None,
    rotate: bool = False,
    experts_memory: int | None = None,
    vision_bits: int | None = None,
) -> ExportPlan:
    """The plan of `export` (see build.py for what it takes). Writes nothing. Raises InputError for what can't be done."""
    chosen, out = find_recipe(recipe), Path(out)
    target = target_of(chosen)
    refuse_existing(out)
    folder = resolve(source)
    given = Solved(folder) if is_solved(folder) else open_source(folder)
    folder = given.folder
    given.check()
    chosen, method, notes = _as_made(given, chosen, method, calibration, bits, rotate, vision_bits)
    checkpoint: Checkpoint | Rotated | Solved = given
    if rotate:
        assert not isinstance(given, Solved), given.folder  # _as_made refuses it
        checkpoint = Rotated(given)
    config, eos = checkpoint.config, stop_ids(folder, checkpoint.config)
    check_pieces(config, chosen, target)
    context = _context(config, chosen, context)
    chosen.check(config)
    _check_experts(config, bits, experts_memory)
    tower = None if config.vision is None else PackedVision(checkpoint, chosen.vision_bits)
    target.requires(chosen)
    tokenizer = load_tokenizer(folder)
    if tokenizer.vocab_size > config.vocab_size:
        raise InputError(
            f"{folder}: the tokenizer has {tokenizer.vocab_size} ids, the model {config.vocab_size}: files of two models?"
        )
    chat = chat_section(folder)
    if (end := turn_end(chat, tokenizer)) is not None and end not in eos:
        eos = [*eos, end]
        notes.append(f"the chat template ends turns with {tokenizer.decode([end])}: it is a stop token, too")
    kept = checkpoint if method == "keep" and isinstance(checkpoint, Checkpoint) else None
    space = target.space(packed_bytes(config, chosen, kept) + (0 if tower is None else tower.nbytes())) + MARGIN
    require_space(out, space)
    return ExportPlan(
        source=str(source),
        folder=folder,
        out=out,
        checkpoint=checkpoint,
        recipe=chosen,
        target=target,
        method=method,
        calibration=calibration,
        bits=bits,
        context=context,
        chunk=min(chosen.chunk, context),
        eos=eos,
        tokenizer=tokenizer,
        chat=chat,
        generation=generation_section(read_object(folder / "generation_config.json")),
        notes=notes,
        space=space,
        experts_memory=experts_memory,
    )


def _check_experts(config: DecoderConfig, bits: float | None, experts_memory: int | None) -> None:
    if config.block(0).routing is None and experts_memory is not None:
        raise InputError("this model has no experts: leave out --experts-memory")
    if config.block(0).routing is not None and bits is not None:
        raise InputError("the experts of a mixture share one form: leave out --bits")


def check_pieces(config: DecoderConfig, recipe: Recipe, target: Target) -> None:
    """InputError naming the pieces of the model that the recipe's programs can't have, and the recipes whose can."""
    needed, has = pieces(config), target.pieces(recipe)
    if missing := [name for name in recipe.needs if name not in needed]:
        able = ", ".join(_able(set(needed)))
        raise InputError(f"recipe {recipe.name} is for models with {', '.join(missing)}, which this one lacks; take {able}")
    lacking = [f"{name} ({where})" for name, where in needed.items() if name not in has]
    if lacking:
        able = ", ".join(_able(set(needed))) or "none of the recipes that there are"
        reasons = "".join(f" ({name}: {reason})" for name in needed if name not in has and (reason := target.why_not(name)))
        raise InputError(f"recipe {recipe.name} has no {', '.join(lacking)}, which this model needs; take {able}{reasons}")


def _able(needed: set[str]) -> Iterator[str]:
    for name, recipe in recipes().items():
        if set(recipe.needs) <= needed <= set(target_of(recipe).pieces(recipe)):
            yield name


def _context(config: DecoderConfig, recipe: Recipe, context: int | None) -> int:
    """The context that was asked for, or the default one."""
    context = min(DEFAULT_CONTEXT, config.max_position_embeddings) if context is None else context
    if type(context) is not int or not 1 <= context <= config.max_position_embeddings:
        raise InputError(f"context {context}: this model takes 1 to {config.max_position_embeddings}")
    most = config.max_position_embeddings if recipe.max_context is None else recipe.max_context
    if not recipe.min_context <= context <= most:
        raise InputError(f"context {context}: recipe {recipe.name} takes {recipe.min_context} to {most}")
    return context


def _as_made(
    checkpoint: Checkpoint | Solved,
    recipe: Recipe,
    method: str | None,
    calibration: str | Path | None,
    bits: float | None,
    rotate: bool,
    vision_bits: int | None,
) -> tuple[Recipe, str, list[str]]:
    """The recipe and method of what is exported, and notes: a quantized folder's tables and method are what they are."""
    if isinstance(checkpoint, Solved):
        if (method, calibration, bits, rotate, vision_bits) != (None, None, None, False, None):
            refused = "--method, --calibration, --bits, --vision-bits or --rotate"
            raise InputError(f"{checkpoint.folder} is quantized already: it takes no {refused}")
        return _as_quantized(checkpoint, recipe)
    method = method_for(checkpoint, recipe, method, bits, rotate)
    if method == "rtn" and (calibration, bits) != (None, None):
        raise InputError("method rtn reads no calibration text; leave out --calibration and --bits or take gptq")
    if method == "rtn" and rotate:
        raise InputError("method rtn rounds the checkpoint as it is; leave out --rotate or take gptq")
    recipe = with_vision_bits(recipe, checkpoint.config, vision_bits)
    notes = [] if bits is None else [f"layer weights have several forms, of at most {bits:g} bits a weight together"]
    return replace(recipe, method=method), method, notes


def _as_quantized(solved: Solved, recipe: Recipe) -> tuple[Recipe, str, list[str]]:
    """The recipe with the forms that the folder holds, and its method. InputError if a recipe fits that asks for no others."""
    made, about = find_recipe(solved.about["recipe"]), solved.about
    whole_rows = solved.form_of(first := solved.config.tensor(DOWN, 0).name) == Form(4, solved.shape(first)[1])
    if (recipe.group == 0) != whole_rows:
        raise InputError(f"recipe {recipe.name} has other groups of columns; quantize again with --recipe {recipe.name}")
    table, head = solved.form_of(EMBEDDING), solved.form_of(HEAD)
    if table is None or head is None:
        raise InputError(f"{solved.folder}: its embedding or its head is not packed; quantize again")
    if solved.config.vision is not None:
        recipe = replace(recipe, vision_bits=PackedVision(solved).bits)  # as the folder has them: any recipe takes them
    if made.signed and not recipe.signed and solved.signed():
        able = " or ".join(one.name for one in recipes().values() if one.signed)
        raise InputError(
            f"{solved.folder} has 4-bit scales of either sign, made for recipe {made.name}; those of recipe {recipe.name} "
            f"are positive: export with --recipe {able}, or quantize again with --recipe {recipe.name}, which both can take"
        )
    held = replace(recipe, **{name: getattr(made, name) for name in ("group", "down_group")})
    held = replace(held, embedding_bits=table.bits, head_bits=head.bits)
    notes = []
    if held != recipe:
        if fits := [one.name for one in recipes().values() if _unnamed(one) == _unnamed(held)]:
            raise InputError(
                f"{solved.folder} holds the integers of recipe {made.name} ({_forms(held)}), those of {recipe.name} are others "
                f"({_forms(recipe)}): export with --recipe {' or '.join(fits)}, or quantize again with --recipe {recipe.name}"
            )
        notes.append(f"weights as quantized for {made.name}: {_forms(held)}")
    if (bits := about.get("bits")) is not None:
        notes.append(f"layer weights have several forms, of at most {bits:g} bits a weight together")
    return held, about["quality"]["method"], notes


def _unnamed(recipe: Recipe) -> Recipe:
    return replace(recipe, name="", about="", method="", vision_bits=0)


def _forms(recipe: Recipe) -> str:
    groups = dict.fromkeys(group for group in (recipe.group, recipe.down_group) if group is not None)
    columns = " or ".join(f"{group} columns" if group else "a row" for group in groups)
    return f"a scale for {columns}, {recipe.embedding_bits}-bit embedding, {recipe.head_bits}-bit head"


def stop_ids(folder: Path, config: DecoderConfig) -> list[int]:
    """The ids that end an answer: generation_config.json's (mini: 32000, 32001, 32007), else the config's."""
    path = folder / "generation_config.json"
    eos = read_object(path).get("eos_token_id")
    ids: list[Any] = list(config.eos_token_ids) if eos is None else eos if isinstance(eos, list) else [eos]
    wrong = [token for token in ids if type(token) is not int or not 0 <= token < config.vocab_size]
    if wrong or not ids:
        raise InputError(f"{path}: eos_token_id {wrong or 'is missing'}; give ids from 0 to {config.vocab_size - 1}")
    return ids


def turn_end(chat: dict[str, Any], tokenizer: Tokenizer) -> int | None:
    """The control token with which the chat template ends an answer, if it does."""
    if chat["template"] is None:
        return None
    asked = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    try:
        _, suffix = ChatFormat(chat["template"], chat["bos"], chat["eos"]).answer(asked)
    except InputError:  # an unusual template: the checkpoint's own ids are all that is known
        return None
    first = next(iter(tokenizer.encode(suffix.lstrip())), None)
    return first if first in tokenizer.special_ids.values() else None


def packed_bytes(config: DecoderConfig, recipe: Recipe, kept: Checkpoint | None = None) -> int:
    """Bytes of the packed weights and float32 vectors, from the shapes; of what is `kept`, by what 4 bits may hold."""
    stored = shapes(config.tensors())
    total = 0
    for name, (rows, *columns) in (stored | {HEAD: stored[EMBEDDING]}).items():
        if not columns:
            total += 4 * rows
            continue
        bits, group, *_ = recipe.form_of(config.role(name), columns[0])
        if kept is not None and name.startswith("model.layers.") and kept.bits_of(name) > MOST_OF_FOUR:
            bits, group = 8, columns[0]
        scale = 2 if bits == 4 and name != EMBEDDING else 4  # the embedding's operators take float32
        total += rows * (columns[0] * bits // 8 + columns[0] // group * scale)
    return total


def chat_section(folder: Path) -> dict[str, object]:
    """The chat template as Jinja and, where regular, as plain segments; all null for a model without one."""
    in_config = read_object(folder / "tokenizer_config.json").get("chat_template") is not None
    if not in_config and not (folder / "chat_template.jinja").exists():
        return {"template": None, "bos": "", "eos": "", "segments": None}
    chat = load_chat(folder)
    return {"template": chat.template, "bos": chat.bos, "eos": chat.eos, "segments": chat.segments()}
