"""Which files of a checkpoint folder go where: the one table behind downloads, copies, bundles and hashes."""

from __future__ import annotations

from pathlib import Path

# What load_tokenizer reads ids from; the first that is there counts.
VOCABULARIES = ("tokenizer.json", "tokenizer.model", "*.tiktoken")
# Which tokens a vocabulary calls its bos, eos, ...: control tokens.
NAMES_OF_TOKENS = ("tokenizer_config.json", "special_tokens_map.json")
# What text and tokenizer need on a phone: a bundle holds these.
TOKENIZER_FILES = (*VOCABULARIES, *NAMES_OF_TOKENS, "added_tokens.json")
# What belongs beside the weights of a checkpoint, whoever writes them again.
COMPANIONS = (
    "tokenizer*",
    "*.tiktoken",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "generation_config.json",
    "preprocessor_config.json",  # of a model that takes pictures
    "chat_template*",
    "LICENSE*",
    "NOTICE*",
)
WEIGHTS = ("model*.safetensors", "model.safetensors.index.json")
# What a download takes of a hub repository.
CHECKPOINT_FILES = ("config.json", *WEIGHTS, *COMPANIONS)


def companion_files(folder: Path) -> list[Path]:
    """Files that belong beside the weights: tokenizer, chat template, generation config, licence."""
    return _files(folder, COMPANIONS)


def holds_gguf(folder: Path) -> bool:
    """Whether the folder's weights are GGUF files, and not safetensors."""
    return bool(_files(folder, ("*.gguf",))) and not _files(folder, WEIGHTS)


def vocabulary_file(folder: Path) -> Path | None:
    """The file that the folder's tokenizer has its ids from; None if there is none."""
    return next((path for pattern in VOCABULARIES for path in _files(folder, (pattern,))), None)


def _files(folder: Path, patterns: tuple[str, ...]) -> list[Path]:
    return sorted({path for pattern in patterns for path in folder.glob(pattern) if path.is_file()})
