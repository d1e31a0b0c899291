"""A bundle, or a checkpoint's unquantized weights, as evaluation sees it: an engine with its tokenizer and chat format."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from phi3mobile.bundle import Bundle, is_bundle, open_bundle
from phi3mobile.engines import Engine
from phi3mobile.engines.registry import open_engine
from phi3mobile.errors import InputError

if TYPE_CHECKING:
    from phi3mobile.engines.tower import Tower
    from phi3mobile.text.chat import ChatFormat
    from phi3mobile.text.tokenizer import Tokenizer


@dataclass
class Model:
    """`identity`: a hash of everything that its answers depend on; `about`: what a result says of it.

    tower: loads what sees pictures; None: the model reads text only.
    """

    engine: Engine
    tokenizer: Tokenizer
    chat: ChatFormat | None
    eos_ids: frozenset[int]
    bos_id: int | None
    identity: str
    about: dict[str, Any]
    tower: Callable[[], Tower] | None = None

    @property
    def eos_id(self) -> int:
        """The one that ends a turn, where there are several."""
        named = self.tokenizer.id_of(self.chat.eos) if self.chat and self.chat.eos else None
        return min(self.eos_ids) if named is None else named


def open_model(path: str | Path, context: int | None = None) -> Model:
    """A bundle's engine, or for a checkpoint folder the float32 torch model with `context` positions.

    Raises InputError: neither of both, or `context` with a bundle.
    """
    folder = Path(path)
    if is_bundle(folder):
        if context is not None:
            raise InputError(f"--context {context}: {folder} is a bundle and has its own; leave it out")
        return _from_bundle(folder)
    if not (folder / "config.json").is_file():
        raise InputError(f"{folder} is neither a bundle nor a checkpoint folder; give what `phi3mobile export` made or reads")
    return _from_checkpoint(folder, context)


def _from_bundle(folder: Path) -> Model:
    bundle = open_bundle(folder)
    manifest = bundle.manifest
    engine = open_engine(bundle)
    about = {
        "name": manifest["name"],
        "recipe": manifest["recipe"]["name"],
        "runtime": type(engine).__name__,
        "parameters": manifest["model"]["parameters"],
        "bits_per_weight": manifest["model"]["bits_per_weight"],
    }
    chat = bundle.chat if manifest["chat"]["template"] is not None else None
    files = sorted((name, listed["sha256"]) for name, listed in manifest["files"].items())
    identity = _hash(type(engine).__name__, files, _versions())
    tokenizer = bundle.tokenizer
    bos = tokenizer.id_of(tokenizer.bos) if tokenizer.bos else None
    return Model(engine, tokenizer, chat, bundle.eos_ids, bos, identity, about, _tower_of(bundle))


def _tower_of(bundle: Bundle) -> Callable[[], Tower] | None:
    if getattr(bundle, "vision", None) is None:
        return None
    from phi3mobile.engines.registry import open_tower

    return partial(open_tower, bundle)


def _from_checkpoint(folder: Path, context: int | None) -> Model:
    from phi3mobile.engines.eager import EagerEngine, EagerTower
    from phi3mobile.export.plan import stop_ids
    from phi3mobile.models.checkpoint import open_checkpoint
    from phi3mobile.models.loading import load_vision, model_from
    from phi3mobile.models.vision_config import num_crops
    from phi3mobile.text.chat import load_chat
    from phi3mobile.text.vocabularies import load_tokenizer

    checkpoint = open_checkpoint(folder)
    tokenizer = load_tokenizer(folder)
    try:
        chat = load_chat(folder)
    except InputError:  # a base model: it completes text
        chat = None
    engine = EagerEngine(model_from(checkpoint, context), chunk=256)
    parameters = sum(weight.numel() for weight in engine.model.parameters())
    about = {
        "name": folder.resolve().name,
        "recipe": "float32",
        "runtime": "torch",
        "parameters": parameters,
        "bits_per_weight": 32.0,
    }
    bos = tokenizer.id_of(tokenizer.bos) if tokenizer.bos else None
    identity = _hash("torch", checkpoint.source_hash(), engine.info.max_context, _versions())
    tower = None if checkpoint.config.vision is None else lambda: EagerTower(load_vision(folder), num_crops(folder))
    return Model(engine, tokenizer, chat, frozenset(stop_ids(folder, checkpoint.config)), bos, identity, about, tower)


def _versions() -> list[str]:
    from importlib.metadata import version

    return [version(package) for package in ("phi3mobile", "executorch", "torch")]


def _hash(*parts: Any) -> str:
    return hashlib.sha256(repr(parts).encode()).hexdigest()
