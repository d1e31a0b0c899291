"""A program of int8 activations against torch, layer by layer: both compute each layer from what the program put into it.

Whole models can't be compared so. Int8 rounds a value at the edge between two integers the one way or the other, layers
amplify that, and 30 of them turn a difference of 1e-7 into one of 37 dB. From equal inputs a right layer gives torch's result
to float32's last digits (over 100 dB), but for tokens with a value at an edge (30 to 60 dB), and those that attend to one.
So three of four tokens must be as exact as the gate, in the best of several sequences, and none worse than the floor.

Layer after layer is loaded, so a 3.8B model takes no more memory than one layer and the hidden states.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace

import numpy as np
import torch

from phi3mobile.engines.base import BaseEngine, Engine
from phi3mobile.export.forwards import stages
from phi3mobile.export.layer_result import Layers
from phi3mobile.export.packed import EMBEDDING, HEAD, PackedModel, packed_layer
from phi3mobile.export.solve.stream import load_norm
from phi3mobile.models.attend import attend
from phi3mobile.models.coarse_rows import CoarseCache, int8_values
from phi3mobile.models.quantized import QuantizedEmbedding, QuantizedLinear
from phi3mobile.models.rope import rope_rows, rope_tables

STARTS = 3  # of a prompt: from its first, second, third token on, because all attend to the first one
_MOVED = 1e-3  # by how much of itself a mixture's input is moved, to see which tokens are about to change experts:
_SETTLED = 1e-3  # those whose result then moves by more than this much noise over signal


@dataclass(frozen=True)
class LayerCheck:
    """One comparison that `verify` makes: a copy of the program that tells its hidden states, against torch's layers."""

    name: str
    packed: PackedModel
    tapped: Callable[[], AbstractContextManager[BaseEngine]]
    open: Callable[[], Engine]  # the bundle's own engine: the copy must give its logits, bit for bit
    kv_bits: int = 32


@dataclass
class Forward:
    """What the program made of some tokens."""

    stage: str
    sequence: int
    tokens: list[int]
    position: int
    long: list[bool]  # of each token: whether it got LongRoPE's long factors
    hidden: list[torch.Tensor]  # [1, T, hidden]: what goes into each layer
    logits: torch.Tensor  # [1, T, V]

    @property
    def end(self) -> int:
        return self.position + len(self.tokens)


@torch.no_grad()
def compare_layers(check: LayerCheck, prompts: list[list[int]]) -> Layers:
    """Run the program, then torch's layers one after the other over what it had."""
    packed, config = check.packed, check.packed.config
    count = config.num_hidden_layers
    names = ["embedding", *(f"layer {index}" for index in range(count - 1)), "logits"]  # these are of the last layer
    result = Layers(check.name, names)
    threads = torch.get_num_threads()
    forwards, context = _program(check, prompts, result)
    torch.set_num_threads(threads)  # ExecuTorch's engine leaves it one
    embed = QuantizedEmbedding(packed.matrix(EMBEDDING))
    for forward in forwards:
        rows = embed(torch.tensor([forward.tokens])) * config.embedding_multiplier
        result.add(forward.stage, forward.sequence, "embedding", _noise(rows, forward.hidden[0]))
    for index, name in enumerate(names[1:]):
        half = _Layer(packed, index, context, check.kv_bits)
        for forward in forwards:
            expected, found = half.expected(forward), half.found(forward)
            noise = _noise(expected, found)
            if config.block(index).routing is not None:
                settled = [value < _SETTLED for value in _noise(expected, half.expected(forward, moved=True))]
                half.expected(forward)  # its rows of the cache again
                result.undecided += len(settled) - sum(settled)
                noise = [value for value, is_settled in zip(noise, settled, strict=True) if is_settled]
            result.add(forward.stage, forward.sequence, name, noise)
            if index == count - 1:
                result.add_ids(forward.stage, forward.sequence, (found - expected)[0].numpy(), expected[0].numpy())
                result.agreed += int((expected.argmax(-1) == found.argmax(-1)).sum())
                result.positions += len(forward.tokens)
                if not half.masked(forward):
                    result.difference = "an id that is never said would be"
    return result


def _program(check: LayerCheck, prompts: list[list[int]], result: Layers) -> tuple[list[Forward], int]:
    """All forwards of the copy, and the positions there are; then the same ones of the bundle's own program."""
    done: list[Forward] = []
    hidden: dict[str, torch.Tensor] = {}
    count = check.packed.config.num_hidden_layers
    with check.tapped() as engine:
        engine.trace = lambda name, kind, outputs: hidden.update({name: torch.from_numpy(outputs[name])})
        sequences = [(prompt[start:], start == 0) for prompt in prompts for start in range(min(STARTS, len(prompt)))]
        for number, (sequence, crosses) in enumerate(sequences):
            for stage, forwards in stages(engine.info, sequence, crosses):
                following: list[int] = []
                for tokens, position, long in forwards(following):
                    logits = engine.forward(np.array(tokens), position, long)
                    inputs = [hidden[f"layer_{index}"] for index in range(-1, count - 1)]
                    is_long = engine._is_long(position + len(tokens), long)
                    own = Forward(
                        stage, number, tokens, position, [is_long] * len(tokens), inputs, torch.from_numpy(logits)[None]
                    )
                    done.append(own)
                    following.append(int(logits[-1].argmax()))
        context = engine.info.max_context
    shipped = check.open()
    try:
        for forward in done:
            logits = shipped.forward(np.array(forward.tokens), forward.position, forward.long[0])
            if not np.array_equal(logits, forward.logits[0].numpy(), equal_nan=True):
                result.difference = "the copy that tells its hidden states computes other logits than the bundle's program"
    finally:
        shipped.close()
    return _merged(done, engine.info.max_chunk), context


def _merged(forwards: list[Forward], most: int) -> list[Forward]:
    """Forwards that go on where the one before ended are one for torch, which knows all inputs: fewer calls."""
    found: list[Forward] = []
    for forward in forwards:
        last = found[-1] if found else None
        whole = last is not None and (last.stage, last.sequence, last.end) == (
            forward.stage,
            forward.sequence,
            forward.position,
        )
        if last is None or not whole or last.end - last.position + len(forward.tokens) > most:
            found.append(forward)
            continue
        found[-1] = replace(
            last,
            tokens=last.tokens + forward.tokens,
            long=last.long + forward.long,
            hidden=[torch.cat(pair, 1) for pair in zip(last.hidden, forward.hidden, strict=True)],
            logits=torch.cat([last.logits, forward.logits], 1),
        )
    return found


class _Layer:
    """One layer of torch's and its KV cache; behind the last one the head. Forwards are run in their order."""

    def __init__(self, packed: PackedModel, index: int, context: int, kv_bits: int) -> None:
        self.config, self.index, self.layer, self.bits = packed.config, index, packed_layer(packed, index), kv_bits
        self.context, tables = context, rope_tables(packed.config, context)
        self.cos, self.sin = tables
        shape = (1, context, packed.config.num_key_value_heads, packed.config.head_dim)
        self.keys, self.values = torch.zeros(shape), torch.zeros(shape)
        self.coarse = CoarseCache(*shape[1:]) if kv_bits == 4 else None
        self.said = torch.ones(packed.config.vocab_size, dtype=torch.bool)
        self.said[list(packed.config.masked_ids)] = False
        self.norm = self.head = None
        if index == packed.config.num_hidden_layers - 1:
            self.norm = load_norm(packed.config, packed.vector)
            self.head = QuantizedLinear(packed.matrix(HEAD), packed.recipe.activation_group)

    def expected(self, forward: Forward, moved: bool = False) -> torch.Tensor:
        """What the layer adds, or the logits of the ids that are said. moved: with an input a little off."""
        x = forward.hidden[self.index]
        if moved:
            x = x * (1 + _MOVED * torch.randn(x.shape, generator=torch.Generator().manual_seed(0)))
        y = self._run(x, forward)
        if self.norm is None or self.head is None:
            return y - x
        return (self.head(self.norm(y)) / self.config.logit_divisor)[..., self.said]

    def found(self, forward: Forward) -> torch.Tensor:
        """The same of the program."""
        if self.head is not None:
            return forward.logits[..., self.said]
        return forward.hidden[self.index + 1] - forward.hidden[self.index]

    def masked(self, forward: Forward) -> bool:
        """Whether no id that is never said is the likeliest."""
        best = forward.logits[..., self.said].amax(-1)
        return bool(self.said.all()) or bool((forward.logits[..., ~self.said].amax(-1) < best).all())

    def _run(self, x: torch.Tensor, forward: Forward) -> torch.Tensor:
        config, start, end = self.config, forward.position, forward.end
        rows = rope_rows(config, self.context, torch.arange(start, end), torch.tensor(forward.long))
        q, k, v = self.layer.attention_inputs(x, self.cos[rows], self.sin[rows])
        block = config.block(self.index)
        if self.coarse is not None:
            attended = self.coarse.attend(q[0], k[0], v[0], start, block.window or 0, config.attention_scale)
            return self.layer.attention_output(x, attended[None])
        self.keys[:, start:end], self.values[:, start:end] = (k, v) if self.bits == 32 else (int8_values(k), int8_values(v))
        attended = attend(q, self.keys, self.values, start, config.attention_scale, block.window, block.pattern)
        return self.layer.attention_output(x, attended)


def _noise(expected: torch.Tensor, found: torch.Tensor) -> list[float]:
    """Of each token [1, T, D], noise over signal; infinite where something is not finite."""
    noise, signal = (found - expected).square().sum(-1).flatten(), expected.square().sum(-1).flatten()
    ratio = torch.where(noise == 0, noise, noise / signal.clamp(min=torch.finfo(torch.float32).tiny))
    return torch.where(ratio.isfinite(), ratio, torch.inf).tolist()
