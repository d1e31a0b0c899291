"""GGUF files of architecture phi3 and llama, read as a Phi-3 checkpoint: names, fused rows, config from the metadata.

llama files store q and k rows interleaved for their RoPE; here they go back to NeoX halves. phi3 files keep HF's rows.
A phi3 file without attention.sliding_window (the first conversions) declares no window, and is read so.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch

from phi3mobile.errors import InputError
from phi3mobile.models.config import Phi3Config, RopeScaling
from phi3mobile.models.weights import expected_tensors, refuse_differences, write_checkpoint

ARCHITECTURES = ("phi3", "llama")
_TOP = {
    "model.embed_tokens.weight": "token_embd.weight",
    "model.norm.weight": "output_norm.weight",
    "lm_head.weight": "output.weight",
}
_LAYER = {
    "input_layernorm": ("attn_norm",),
    "self_attn.qkv_proj": ("attn_q", "attn_k", "attn_v"),
    "self_attn.o_proj": ("attn_output",),
    "post_attention_layernorm": ("ffn_norm",),
    "mlp.gate_up_proj": ("ffn_gate", "ffn_up"),
    "mlp.down_proj": ("ffn_down",),
}
_FACTORS = ("rope_factors_long.weight", "rope_factors_short.weight", "rope_freqs.weight")
_KEYS = frozenset(
    """block_count context_length embedding_length feed_forward_length vocab_size attention.head_count
    attention.head_count_kv attention.key_length attention.value_length attention.layer_norm_rms_epsilon
    attention.sliding_window rope.freq_base rope.dimension_count rope.scaling.type rope.scaling.factor
    rope.scaling.attn_factor rope.scaling.original_context_length rope.scaling.finetuned expert_count
    expert_used_count""".split()  # noqa: SIM905
)


class GgufCheckpoint:
    """An open GGUF file with the reading half of Checkpoint's interface. `reader`: the gguf.GGUFReader (tokenizer)."""

    def __init__(self, path: Path, reader: gguf.GGUFReader) -> None:
        self.path, self.reader = path, reader
        self._tensors = {tensor.name: tensor for tensor in reader.tensors}
        self._architecture = reader.fields["general.architecture"].contents()
        self.config = _config(path, self._architecture, reader, self._tensors)

    def names(self) -> list[str]:
        """Every weight in model order, under Phi-3 names."""
        return list(expected_tensors(self.config))

    def tensor(self, name: str) -> torch.Tensor:
        """One weight as float32, dequantized, fused, in Phi-3's row order."""
        parts = [self._part(part) for part in self._parts(name)]
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    def check(self) -> None:
        """Raise one InputError naming every missing, extra or misshapen tensor, or a type that can't be dequantized."""
        expected = expected_tensors(self.config)
        stored = {name: self._parts(name) for name in expected}
        known = {part for parts in stored.values() for part in parts} | set(_FACTORS)
        found = {name: self._shape(parts) for name, parts in stored.items() if all(p in self._tensors for p in parts)}
        found |= {name: () for name in self._tensors if name not in known}
        refuse_differences(str(self.path), expected, found)
        for tensor in {tensor.tensor_type: tensor for tensor in self._tensors.values()}.values():
            _dequantize(self.path, tensor, tensor.data[:1])

    def _shape(self, parts: list[str]) -> tuple[int, ...]:
        shapes = [tuple(int(size) for size in reversed(self._tensors[part].shape)) for part in parts]
        return (sum(shape[0] for shape in shapes), *shapes[0][1:])

    def _parts(self, name: str) -> list[str]:
        if name in _TOP:
            return [_TOP[name]]
        index, _, module = name.removeprefix("model.layers.").removesuffix(".weight").partition(".")
        parts = _LAYER[module]
        if self._architecture == "phi3" and module == "mlp.gate_up_proj":
            parts = ("ffn_up",)  # holds both halves
        if module == "self_attn.qkv_proj" and f"blk.{index}.attn_qkv.weight" in self._tensors:
            parts = ("attn_qkv",)
        return [f"blk.{index}.{part}.weight" for part in parts]

    def _part(self, name: str) -> torch.Tensor:
        tensor = self._tensors[name]
        values = torch.from_numpy(np.array(_dequantize(self.path, tensor, tensor.data), dtype=np.float32))
        if self._architecture == "llama" and name.endswith(("attn_q.weight", "attn_k.weight")):
            return values.unflatten(0, (-1, self.config.head_dim // 2, 2)).transpose(1, 2).flatten(0, 2)
        return values


def open_gguf(path: str | Path) -> GgufCheckpoint:
    """Open a GGUF file. Raises InputError if it is missing, not GGUF, truncated, or not a phi3 or llama model."""
    path = Path(path)
    if not path.is_file():
        raise InputError(f"{path} {'is a folder' if path.is_dir() else 'does not exist'}; give a .gguf file")
    with path.open("rb") as file:
        if file.read(4) != b"GGUF":
            raise InputError(f"{path} is not a GGUF file: it does not start with GGUF")
    try:
        reader = gguf.GGUFReader(path)
    except Exception as error:  # the reader parses whatever lies there: any exception means damage
        reason = " ".join(str(error).split()) or type(error).__name__
        raise InputError(f"{path} is truncated or damaged ({reason}); download it again") from None
    architecture = reader.fields.get("general.architecture")
    if architecture is None or architecture.contents() not in ARCHITECTURES:
        name = None if architecture is None else architecture.contents()
        raise InputError(f"{path} is a model of architecture {name!r}; known are {', '.join(ARCHITECTURES)}")
    return GgufCheckpoint(path, reader)


def import_gguf(
    path: str | Path,
    out_folder: str | Path,
    dtype: torch.dtype = torch.float16,
    write_tokenizer: Callable[[gguf.GGUFReader, Path], Any] | None = None,
) -> Path:
    """Write the GGUF file at `path` as a Phi-3-layout HF folder, tokenizer included, tensor by tensor.

    `write_tokenizer(reader, folder)` defaults to phi3mobile.text.gguf_vocab's. Raises InputError as open_gguf, check and
    write_checkpoint do.
    """
    if write_tokenizer is None:
        from phi3mobile.text.gguf_vocab import write_tokenizer
    source = open_gguf(path)
    source.check()
    tensors = ((name, source.tensor(name)) for name in source.names())
    finish = lambda folder: write_tokenizer(source.reader, folder)  # noqa: E731
    return write_checkpoint(Path(out_folder), source.config, tensors, dtype, finish=finish)


def _dequantize(path: Path, tensor: gguf.ReaderTensor, data: np.ndarray) -> np.ndarray:
    try:
        return gguf.dequantize(data, tensor.tensor_type)
    except (NotImplementedError, ValueError) as error:
        kind = tensor.tensor_type.name
        raise InputError(f"{path}: {tensor.name} is stored as {kind}, which can't be dequantized ({error})") from None


def _short(value: Any) -> float:
    """The shortest decimal that gives this float32, as the original config.json had it."""
    return float(str(np.float32(value)))


def _config(path: Path, architecture: str, reader: gguf.GGUFReader, tensors: dict[str, gguf.ReaderTensor]) -> Phi3Config:
    prefix = architecture + "."
    ours = {key: field for key, field in reader.fields.items() if key.startswith(prefix)}
    given = {key.removeprefix(prefix): field.contents() for key, field in ours.items()}
    if unknown := sorted(set(given) - _KEYS):
        value = str(given[unknown[0]])[:80]
        raise InputError(f"{path}: unknown metadata {prefix}{unknown[0]} = {value!r}; it may change the model")
    if given.get("expert_count"):
        raise InputError(f"{path} is a mixture of {given['expert_count']} experts; only dense models are supported")
    if "split.count" in reader.fields and reader.fields["split.count"].contents() > 1:
        raise InputError(f"{path} is one part of a split model; merge the parts into one file first")

    def whole(key: str, default: int | None = None) -> int:
        value = given.get(key, default)
        if type(value) is not int or value < 1:
            raise InputError(f"{path}: metadata {prefix}{key} is {value!r}; it must be one whole number above 0")
        return value

    def number(key: str, default: float | None = None) -> float:
        value = given.get(key, default)
        if type(value) is not float or not 0 < value < float("inf"):
            raise InputError(f"{path}: metadata {prefix}{key} is {value!r}; it must be a number above 0")
        return _short(value)

    def token(key: str) -> int | None:
        field = reader.fields.get(f"tokenizer.ggml.{key}")
        return None if field is None else int(field.contents())

    if "token_embd.weight" not in tensors:
        raise InputError(f"{path}: tensor token_embd.weight is missing")
    heads, hidden, context = whole("attention.head_count"), whole("embedding_length"), whole("context_length")
    head_dim = whole("attention.key_length", hidden // heads)
    if (value_dim := whole("attention.value_length", head_dim)) != head_dim:
        raise InputError(f"{path}: keys of {head_dim} and values of {value_dim} dimensions; they must be equal")
    rotary = whole("rope.dimension_count", head_dim)
    if architecture == "llama" and rotary != head_dim:
        raise InputError(f"{path}: a llama model that rotates {rotary} of {head_dim} dimensions is not supported")
    shape = Phi3Config(
        hidden_size=hidden,
        intermediate_size=whole("feed_forward_length"),
        num_hidden_layers=whole("block_count"),
        num_attention_heads=heads,
        num_key_value_heads=whole("attention.head_count_kv", heads),
        head_dim=head_dim,
        vocab_size=int(tensors["token_embd.weight"].shape[-1]),
        rms_norm_eps=number("attention.layer_norm_rms_epsilon"),
        rope_theta=number("rope.freq_base", 10000.0),
        partial_rotary_factor=rotary / head_dim,
        original_max_position_embeddings=whole("rope.scaling.original_context_length", context),
        max_position_embeddings=context,
        sliding_window=given.get("attention.sliding_window") or None,  # 0 is how phi-4-mini files say none
        tie_word_embeddings="output.weight" not in tensors,
        bos_token_id=token("bos_token_id"),
        eos_token_ids=() if (eos := token("eos_token_id")) is None else (eos,),
        pad_token_id=token("padding_token_id"),
    )
    if "rope.scaling.attn_factor" in given:
        given["rope.scaling.attn_factor"] = number("rope.scaling.attn_factor")
    factor = number("rope.scaling.factor", 1.0) if given.get("rope.scaling.type") == "linear" else 1.0
    scaling = _rope_scaling(path, shape, given, tensors, factor)
    return shape if scaling is None else Phi3Config(**{**vars(shape), "rope_scaling": scaling})


def _rope_scaling(
    path: Path, config: Phi3Config, given: dict[str, Any], tensors: dict[str, gguf.ReaderTensor], factor: float
) -> RopeScaling | None:
    def factors(name: str) -> tuple[float, ...]:
        return tuple(_short(value) for value in _dequantize(path, tensors[name], tensors[name].data).ravel())

    kind = given.get("rope.scaling.type", "none")
    if kind not in ("none", "linear", "longrope"):
        raise InputError(f"{path}: rope scaling of type {kind!r}; known are none, linear, longrope")
    if "rope_freqs.weight" in tensors:  # llama 3: divisors of the frequencies, at every length
        return RopeScaling(factors("rope_freqs.weight"), factors("rope_freqs.weight"), 1.0, 1.0)
    if given_lists := [name for name in _FACTORS[:2] if name in tensors]:
        if len(given_lists) == 1:
            raise InputError(f"{path} has {given_lists[0]} and not the other list of rope factors; both are needed")
        scaling = RopeScaling(factors("rope_factors_short.weight"), factors("rope_factors_long.weight"))
        derived = Phi3Config(**{**vars(config), "rope_scaling": scaling}).mscales[0]
        mscale = given.get("rope.scaling.attn_factor")
        if mscale is None or abs(mscale - derived) < 1e-6:
            return scaling
        return RopeScaling(scaling.short_factor, scaling.long_factor, mscale, mscale)
    if kind == "longrope":
        raise InputError(f"{path}: rope scaling is longrope and the tensors {', '.join(_FACTORS[:2])} are missing")
    if factor != 1.0:
        return RopeScaling((factor,) * (config.rotary_dim // 2), (factor,) * (config.rotary_dim // 2), 1.0, 1.0)
    return None
