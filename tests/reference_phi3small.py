"""phi-3-small written down from its formulas in float64 numpy, token by token where it matters: no torch, no cache.

Source: modeling_phi3_small.py, positional_embedding.py and triton_flash_blocksparse_attn.py of
microsoft/Phi-3-small-8k-instruct. It reads a checkpoint's own config.json values and tensors, not our config class.
"""

from __future__ import annotations

import math

import numpy as np

LEAST = np.float64(np.finfo(np.float32).min)


def layer_norm(x, weight, bias, eps):
    mean = x.mean(-1, keepdims=True)
    variance = ((x - mean) ** 2).mean(-1, keepdims=True)
    return (x - mean) / np.sqrt(variance + eps) * weight + bias


def gegelu(u, limit):
    g, linear = u[:, 0::2], u[:, 1::2]
    g, linear = np.minimum(g, limit), np.clip(linear, -limit, limit)
    return g / (1 + np.exp(-1.702 * g)) * (linear + 1)


def angles(hf, count, long):
    """cos and sin [count, D / 2] of positions 0.."""
    dim = hf["hidden_size"] // hf["num_attention_heads"]
    scaling, factors, mscale = hf["rope_scaling"], np.ones(dim // 2), 1.0
    if scaling:
        original = scaling["original_max_position_embeddings"]
        regime = "long" if long or count > original else "short"
        factors, ratio = np.array(scaling[f"{regime}_factor"]), hf["max_position_embeddings"] / original
        mscale = math.sqrt(1 + math.log(ratio) / math.log(original)) if ratio > 1 else 1.0
        mscale = scaling.get(f"{regime}_mscale", mscale)
    frequencies = 1 / (factors * float(hf["rope_embedding_base"]) ** (np.arange(0, dim, 2) / dim))
    turned = np.arange(count)[:, None] * frequencies
    return np.cos(turned) * mscale, np.sin(turned) * mscale


def rotate(x, cos, sin):
    """x [T, D]: dimension i and i + D / 2 are one pair."""
    half = x.shape[1] // 2
    first, second = x[:, :half], x[:, half:]
    return np.concatenate([first * cos - second * sin, second * cos + first * sin], 1)


def sees(hf, layer, head, q, k):
    """Whether query position q of this head sees key position k."""
    if k > q:
        return False
    every = hf["dense_attention_every_n_layers"]
    if every and (layer + 1) % every == 0:
        return True
    block, stride = hf["blocksparse_block_size"], hf["blocksparse_vert_stride"]
    step = max(1, int(stride / hf["num_attention_heads"]))
    shift = 0 if hf["blocksparse_homo_head_pattern"] else head * step
    near = q // block - k // block < hf["blocksparse_num_local_blocks"]
    return near or (k // block + shift + 1) % stride == 0


def logits(hf: dict, tensors: dict[str, np.ndarray], tokens: list[int], long: bool = False) -> np.ndarray:
    """float64 [T, V] of a whole sequence. `hf`: config.json; `tensors`: HF names -> arrays."""
    weights = {name: np.asarray(value, np.float64) for name, value in tensors.items()}
    heads, kv_heads = hf["num_attention_heads"], hf["num_key_value_heads"]
    dim, group, count = hf["hidden_size"] // heads, heads // kv_heads, len(tokens)
    scale = hf["mup_attn_multiplier"] / dim if hf["mup_use_scaling"] else 1 / math.sqrt(dim)
    cos, sin = angles(hf, count, long)

    def linear(x, name):
        return x @ weights[name + ".weight"].T + weights[name + ".bias"]

    def norm(x, name):
        return layer_norm(x, weights[name + ".weight"], weights[name + ".bias"], hf["layer_norm_epsilon"])

    x = weights["model.embed_tokens.weight"][tokens] * hf["mup_embedding_multiplier"]
    for layer in range(hf["num_hidden_layers"]):
        base = f"model.layers.{layer}."
        fused = linear(norm(x, base + "input_layernorm"), base + "self_attn.query_key_value")
        attended = np.empty((count, heads * dim))
        for head in range(heads):
            start = (head // group) * (group + 2) * dim  # of this KV head's [q .. q | k | v]
            q = fused[:, start + (head % group) * dim :][:, :dim]
            k, v = fused[:, start + group * dim :][:, :dim], fused[:, start + (group + 1) * dim :][:, :dim]
            scores = rotate(q, cos, sin) @ rotate(k, cos, sin).T * scale
            for i in range(count):
                keys = [j for j in range(i + 1) if sees(hf, layer, head, i, j)]
                weight = np.exp(scores[i, keys] - scores[i, keys].max())
                attended[i, head * dim : (head + 1) * dim] = weight / weight.sum() @ v[keys]
        x = x + linear(attended, base + "self_attn.dense")
        inner = linear(norm(x, base + "post_attention_layernorm"), base + "mlp.up_proj")
        x = x + linear(gegelu(inner, hf["gegelu_limit"]), base + "mlp.down_proj")
    head_name = "model.embed_tokens.weight" if hf["tie_word_embeddings"] else "lm_head.weight"
    out = norm(x, "model.final_layernorm") @ weights[head_name].T / hf["mup_width_multiplier"]
    out[:, hf["dummy_token_indices"]] = LEAST
    return out
