"""The attention kernels in the ExecuTorch runtime, against float64."""

from functools import cache

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from phi3mobile.engines.native import load_library, native_library
from phi3mobile.models import ops

pytestmark = pytest.mark.skipif(native_library() is None, reason="the native library is not built (make native)")

CAPACITY = 200


class Attention(torch.nn.Module):
    """The operator with its KV cache."""

    def __init__(self, int8, heads, kv_heads, width, window, capacity=CAPACITY):
        super().__init__()
        self.int8, self.window, self.scale = int8, window, width**-0.5
        for name in ("k", "v"):
            kind = torch.int8 if int8 else torch.float32
            self.register_buffer(f"{name}_cache", torch.zeros(1, kv_heads, capacity, width, dtype=kind))
            self.register_buffer(f"{name}_scale", torch.zeros(1, kv_heads, capacity))

    def forward(self, q, k, v, input_pos):
        if self.int8:
            caches = (self.k_cache, self.v_cache, self.k_scale, self.v_scale)
            return torch.ops.phi3mobile.blocksparse_attention_int8(q, k, v, *caches, input_pos, self.window, self.scale)
        caches = (self.k_cache, self.v_cache)
        return torch.ops.phi3mobile.blocksparse_attention(q, k, v, *caches, input_pos, self.window, self.scale)


def inputs(count, heads, kv_heads, width, seed=0):
    g = torch.Generator().manual_seed(seed)
    return [torch.randn(1, count, h, width, generator=g) for h in (heads, kv_heads, kv_heads)]


@cache
def exported(int8, heads, kv_heads, width, window, capacity=CAPACITY):
    from executorch.exir import to_edge_transform_and_lower

    count = torch.export.Dim("count", min=1, max=capacity)
    shapes = ({1: count}, {1: count}, {1: count}, None)
    with torch.no_grad():
        module = Attention(int8, heads, kv_heads, width, window, capacity)
        args = (*inputs(3, heads, kv_heads, width), torch.tensor([0]))
        program = torch.export.export(module, args, dynamic_shapes=shapes, strict=False)
        return to_edge_transform_and_lower(program).to_executorch()


@cache
def loaded(*shape):
    from executorch.runtime import Runtime

    load_library()  # registers the kernels
    return Runtime.get().load_program(exported(*shape).buffer)


def fresh(*shape):
    return loaded(*shape).load_method("forward")


def run(method, q, k, v, position):
    return method.execute([q, k, v, torch.tensor([position])])[0].numpy().copy()


def quantized(x):
    """Symmetric int8 per row and back, in float64; the scale is a float32."""
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
            scores = keys[first : at + 1, h // group] @ q[t, h].astype(np.float64) * width**-0.5
            weights = np.exp(scores - scores.max())
            out[t, h] = weights @ values[first : at + 1, h // group] / weights.sum()
    return out.reshape(count, heads * width)


def check(int8, heads, kv_heads, width, window, steps, start=0, capacity=CAPACITY):
    """Feeds `steps` tokens at a time, each call from position `start` on against the reference over all rows so far."""
    method = fresh(int8, heads, kv_heads, width, window, capacity)
    q, k, v = inputs(sum(steps), heads, kv_heads, width)
    store = quantized if int8 else lambda x: x.astype(np.float64)
    keys, values = store(k[0].numpy()), store(v[0].numpy())
    position = 0
    for count in steps:
        rows = slice(position, position + count)
        got = run(method, q[:, rows].contiguous(), k[:, rows].contiguous(), v[:, rows].contiguous(), position)[0]
        if position < start:
            position += count
            continue
        want = reference(q[0, rows].numpy(), keys[: rows.stop], values[: rows.stop], position, window)
        assert np.abs(got - want).max() <= (1e-4 if int8 else 1e-5) * np.abs(want).max()
        position += count


@pytest.mark.parametrize("int8", [False, True])
@pytest.mark.parametrize("shape", [(4, 4, 64), (6, 2, 80), (4, 1, 96), (3, 3, 128), (2, 1, 16), (2, 2, 256)])
def test_matches_float64(int8, shape):
    check(int8, *shape, window=0, steps=[1, 2, 7, 33, 1, 20, 1, 64, 1, 1])


@pytest.mark.parametrize("window", [1, 5, 64, 100])
def test_window(window):
    check(True, 6, 2, 64, window, steps=[33, 1, 40, 2, 1, 70, 1])


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
    check(form[0], 9, 3, 64, form[1], steps=[1100, 1, 7, 1, 33, 1], start=1100, capacity=1200)


@pytest.mark.parametrize("isa", [b"avx512", b"avx2", b"baseline"])
@pytest.mark.parametrize("int8", [False, True])
def test_every_instruction_set(native, isa, int8):
    if native.p3m_use_isa(isa):
        pytest.skip(f"this machine has no {isa.decode()}")
    for shape in ((4, 4, 64), (6, 2, 80), (4, 1, 96), (3, 3, 128)):
        check(int8, *shape, window=0, steps=[1, 7, 33, 1, 64, 2])


def test_unknown_instruction_set(native):
    assert native.p3m_use_isa(b"altivec") == -1


@settings(max_examples=25, deadline=None)
@given(st.lists(st.integers(1, 40), min_size=1, max_size=5), st.sampled_from([(True, 0), (False, 0), (True, 5)]))
def test_any_chunking(steps, form):
    check(form[0], 6, 2, 64, form[1], steps)


@pytest.mark.parametrize("int8", [False, True])
def test_position_may_go_back(int8):
    method = fresh(int8, 6, 2, 64, 0)
    q, k, v = inputs(12, 6, 2, 64)
    first = run(method, q, k, v, 0)
    run(method, *inputs(5, 6, 2, 64, seed=1), 7)
    again = run(method, q[:, 7:].contiguous(), k[:, 7:].contiguous(), v[:, 7:].contiguous(), 7)
    np.testing.assert_allclose(again[0], first[0, 7:], rtol=0, atol=1e-5)


@pytest.mark.parametrize("int8", [False, True])
@pytest.mark.parametrize(("count", "position"), [(1, CAPACITY), (3, CAPACITY - 2), (1, -1), (CAPACITY, 1), (1, 2**62)])
def test_positions_outside_the_cache_are_errors(int8, count, position):
    with pytest.raises(RuntimeError):
        run(fresh(int8, 6, 2, 64, 0), *inputs(count, 6, 2, 64), position)


def test_eager_says_what_is_outside():
    module = Attention(False, 4, 2, 32, 0)
    with pytest.raises(IndexError, match=r"positions 199\.\.200 are outside the KV cache of 200"):
        module(*inputs(2, 4, 2, 32), torch.tensor([199]))
    with pytest.raises(NotImplementedError, match="block must be 0"):
        caches = (module.k_cache, module.v_cache, torch.tensor([0]), 0, 1.0)
        torch.ops.phi3mobile.blocksparse_attention(*inputs(2, 4, 2, 32), *caches, block=64)


@pytest.mark.parametrize("int8", [False, True])
def test_kernel_is_the_eager_operator(int8):
    eager = Attention(int8, 6, 2, 80, 9)
    method = fresh(int8, 6, 2, 80, 9)
    for count, position in ((40, 0), (1, 40), (6, 41)):
        x = inputs(count, 6, 2, 80, seed=position)
        want = eager(*x, torch.tensor([position])).numpy()
        np.testing.assert_allclose(run(method, *x, position), want, rtol=0, atol=2e-6)


def test_quantization_is_exact_and_half_to_even():
    rows, scale = ops.quantize_rows(torch.tensor([[127.0, 0.5, 1.5, -2.5], [0, 0, 0, 0], [-254, 1, 2, 3]]))
    assert rows.tolist() == [[127, 0, 2, -2], [0, 0, 0, 0], [-127, 0, 1, 2]]
    assert scale.tolist() == [1, 0, 2]


@pytest.mark.parametrize("int8", [False, True])
def test_program_updates_the_cache_in_place(int8):
    plan = exported(int8, 6, 2, 64, 0).executorch_program.execution_plan[0]
    name = "phi3mobile::blocksparse_attention" + ("_int8" if int8 else "")
    assert [(op.name, op.overload) for op in plan.operators] == [(name, "out")]  # so no copy of the cache
    assert len(plan.chains[0].instructions) == 1


def test_out_overload_and_fake():
    module = Attention(False, 4, 2, 32, 0)
    q, k, v = inputs(3, 4, 2, 32)
    args = (q, k, v, module.k_cache, module.v_cache, torch.tensor([0]), 0, 0.5)
    out = torch.empty(1, 3, 128)
    torch.ops.phi3mobile.blocksparse_attention.out(*args, out=out)
    torch.testing.assert_close(out, torch.ops.phi3mobile.blocksparse_attention(*args))
    torch.library.opcheck(torch.ops.phi3mobile.blocksparse_attention.default, args, test_utils="test_faketensor")
