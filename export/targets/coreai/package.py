"""What makes a bundle's folder one that Apple's language engine opens: metadata.json and tokenizer/ beside the program.

Contract of apple/coreai-models (Swift package CoreAILM), metadata 0.2. Its engine ends an answer at the tokenizer's eos_token
and at every one of additional_special_tokens: so these name all stop tokens, and no others.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

from phi3mobile.errors import InputError
from phi3mobile.export.targets.coreai.decoder import SHORT, functions
from phi3mobile.files import read_object
from phi3mobile.models.companions import TOKENIZER_FILES

if TYPE_CHECKING:
    from phi3mobile.export.plan import ExportPlan

METADATA, TOKENIZER = "metadata.json", "tokenizer"
_VERSION = "0.2"


def write_package(folder: Path, plan: ExportPlan) -> None:
    """Write both into the bundle `folder`, which has program and tokenizer. InputError without a tokenizer.json.

    The engine stays within LongRoPE's original context: it would not compute a sequence again that grows past.
    """
    if not (folder / "tokenizer.json").is_file():
        raise InputError("Core AI's language engine reads tokenizer.json only; put one into the checkpoint's folder")
    own = folder / TOKENIZER
    own.mkdir()
    for pattern in TOKENIZER_FILES:
        for path in filter(Path.is_file, folder.glob(pattern)):
            shutil.copyfile(path, own / path.name)
    _write(own / "tokenizer_config.json", tokenizer_config(folder, plan.eos, plan.chat["template"]))
    name = plan.name
    language = {
        "tokenizer": name,
        "vocab_size": plan.config.vocab_size,
        "max_context_length": functions(plan.config, plan.context)[SHORT],
        "embedded_tokenizer": True,
        "function_map": {SHORT: [SHORT]},
    }
    about = {
        "metadata_version": _VERSION,
        "kind": "llm",
        "name": name,
        "assets": {"main": "model.aimodel"},
        "language": language,
        "source": {"model_definition": "phi3mobile"},
        "compression": f"{plan.recipe.bits} bit, groups of {plan.recipe.group}",
        "compilation": {"targets": []},
    }
    _write(folder / METADATA, about)


def tokenizer_config(folder: Path, eos: list[int], template: str | None) -> dict[str, Any]:
    """The checkpoint's own, with its stop tokens and chat template said where Apple's engine looks."""
    texts = _texts(read_object(folder / "tokenizer.json"))
    stops = [texts[token] for token in eos if token in texts]
    found = {"tokenizer_class": "PreTrainedTokenizerFast"} | read_object(folder / "tokenizer_config.json")
    if stops:
        first = found.get("eos_token")
        first = first.get("content") if isinstance(first, dict) else first
        last = first if first in stops else stops[0]
        turn = next((stop for stop in stops if stop != last), last)
        found |= {"eos_token": last, "eot_token": turn, "additional_special_tokens": stops}
    return found if template is None else found | {"chat_template": template}


def _texts(tokenizer: dict[str, Any]) -> dict[int, str]:
    """Id -> text of every token."""
    vocabulary = tokenizer.get("model", {}).get("vocab", {})
    pairs = vocabulary.items() if isinstance(vocabulary, dict) else ((piece[0], at) for at, piece in enumerate(vocabulary))
    added = ((token["content"], token["id"]) for token in tokenizer.get("added_tokens", []))
    return {number: text for text, number in (*pairs, *added)}


def _write(path: Path, value: dict[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", "utf-8")
