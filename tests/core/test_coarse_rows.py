"""Attention over a 4-bit KV cache: the arithmetic of its rows, and the kernel against the eager operator."""

from functools import cache

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from test_kernels import cut, inputs, lowered, native, opened, rotated, run  # noqa: F401  native: a fixture

from phi3mobile.engines.native import native_library
from phi3mobile.models import ops  # noqa: F401  defines the operators
from phi3mobile.models.coarse_rows import GROUP, LEVELS, RECENT, RING, coarse_values, quantize_coarse, rounded_queries, turn

CAPACITY = 700
needs_library = pytest.mark.skipif(native_library() is None, reason="the native library is not built (make native)")


class Attention(torch.nn.Module):
    """The operator with its KV cache."""

    def __init__(self, heads, kv_heads, width, half, window, capacity=CAPACITY):
        super().__init__()
        self.heads, self.window, self.scale = heads, window, width**-0.5
        shapes = {"cache": (capacity, width // 2), "scale": (width // GROUP, capacity), "ring": (RING, width)}
        kinds = {"cache": torch.uint8, "scale": torch.bfloat16, "ring": torch.int8}
        for name in ("k", "v"):
            for part, shape in shapes.items():
                self.register_buffer(f"{name}_{part}", torch.zeros(1, kv_heads, *shape, dtype=kinds[part]))
            self.register_buffer(f"{name}_ring_scale", torch.zeros(1, kv_heads, RING))
        self.register_buffer("mark", torch.zeros(2, dtype=torch.int64))

    def forward(self, qkv, cos, sin, input_pos):
        parts = ("cache", "scale", "ring", "ring_scale")
        caches = [getattr(self, f"{name}_{part}") for part in parts for name in ("k", "v")]
        rest = (self.mark, input_pos, self.heads, self.window, self.scale)
        return torch.ops.phi3mobile.blocksparse_attention_int4(qkv, cos, sin, *caches, *rest)


@cache
def exported(*shape):
    return lowered(Attention(*shape), shape[:4], CAPACITY)


@cache
def loaded(*shape):
    return opened(exported(*shape))


def fresh(*shape):
    return loaded(*shape).load_method("forward")


def check(shape, window, steps, capacity=CAPACITY):
    """Tokens from position to position + count, call after call; a position may go back."""
    eager, method = Attention(*shape, window, capacity), fresh(*shape, window, capacity)
    for number, (position, count) in enumerate(steps):
        rows = inputs(count, *shape, seed=number)
        want = eager(*rows, torch.tensor([position])).numpy()
        assert np.abs(run(method, rows, position) - want).max() <= 2e-5 * np.abs(want).max()


SHAPES = [(4, 4, 64, 32), (6, 2, 96, 40), (3, 3, 128, 48), (2, 1, 32, 1), (2, 2, 256, 64), (9, 3, 64, 19), (5, 1, 32, 16)]
GROWING = [(0, 1), (1, 2), (3, 140), (143, 1), (144, 300), (444, 1), (445, 33), (478, 1)]


@needs_library
@pytest.mark.parametrize("shape", SHAPES)
def test_kernel_is_the_eager_operator(shape):
    check(shape, 0, GROWING)


@needs_library
@pytest.mark.parametrize("window", [1, 100, 128, 200])
def test_window(window):
    check((6, 2, 64, 32), window, GROWING)


@needs_library
@pytest.mark.parametrize("isa", [b"avx512", b"avx2", b"baseline"])
def test_every_instruction_set(native, isa):  # noqa: F811
    if native.p3m_use_isa(isa):
        pytest.skip(f"this machine has no {isa.decode()}")
    for shape in SHAPES[:4]:
        check(shape, 0, GROWING)


@needs_library
@pytest.mark.parametrize("threads", [1, 2, 5])
def test_threads_and_split_keys(native, threads):  # noqa: F811
    native.p3m_set_threads(threads)
    check((9, 3, 64, 32), 0, [(0, 600), (600, 1), (601, 7), (608, 1)])
    check((9, 3, 64, 32), 300, [(0, 600), (600, 1), (601, 7), (608, 1)])


@needs_library
@settings(max_examples=20, deadline=None)
@given(st.lists(st.tuples(st.integers(1, 300), st.integers(0, 400)), min_size=1, max_size=6))
def test_any_chunking_and_any_way_back(steps):
    position, calls = 0, []
    for count, back in steps:
        position = max(0, position - back)
        calls.append((position, min(count, CAPACITY - position)))
        position = min(CAPACITY - 1, position + count)
    check((6, 2, 64, 24), 0, calls)


@needs_library
def test_result_does_not_depend_on_chunks():
    shape = (6, 2, 64, 32)
    rows, whole = inputs(500, *shape), fresh(*shape, 0, CAPACITY)
    want = run(whole, rows, 0)
    pieces, first = fresh(*shape, 0, CAPACITY), 0
    for count in (1, 199, 7, 256, 37):
        got = run(pieces, cut(rows, first, first + count), first)
        np.testing.assert_allclose(got, want[first : first + count], rtol=0, atol=1e-5)
        first += count
    np.testing.assert_allclose(run(pieces, cut(rows, 372, 500), 372), want[372:], rtol=0, atol=1e-5)  # back by RECENT


def test_recent_keys_are_int8_and_others_of_4_bits():
    """Against attention in float64: as near as int8 within the window, a 4-bit cache's noise beyond it."""

    def noise(count):
        heads, kv_heads, width = 4, 2, 64
        rows = inputs(count, heads, kv_heads, width, 32)
        got = Attention(heads, kv_heads, width, 32, 0)(*rows, torch.tensor([0]))[-1].numpy()
        qkv, cos, sin = (x.double().numpy() for x in rows)
        q, k, v = np.split(qkv.reshape(count, -1, width), [heads, heads + kv_heads], axis=1)
        q, k = rotated(q, cos, sin)[-1], rotated(k, cos, sin)
        weights = np.exp(np.einsum("gjd,tgd->gjt", q.reshape(kv_heads, -1, width), k) * width**-0.5)
        want = np.einsum("gjt,tgd->gjd", weights / weights.sum(-1, keepdims=True), v).ravel()
        return np.square(got - want).sum() / np.square(want).sum()

    assert noise(RECENT) < 3e-3 < 1e-2 < noise(500) < 0.2


def test_turn_is_its_own_inverse_and_keeps_products():
    x, y = torch.randn(2, 5, 96, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(turn(turn(x)), x)
    torch.testing.assert_close((turn(x) * turn(y)).sum(-1), (x * y).sum(-1))
    torch.testing.assert_close(turn(torch.ones(32)), torch.tensor([32.0**0.5] + 31 * [0.0]))


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 1000), st.sampled_from([32, 96, 256]), st.floats(1e-20, 1e20))
def test_rows_come_back_as_their_nearest_levels(seed, width, size):
    x = size * torch.randn(7, width, generator=torch.Generator().manual_seed(seed))
    packed, scales = quantize_coarse(x)
    assert packed.shape == (7, width // 2) and scales.shape == (7, width // GROUP) and scales.dtype == torch.bfloat16
    back, choices = coarse_values(packed, scales), scales.float().repeat_interleave(GROUP, -1)[..., None] * LEVELS
    nearest = (choices - x[..., None]).abs().amin(-1)
    torch.testing.assert_close((back - x).abs(), nearest, rtol=1e-4, atol=1e-6 * size)


def test_zero_and_tiny_rows_come_back_as_zero():
    for value in (0.0, 1e-35):
        packed, scales = quantize_coarse(torch.full((1, 32), value))
        assert coarse_values(packed, scales).abs().max() == 0
    assert rounded_queries(torch.zeros(1, 32)).abs().max() == 0


@needs_library
@pytest.mark.parametrize(("count", "position"), [(1, CAPACITY), (3, CAPACITY - 2), (1, -1), (1, 2**62)])
def test_positions_outside_the_cache_are_errors(count, position, capfd):
    with pytest.raises(RuntimeError):
        run(fresh(6, 2, 64, 32, 0, CAPACITY), inputs(count, 6, 2, 64, 32), position)
    assert f"{count} tokens at position {position} are outside the KV cache of {CAPACITY}" in capfd.readouterr().err


@needs_library
def test_program_updates_the_cache_in_place():
    plan = exported(6, 2, 64, 32, 0, CAPACITY).executorch_program.execution_plan[0]
    assert [(op.name, op.overload) for op in plan.operators] == [("phi3mobile::blocksparse_attention_int4", "out")]
