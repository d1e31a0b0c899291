"""Recipe ios-ane (experimental): the decoder as Neural Engine compilers like it, in several packages.

Static shapes of rank 4, [1, channels, 1, T]; linears as 1x1 convolutions with one scale per channel, none wider than 16,384;
attention head by head; a KV cache that is only read: its rows go in, the new rows come out, and the host puts them in place.
Mask and RoPE rows are inputs too: gathers would leave the engine. Packages of at most 1 GB each hold some layers.

    part 0 takes tokens int32 [1, T], the others x float16 [1, hidden, 1, T]; the last gives logits_<i> float16 [1, n, 1, T],
    parts of the vocabulary in order, the others give x
    mask float16 [1, 1, S + T, T], 0 where seen; cos and sin float16 [1, 1, R, T]
    per layer: k_cache_<i>, v_cache_<i> float16 [1, Hkv, D, S] in, k_new_<i>, v_new_<i> float16 [1, Hkv, D, T] out
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from coremltools.converters.mil.mil import Builder as mb
from coremltools.converters.mil.mil import Function, Var, types

from phi3mobile.export.packed import HEAD, PackedModel
from phi3mobile.export.targets.coreml import blocks
from phi3mobile.export.targets.coreml.layers import embedded
from phi3mobile.export.targets.coreml.matrices import Matrices, part_rows
from phi3mobile.export.targets.coreml.package import TARGET, Weights
from phi3mobile.models.config import DecoderConfig
from phi3mobile.models.tensors import ATTENTION_NORM, DOWN, FINAL_NORM, GATE_UP, MLP_NORM, QKV, O, Tensor

WIDEST = 16384  # channels that the engine takes
PART_BYTES = 1_000_000_000  # of weights in one package
PREFILL = 64


@dataclass(frozen=True)
class Part:
    """The layers [first, last) of one package; the first part embeds, the last has the head."""

    first: int
    last: int


def parts(packed: PackedModel, limit: int = PART_BYTES) -> list[Part]:
    """As few packages as the limit allows, in order. A single layer or head over the limit is a package all the same."""
    config, names = packed.config, packed.checkpoint.names()
    layers = [
        sum(_bytes(packed, name) for name in names if name.startswith(f"model.layers.{layer}."))
        for layer in range(config.num_hidden_layers)
    ]
    layers[0] += _bytes(packed, "model.embed_tokens.weight")
    layers[-1] += _bytes(packed, HEAD)
    found, first, size = [], 0, 0
    for layer, own in enumerate(layers):
        if size and size + own > limit:
            found.append(Part(first, layer))
            first, size = layer, 0
        size += own
    return [*found, Part(first, len(layers))]


def _bytes(packed: PackedModel, name: str) -> int:
    rows, *columns = packed.shape(name)
    form = packed.form_of(name)
    return rows * 2 if form is None else rows * columns[0] * form.bits // 8 + rows * 2


def build(packed: PackedModel, part: Part, rows: int, lengths: dict[str, int], weights: Weights) -> dict[str, Function]:
    """The functions of one package, for a cache of `rows`."""
    matrices = Matrices(packed, weights)
    return {name: _function(packed.config, matrices, part, rows, length) for name, length in lengths.items()}


def head_parts(config: DecoderConfig) -> list[slice]:
    """The rows of the head, in equal parts that the engine takes."""
    count = -(-config.vocab_size // WIDEST)
    size = -(-config.vocab_size // count)
    return [slice(start, min(start + size, config.vocab_size)) for start in range(0, config.vocab_size, size)]


def _function(config: DecoderConfig, matrices: Matrices, part: Part, rows: int, length: int) -> Function:
    mb.name_count.clear()
    half, cache = types.fp16, (1, config.num_key_value_heads, config.head_dim, rows)
    whole = part.first == 0
    inputs = (
        {"tokens": mb.placeholder(shape=(1, length), dtype=types.int32)}
        if whole
        else {"x": mb.placeholder(shape=(1, config.hidden_size, 1, length), dtype=half)}
    )
    inputs["mask"] = mb.placeholder(shape=(1, 1, rows + length, length), dtype=half)
    for name in ("cos", "sin"):
        inputs[name] = mb.placeholder(shape=(1, 1, config.rotary_dim // 2, length), dtype=half)
    for layer in range(part.first, part.last):
        for name in (f"k_cache_{layer}", f"v_cache_{layer}"):
            inputs[name] = mb.placeholder(shape=cache, dtype=half)
    with Function(inputs, opset_version=TARGET) as function:
        given, outputs = function.inputs, []
        x = _embed(matrices, given["tokens"]) if whole else given["x"]
        for layer in range(part.first, part.last):
            x, new = _layer(config, matrices, x, layer, given)
            outputs += new
        if part.last == config.num_hidden_layers:
            x = _norm(config, matrices, x, config.tensor(FINAL_NORM))
            slices = head_parts(config)
            outputs += [_conv(matrices, x, HEAD, piece, f"logits_{index}") for index, piece in enumerate(slices)]
        else:
            outputs.append(mb.identity(x=x, name="x_out"))
        function.set_outputs(outputs)
    return function


def _embed(matrices: Matrices, tokens: Var) -> Var:
    rows = embedded(matrices, tokens)
    return mb.expand_dims(x=mb.transpose(x=rows, perm=[0, 2, 1]), axes=[2])


def _layer(config: DecoderConfig, matrices: Matrices, x: Var, layer: int, given: dict[str, Var]) -> tuple[Var, list[Var]]:
    """The layer's output, and its new rows of K and V."""
    heads, kv_heads, dim = config.num_attention_heads, config.num_key_value_heads, config.head_dim
    length, qkv = x.shape[3], config.tensor(QKV, layer)
    normed = _norm(config, matrices, x, config.tensor(ATTENTION_NORM, layer))
    q, k, v = (
        mb.reshape(x=_conv(matrices, normed, qkv.name, part_rows(qkv, part)), shape=[1, count, dim, length])
        for part, count in (("q", heads), ("k", kv_heads), ("v", kv_heads))
    )
    q = mb.mul(x=_rope(q, given["cos"], given["sin"]), y=np.float16(config.attention_scale))
    k = mb.identity(x=_rope(k, given["cos"], given["sin"]), name=f"k_new_{layer}")
    v = mb.identity(x=v, name=f"v_new_{layer}")
    keys, values = (mb.concat(values=[given[f"{name}_cache_{layer}"], new], axis=3) for name, new in (("k", k), ("v", v)))
    attended = _attend(q, keys, values, given["mask"])
    x = mb.add(x=x, y=_conv(matrices, attended, config.tensor(O, layer).name))
    normed, both = _norm(config, matrices, x, config.tensor(MLP_NORM, layer)), config.tensor(GATE_UP, layer)
    gate, up = (_conv(matrices, normed, both.name, part_rows(both, part)) for part in ("gate", "up"))
    down = _conv(matrices, mb.mul(x=mb.silu(x=gate), y=up), config.tensor(DOWN, layer).name)
    return mb.add(x=x, y=down, name=f"layer_{layer}"), [k, v]


def _attend(q: Var, keys: Var, values: Var, mask: Var) -> Var:
    """q [1, H, D, T], keys and values [1, Hkv, D, S + T] -> [1, H * D, 1, T], head by head."""
    _, heads, dim, length = q.shape
    group, results = heads // keys.shape[1], []
    split = lambda x: [x] if x.shape[1] == 1 else mb.split(x=x, num_splits=x.shape[1], axis=1)  # noqa: E731
    keys, values = split(keys), split(values)
    for head, query in enumerate(split(q)):
        scores = mb.add(x=mb.matmul(x=keys[head // group], y=query, transpose_x=True), y=mask)
        results.append(mb.matmul(x=values[head // group], y=mb.softmax(x=scores, axis=2)))
    attended = mb.concat(values=results, axis=1) if heads > 1 else results[0]
    return mb.reshape(x=attended, shape=[1, heads * dim, 1, length])


def _rope(x: Var, cos: Var, sin: Var) -> Var:
    """[1, H, D, T] by [1, 1, R, T]."""
    half, width = cos.shape[2], x.shape[2]
    sizes = [half, half] + [width - 2 * half] * (width > 2 * half)
    first, second, *rest = mb.split(x=x, split_sizes=sizes, axis=2)
    turned = [
        mb.sub(x=mb.mul(x=first, y=cos), y=mb.mul(x=second, y=sin)),
        mb.add(x=mb.mul(x=second, y=cos), y=mb.mul(x=first, y=sin)),
    ]
    return mb.concat(values=[*turned, *rest], axis=2)


def _norm(config: DecoderConfig, matrices: Matrices, x: Var, tensor: Tensor) -> Var:
    weight = matrices.vector(tensor.name, (1, -1, 1, 1))
    return blocks.rms_norm(x, weight, config.rms_norm_eps, axis=1)


def _conv(matrices: Matrices, x: Var, tensor: str, rows: slice = slice(None), name: str | None = None) -> Var:
    """[1, K, 1, T] -> [1, N, 1, T]."""
    weight = matrices.matrix(tensor, rows, trailing=2)
    return mb.conv(x=x, weight=weight, pad_type="valid", **({} if name is None else {"name": name}))
