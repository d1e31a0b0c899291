"""The attention kernels in the ExecuTorch runtime, against float64."""

from functools import cache

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from phi3mobile.engines.native import load_library, native_library
from phi3mobile.models import ops
from phi3mobile.models.rope import apply_rope

pytestmark = pytest.mark.skipif(native_library() is None, reason="the native library is not built (make native)")

CAPACITY = 200


class Attention(torch.nn.Module):
    """The operator with its KV cache."""

    def __init__(self, int8, heads, kv_heads, width, half, window, capacity=CAPACITY):
        super().__init__()
        self.int8, self.heads, self.window, self.scale = int8, heads, window, width**-0.5
        for name in ("k", "v"):
            kind = torch.int8 if int8 else torch.float32
            self.register_buffer(f"{name}_cache", torch.zeros(1, kv_heads, capacity, width, dtype=kind))
            self.register_buffer(f"{name}_scale", torch.zeros(1, kv_heads, capacity))

    def forward(self, qkv, cos, sin, input_pos):
        rest = (input_pos, self.heads, self.window, self.scale)
        if self.int8:
            caches = (self.k_cache, self.v_cache, self.k_scale, self.v_scale)
            return torch.ops.phi3mobile.blocksparse_attention_int8(qkv, cos, sin, *caches, *rest)
        return torch.ops.phi3mobile.blocksparse_attention(qkv, cos, sin, self.k_cache, self.v_cache, *rest)


def inputs(count, heads, kv_heads, width, half, seed=0):
    """qkv [T, (H + 2 Hkv) * D], cos and sin [T, R] of any angles, with an mscale."""
    g = torch.Generator().manual_seed(seed)
    angles = 6.3 * torch.rand(count, half, generator=g)
    return torch.randn(count, (heads + 2 * kv_heads) * width, generator=g), 1.2 * angles.cos(), 1.2 * angles.sin()


def lowered(module, sizes, most):
    """The program of an attention; sizes: of its inputs, of `most` tokens at most."""
    from executorch.exir import to_edge_transform_and_lower

    count = torch.export.Dim("count", min=1, max=most)
    with torch.no_grad():
        args = (*inputs(3, *sizes), torch.tensor([0]))
        program = torch.export.export(module, args, dynamic_shapes=({0: count},) * 3 + (None,), strict=False)
        return to_edge_transform_and_lower(program).to_executorch()


@cache
def exported(int8, heads, kv_heads, width, half, window, capacity=CAPACITY):
    return lowered(Attention(int8, heads, kv_heads, width, half, window, capacity), (heads, kv_heads, width, half), capacity)


def opened(program):
    from executorch.runtime import Runtime

    load_library()  # registers the kernels
    return Runtime.get().load_program(program.buffer)


@cache
def loaded(*shape):
    return opened(exported(*shape))


def fresh(*shape):
    return loaded(*shape).load_method("forward")


def run(method, rows, position):
    return method.execute([*rows, torch.tensor([position])])[0].numpy().copy()


def cut(rows, first, end):
    return [x[first:end].contiguous() for x in rows]


def rotated(x, cos, sin):
    """NeoX halves, written out in x's type: x [T, heads, D], cos and sin [T, R]."""
    y, half = x.copy(), cos.shape[1]
    for i in range(half):
        a, b = x[:, :, i], x[:, :, i + half]
        y[:, :, i] = a * cos[:, i, None] - b * sin[:, i, None]
        y[:, :, i + half] = b * cos[:, i, None] + a * sin[:, i, None]
    return y


def quantized(x):
    """Symmetric int8 per row, by float32 arithmetic, and back in float64."""
    scale = (np.abs(x).max(-1, keepdims=True) / np.float32(127)).astype(np.float32)
    inverse = np.float32(127) / np.abs(x).max(-1, keepdims=True)
    return np.round(x * inverse).astype(np.float64) * scale


def reference(q, keys, values, position, window):
    """Dense causal attention, written out in float64: q [T, H, D], keys and values [end, Hkv, D] -> [T, H * D]."""
    count, heads, width = q.shape
    group = heads // keys.shape[1]
    out = np.zeros((count, heads, width))
    for t in range(count):
        at = position + t
        first = max(0, at - window + 1) if window else 0
        for h in range(heads):
            scores = keys[first : at + 1, h // group] @ q[t, h] * width**-0.5
            weights = np.exp(scores - scores.max())
            out[t, h] = weights @ values[first : at + 1, h // group] / weights.sum()
    return out.reshape(count, heads * width)


def check(int8, heads, kv_heads, width, half, window, steps, start=0, capacity=CAPACITY):
    """Feeds `steps` tokens at a time, each call from position `start` on against the reference over all rows so far."""
    method = fresh(int8, heads, kv_heads, width, half, window, capacity)
    rows = inputs(sum(steps), heads, kv_heads, width, half)
    qkv, cos, sin = (x.numpy() for x in rows)
    q, keys, values = np.split(qkv.reshape(len(qkv), -1, width), [heads, heads + kv_heads], axis=1)
    q = rotated(q.astype(np.float64), cos, sin)
    if int8:  # rotated in float32, as the kernel does: an int8 step more or less would hide other errors
        keys, values = quantized(rotated(keys, cos, sin)), quantized(values)
    else:
        keys, values = rotated(keys.astype(np.float64), cos, sin), values.astype(np.float64)
    position = 0
    for count in steps:
        end = position + count
        got = run(method, cut(rows, position, end), position)
        if position >= start:
            want = reference(q[position:end], keys[:end], values[:end], position, window)
            assert np.abs(got - want).max() <= 1e-5 * np.abs(want).max()
        position = end


SHAPES = [(4, 4, 64, 32), (6, 2, 80, 40), (4, 1, 96, 48), (3, 3, 128, 48), (2, 1, 16, 1), (2, 2, 256, 64), (9, 3, 64, 19)]


@pytest.mark.parametrize("int8", [False, True])
@pytest.mark.parametrize("shape", SHAPES)
def test_matches_float64(int8, shape):
    check(int8, *shape, window=0, steps=[1, 2, 7, 33, 1, 20, 1, 64, 1, 1])


@pytest.mark.parametrize("window", [1, 5, 64, 100])
def test_window(window):
    check(True, 6, 2, 64, 32, window, steps=[33, 1, 40, 2, 1, 70, 1])


@pytest.fixture
def native():
    library = load_library()
    yield library
    library.p3m_set_threads(0)
    library.p3m_use_isa(None)


@pytest.mark.parametrize("threads", [1, 2, 3, 5])
@pytest.mark.parametrize("form", [(True, 0), (False, 0), (True, 700)])
def test_threads_and_split_keys(native, threads, form):
    native.p3m_set_threads(threads)
    assert native.p3m_threads() == threads
    check(form[0], 9, 3, 64, 32, form[1], steps=[1100, 1, 7, 1, 33, 1], start=1100, capacity=1200)


@pytest.mark.parametrize("isa", [b"avx512", b"avx2", b"baseline"])
@pytest.mark.parametrize("int8", [False, True])
def test_every_instruction_set(native, isa, int8):
    if native.p3m_use_isa(isa):
        pytest.skip(f"this machine has no {isa.decode()}")
    for shape in SHAPES[:4]:
        check(int8, *shape, window=0, steps=[1, 7, 33, 1, 64, 2])


def test_unknown_instruction_set(native):
    assert native.p3m_use_isa(b"altivec") == -1


@settings(max_examples=25, deadline=None)
@given(st.lists(st.integers(1, 40), min_size=1, max_size=5), st.sampled_from([(True, 0), (False, 0), (True, 5)]))
def test_any_chunking(steps, form):
    check(form[0], 6, 2, 64, 24, form[1], steps)


@pytest.mark.parametrize("int8", [False, True])
def test_position_may_go_back(int8):
    method = fresh(int8, 6, 2, 64, 32, 0)
    rows = inputs(12, 6, 2, 64, 32)
    first = run(method, rows, 0)
    run(method, inputs(5, 6, 2, 64, 32, seed=1), 7)
    np.testing.assert_allclose(run(method, cut(rows, 7, 12), 7), first[7:], rtol=0, atol=1e-5)


def test_rotates_as_the_model():
    """Two tokens, rotated by the model's own function; the first sees only itself, so its result is its value."""
    rows = inputs(2, 2, 1, 96, 36)
    q, k, v = (x.double() for x in rows[0].view(2, 4, 96).split([2, 1, 1], dim=1))
    q, k = (apply_rope(x[None], *rows[1:])[0] for x in (q, k))
    scores = torch.einsum("hd,td->ht", q[1], k[:, 0]) * 96**-0.5
    want = scores.softmax(-1) @ v[:, 0]
    got = run(fresh(False, 2, 1, 96, 36, 0), rows, 0)
    np.testing.assert_allclose(got[1].reshape(2, 96), want, rtol=0, atol=1e-5)
    np.testing.assert_array_equal(got[0], rows[0][0, 3 * 96 :].repeat(2))


def test_inputs_are_left_alone():
    rows = inputs(33, 6, 2, 64, 32)
    before = [x.clone() for x in rows]
    run(fresh(True, 6, 2, 64, 32, 0), rows, 0)
    for x, y in zip(rows, before, strict=True):
        torch.testing.assert_close(x, y, rtol=0, atol=0)


@pytest.mark.parametrize("int8", [False, True])
@pytest.mark.parametrize(("count", "position"), [(1, CAPACITY), (3, CAPACITY - 2), (1, -1), (CAPACITY, 1), (1, 2**62)])
def test_positions_outside_the_cache_are_errors(int8, count, position, capfd):
    with pytest.raises(RuntimeError):
        run(fresh(int8, 6, 2, 64, 32, 0), inputs(count, 6, 2, 64, 32), position)
    assert f"{count} tokens at position {position} are outside the KV cache of {CAPACITY}" in capfd.readouterr().err


def test_unequal_counts_are_errors(capfd):
    qkv, cos, sin = inputs(3, 6, 2, 64, 32)
    with pytest.raises(RuntimeError):
        run(fresh(True, 6, 2, 64, 32, 0), (qkv, cos[:2].contiguous(), sin), 0)
    assert "shapes or types of qkv, cos, sin, caches and input_pos do not fit 6 heads" in capfd.readouterr().err
    with pytest.raises(ValueError, match=r"\[T, 640\] and \[T, 32\] are expected"):
        Attention(True, 6, 2, 64, 32, 0)(qkv, cos, sin[:2], torch.tensor([0]))


UNSUPPORTED = [(4, 2, 32, 17), (3, 2, 32, 16), (4, 2, 24, 12), (2, 1, 272, 16), (4, 2, 32, 0), (0, 2, 32, 4)]


@pytest.mark.parametrize("shape", UNSUPPORTED)
def test_unsupported_shapes_are_errors(shape, capfd):
    rows = inputs(3, *shape)
    with pytest.raises(ValueError, match="are not supported: heads must be"):
        Attention(False, *shape, 0)(*rows, torch.tensor([0]))
    with pytest.raises(RuntimeError):
        run(fresh(False, *shape, 0), rows, 0)
    assert f"rotated by {shape[3]} angles, are not supported" in capfd.readouterr().err


def test_eager_says_what_is_outside():
    rows, module = inputs(2, 4, 2, 32, 16), Attention(False, 4, 2, 32, 16, 0)
    with pytest.raises(IndexError, match=r"positions 199\.\.200 are outside the KV cache of 200"):
        module(*rows, torch.tensor([199]))
    with pytest.raises(ValueError, match="local_blocks 0"):
        caches = (module.k_cache, module.v_cache, torch.tensor([0]), 4, 0, 1.0)
        torch.ops.phi3mobile.blocksparse_attention(*rows, *caches, block=64)


@pytest.mark.parametrize("int8", [False, True])
def test_kernel_is_the_eager_operator(int8):
    shape = (6, 2, 80, 27)
    eager, method = Attention(int8, *shape, 9), fresh(int8, *shape, 9)
    for count, position in ((40, 0), (1, 40), (6, 41), (33, 47)):
        rows = inputs(count, *shape, seed=position)
        want = eager(*rows, torch.tensor([position])).numpy()
        np.testing.assert_allclose(run(method, rows, position), want, rtol=0, atol=4e-6)


def test_quantization_is_exact_and_half_to_even():
    rows, scale = ops.quantize_rows(torch.tensor([[127.0, 0.5, 1.5, -2.5], [0, 0, 0, 0], [-254, 1, 2, 3]]))
    assert rows.tolist() == [[127, 0, 2, -2], [0, 0, 0, 0], [-127, 0, 1, 2]]
    assert scale.tolist() == [1, 0, 2]


@pytest.mark.parametrize("int8", [False, True])
def test_program_updates_the_cache_in_place(int8):
    plan = exported(int8, 6, 2, 64, 32, 0).executorch_program.execution_plan[0]
    name = "phi3mobile::blocksparse_attention" + ("_int8" if int8 else "")
    assert [(op.name, op.overload) for op in plan.operators] == [(name, "out")]  # so no copy of the cache
    assert len(plan.chains[0].instructions) == 1


def test_out_overload_and_fake():
    module = Attention(False, 4, 2, 32, 12, 0)
    args = (*inputs(3, 4, 2, 32, 12), module.k_cache, module.v_cache, torch.tensor([0]), 4, 0, 0.5)
    out = torch.empty(3, 128)
    torch.ops.phi3mobile.blocksparse_attention.out(*args, out=out)
    torch.testing.assert_close(out, torch.ops.phi3mobile.blocksparse_attention(*args))
    torch.library.opcheck(torch.ops.phi3mobile.blocksparse_attention.default, args, test_utils="test_faketensor")
