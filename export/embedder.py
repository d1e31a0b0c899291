"""A MiniLM sentence embedder (all-MiniLM-L6-v2) -> its own small .pte, in the form of a decoder: any engine runs it.

The program: forward(tokens int64 [1, T], position int64 [1], unused) -> float32 [1, T, hidden]: the mean over tokens, made
of length 1, T times; T in [2, 256]. 8-bit embedding rows and float32 linears: with int8 activations the cosine to the
original is 0.996 instead of 0.9999, and a short question takes as long.
Sources: Devlin et al. 2018 (BERT), Reimers and Gurevych 2019 (mean pooling); tensor names are transformers' BertModel's.
"""

from __future__ import annotations

import json
from pathlib import Path

import torch
from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
from executorch.exir import EdgeCompileConfig, to_edge_transform_and_lower
from torch import nn
from torch.nn import functional as F

from phi3mobile.errors import InputError
from phi3mobile.files import whole_file
from phi3mobile.models.finite import require_finite
from phi3mobile.retrieval.embed import LONGEST


class _Layer(nn.Module):
    def __init__(self, hidden: int, inner: int, heads: int, eps: float) -> None:
        super().__init__()
        self.heads = heads
        self.query, self.key, self.value, self.dense = (nn.Linear(hidden, hidden) for _ in range(4))
        self.attention_norm, self.output_norm = nn.LayerNorm(hidden, eps), nn.LayerNorm(hidden, eps)
        self.up, self.down = nn.Linear(hidden, inner), nn.Linear(inner, hidden)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[1, T, D] -> [1, T, D]; no mask: a batch is one text."""
        q, k, v = (part(x).unflatten(-1, (self.heads, -1)).transpose(1, 2) for part in (self.query, self.key, self.value))
        weights = torch.softmax(q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5, dim=-1)
        x = self.attention_norm(x + self.dense((weights @ v).transpose(1, 2).flatten(2)))
        return self.output_norm(x + self.down(F.gelu(self.up(x))))


class MiniLM(nn.Module):
    """float32 reference: `forward` as the program above."""

    def __init__(self, config: dict) -> None:
        super().__init__()
        hidden, eps = config["hidden_size"], config["layer_norm_eps"]
        self.words = nn.Embedding(config["vocab_size"], hidden)
        self.positions = nn.Embedding(config["max_position_embeddings"], hidden)
        self.types = nn.Embedding(config["type_vocab_size"], hidden)
        self.norm = nn.LayerNorm(hidden, eps)
        layer = hidden, config["intermediate_size"], config["num_attention_heads"], eps
        self.layers = nn.ModuleList(_Layer(*layer) for _ in range(config["num_hidden_layers"]))

    def forward(self, tokens: torch.Tensor, position: torch.Tensor) -> torch.Tensor:
        length = tokens.shape[1]
        x = self.words(tokens) + self.positions.weight[:length] + self.types.weight[0]
        x = self.norm(x)
        for layer in self.layers:
            x = layer(x)
        mean = x.mean(dim=1, keepdim=True)
        return (mean / mean.square().sum(dim=-1, keepdim=True).sqrt()).expand_as(x).clone()


_NAMES = {  # transformers' names -> ours
    "embeddings.word_embeddings": "words",
    "embeddings.position_embeddings": "positions",
    "embeddings.token_type_embeddings": "types",
    "embeddings.LayerNorm": "norm",
    "encoder.layer": "layers",
    "attention.self.": "",
    "attention.output.dense": "dense",
    "attention.output.LayerNorm": "attention_norm",
    "intermediate.dense": "up",
    "output.dense": "down",
    "output.LayerNorm": "output_norm",
}


def load_minilm(folder: Path) -> MiniLM:
    """The model of a sentence-transformers folder of BERT's layout. Raises InputError."""
    from safetensors.torch import load_file

    try:
        config = json.loads((folder / "config.json").read_text("utf-8"))
        tensors = load_file(folder / "model.safetensors")
    except Exception as error:
        raise InputError(f"{folder} is no sentence-transformers folder ({error}); give one of a BERT embedder") from None
    if config.get("model_type") != "bert" or config.get("hidden_act") != "gelu":
        raise InputError(f"{folder}: model_type {config.get('model_type')!r}; only bert embedders with gelu are supported")
    renamed = {}
    for stored, tensor in tensors.items():
        name = stored
        for old, new in _NAMES.items():
            name = name.replace(old, new)
        if not name.startswith("pooler.") and name != "embeddings.position_ids":
            require_finite(stored, tensor, folder)
            renamed[name] = tensor.float()
    model = MiniLM(config)
    try:
        model.load_state_dict(renamed)
    except RuntimeError as error:
        raise InputError(f"{folder}: other tensors than BERT's ({' '.join(str(error).split())[:200]})") from None
    return model.eval().requires_grad_(False)


class _ByteRows(nn.Module):
    """An embedding table in int8 with a scale per row."""

    codes: torch.Tensor
    scales: torch.Tensor

    def __init__(self, table: torch.Tensor) -> None:
        super().__init__()
        scales = table.abs().amax(dim=1, keepdim=True) / 127
        self.register_buffer("codes", (table / scales.clamp(min=1e-12)).round().clamp(-127, 127).to(torch.int8))
        self.register_buffer("scales", scales)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        operator = torch.ops.quantized_decomposed.embedding_byte.dtype
        return operator(self.codes, self.scales, None, -128, 127, tokens, dtype=torch.float32)


def export_embedder(folder: Path, pte: Path) -> None:
    """Write the program of the embedder in `folder` to `pte`."""
    model = load_minilm(folder)
    model.add_module("words", _ByteRows(model.words.weight))
    example = torch.zeros(1, 7, dtype=torch.int64), torch.zeros(1, dtype=torch.int64)
    shapes = {1: torch.export.Dim("T", min=2, max=LONGEST)}, None
    exported = torch.export.export(model, example, dynamic_shapes=shapes, strict=False)
    program = to_edge_transform_and_lower(
        exported, partitioner=[XnnpackPartitioner()], compile_config=EdgeCompileConfig(_check_ir_validity=False)
    ).to_executorch()
    with whole_file(pte) as partial:
        partial.write_bytes(program.buffer)
