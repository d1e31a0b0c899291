"""Tiny training runs for tests: token shards, talking checkpoints, configs as tables."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from exported import SPECIAL, VOCAB, write_tokenizer

SHAPE = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "vocab_size": VOCAB,
    "max_position_embeddings": 64,
    "original_max_position_embeddings": 64,
    "bos_token_id": 1,
    "eos_token_id": 0,
    "pad_token_id": 0,
    "tie_word_embeddings": False,
}


def write_shards(folder: Path, documents: int = 200, seed: int = 0, vocab: int = VOCAB, tokenizer: Path | None = None) -> Path:
    """Documents of a learnable language: each counts up from a random id, with random length."""
    from phi3mobile.files import sha256
    from phi3mobile.training.data.shards import ShardWriter, Vocabulary, write_index

    rng = np.random.default_rng(seed)
    name = sha256(tokenizer / "tokenizer.json") if tokenizer else ""
    writer = ShardWriter(folder, Vocabulary(vocab, 0, name))
    for number in range(documents):
        start, length = rng.integers(3, vocab), rng.integers(5, 40)
        writer.add((np.arange(start, start + length) - 3) % (vocab - 3) + 3, key=seed * 1_000_003 + number)
    writer.close()
    write_index(folder)
    return folder


def tokenizer_folder(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    write_tokenizer(folder)
    return folder


def pretrain_table(base: Path, out: str = "out", steps: int = 6, **changes) -> dict:
    """A pretrain config over `base`/shards (made on first use)."""
    if not (base / "shards").exists():
        write_shards(base / "shards")
    table = {
        "out": str(base / out),
        "model": {"shape": SHAPE},
        "data": {"phases": [{"sources": [{"path": str(base / "shards"), "epochs": 8.0}]}]},
        "optimizer": {"lr": 0.01},
        "schedule": {"steps": steps, "warmup": 2},
        "batch": {"rows": 4, "length": 32, "micro": 2},
        "run": {"checkpoint_every": 2, "save_dtype": "float32"},
    }
    for key, value in changes.items():
        table[key] = {**table[key], **value} if isinstance(value, dict) and key in table else value
    return table


def chat_lines(file: Path, count: int = 40) -> Path:
    """Conversations with an answer that can be learned, some of two turns."""
    words = ["cat", "rat", "mat", "sea", "hill"]
    lines = []
    for i in range(count):
        turns = []
        for j in range(1 + i % 2):
            word = words[(i + j) % len(words)]
            turns += [{"role": "user", "content": f"the {word}?"}, {"role": "assistant", "content": f"a {word} sat."}]
        lines.append({"messages": turns})
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return file


def pair_lines(file: Path, count: int = 24) -> Path:
    words = ["cat", "rat", "mat", "sea", "hill"]
    lines = [
        {"messages": [{"role": "user", "content": f"the {word}?"}], "chosen": f"a {word} sat.", "rejected": "no"}
        for word in (words * count)[:count]
    ]
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return file


def write_toml(path: Path, table: dict) -> Path:
    """Any nested table as TOML: inline values are JSON's, which TOML's scalars and arrays agree with."""

    def inline(value) -> str:
        if isinstance(value, dict):
            return "{" + ", ".join(f"{key} = {inline(item)}" for key, item in value.items()) + "}"
        if isinstance(value, list | tuple):
            return "[" + ", ".join(map(inline, value)) + "]"
        return json.dumps(value)

    path.write_text("".join(f"{key} = {inline(value)}\n" for key, value in table.items()))
    return path


__all__ = [
    "SHAPE",
    "SPECIAL",
    "VOCAB",
    "chat_lines",
    "pair_lines",
    "pretrain_table",
    "tokenizer_folder",
    "write_shards",
    "write_toml",
]
