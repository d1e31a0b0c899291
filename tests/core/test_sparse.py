"""Block-sparse attention: eager operators and kernels against the formula in float64, full and evicting caches."""

import json
import os
import subprocess
import sys
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from test_kernels import Attention, cut, inputs, quantized, rotated

from phi3mobile.engines.native import load_library, native_library
from phi3mobile.models.blocksparse import EvictingCache, Pattern, evicting_cache

needs_kernels = pytest.mark.skipif(native_library() is None, reason="the native library is not built (make native)")
SMALL = Pattern(heads=32, kv_heads=8, block=64, local_blocks=16, stride=8, head_step=1)  # phi-3-small


def reference(q, keys, values, position, pattern: Pattern, scale):
    """The formula, written out in float64: q [T, H, D], keys and values [end, Hkv, D] -> [T, H * D]."""
    count, heads, width = q.shape
    out = np.zeros((count, heads, width))
    for t in range(count):
        at = position + t
        key_block = np.arange(at + 1) // pattern.block
        near = at // pattern.block - key_block < pattern.local_blocks
        for h in range(heads):
            seen = near | ((key_block + h * pattern.head_step + 1) % pattern.stride == 0)
            g = h * keys.shape[1] // heads
            scores = keys[: at + 1][seen, g] @ q[t, h] * scale
            weights = np.exp(scores - scores.max())
            out[t, h] = weights @ values[: at + 1][seen, g] / weights.sum()
    return out.reshape(count, heads * width)


class Sparse(torch.nn.Module):
    """The operator with its KV cache: full of `shape` positions, or an EvictingCache."""

    def __init__(self, pattern: Pattern, width: int, int8: bool, shape: int | EvictingCache) -> None:
        super().__init__()
        self.pattern, self.int8, self.shape, self.scale = pattern, int8, shape, 1 / width
        rows = shape if isinstance(shape, int) else shape.rows
        for name in ("k", "v"):
            kind = torch.int8 if int8 else torch.float32
            self.register_buffer(f"{name}_cache", torch.zeros(1, pattern.kv_heads, rows, width, dtype=kind))
            self.register_buffer(f"{name}_scale", torch.zeros(1, pattern.kv_heads, rows))
        self.register_buffer("mark", torch.zeros(1, dtype=torch.int64))

    def forward(self, qkv, cos, sin, input_pos):
        p, name = self.pattern, "blocksparse_attention"
        caches = (self.k_cache, self.v_cache) + ((self.k_scale, self.v_scale) if self.int8 else ())
        rest = (p.block, p.local_blocks, p.stride, p.head_step)
        if isinstance(self.shape, EvictingCache):
            name += "_evicting"
            rest = (self.mark, input_pos, p.heads, self.scale, *rest, self.shape.ring)
        else:
            rest = (input_pos, p.heads, 0, self.scale, *rest)
        return getattr(torch.ops.phi3mobile, name + "_int8" * self.int8)(qkv, cos, sin, *caches, *rest)

    def run(self, rows, position):
        return self(*rows, torch.tensor([position])).numpy()


class Kernel:
    """The same in the ExecuTorch runtime."""

    def __init__(self, *arguments):
        self.method = loaded(*arguments).load_method("forward")

    def run(self, rows, position):
        return self.method.execute([*rows, torch.tensor([position])])[0].numpy().copy()


@cache
def loaded(pattern, width, int8, shape):
    from executorch.exir import to_edge_transform_and_lower
    from executorch.runtime import Runtime

    load_library()  # registers the kernels
    count = torch.export.Dim("count", min=1, max=shape if isinstance(shape, int) else shape.positions)
    with torch.no_grad():
        args = (*inputs(3, pattern.heads, pattern.kv_heads, width, width // 2), torch.tensor([0]))
        module = Sparse(pattern, width, int8, shape)
        program = torch.export.export(module, args, dynamic_shapes=({0: count},) * 3 + (None,), strict=False)
        return Runtime.get().load_program(to_edge_transform_and_lower(program).to_executorch().buffer)


class Sequence:
    """Random rows from position 0 on, as float32 for the operator and as the float64 of the formula."""

    def __init__(self, count, pattern, width, int8, seed=0):
        self.rows = inputs(count, pattern.heads, pattern.kv_heads, width, width // 2, seed)
        self.pattern, self.scale = pattern, 1 / width
        qkv, cos, sin = (x.numpy() for x in self.rows)
        parts = [pattern.heads, pattern.heads + pattern.kv_heads]
        q, keys, values = np.split(qkv.reshape(count, -1, width), parts, axis=1)
        self.q = rotated(q.astype(np.float64), cos, sin)
        if int8:  # rotated in float32, as the kernel does: an int8 step more or less would hide other errors
            self.keys, self.values = quantized(rotated(keys, cos, sin)), quantized(values)
        else:
            self.keys, self.values = rotated(keys.astype(np.float64), cos, sin), values.astype(np.float64)

    def check(self, operator, steps, start=0):
        """Feeds `steps` tokens at a time, each result against the formula; a negative step goes back."""
        position = start
        for count in steps:
            end = position + count
            if count > 0:
                got = operator.run(cut(self.rows, position, end), position)
                want = reference(self.q[position:end], self.keys[:end], self.values[:end], position, self.pattern, self.scale)
                assert np.abs(got - want).max() <= 1e-5 * np.abs(want).max(), (self.pattern, position, count)
            position = end


PATTERNS = [
    Pattern(heads=8, kv_heads=2, block=8, local_blocks=3, stride=8, head_step=1),
    Pattern(heads=8, kv_heads=2, block=16, local_blocks=2, stride=3, head_step=0),
    Pattern(heads=6, kv_heads=3, block=5, local_blocks=1, stride=7, head_step=3),
    Pattern(heads=4, kv_heads=4, block=64, local_blocks=1, stride=4, head_step=2),
    Pattern(heads=6, kv_heads=1, block=4, local_blocks=4, stride=4, head_step=1),
    Pattern(heads=2, kv_heads=1, block=80, local_blocks=1, stride=2, head_step=1),
]


@st.composite
def patterns(draw):
    heads = draw(st.integers(1, 4)), draw(st.integers(1, 3))
    numbers = draw(st.integers(1, 9)), draw(st.integers(1, 5)), draw(st.integers(1, 9)), draw(st.integers(0, 9))
    return Pattern(heads[0] * heads[1], heads[1], *numbers)


@st.composite
def walks(draw, most, back=0):
    """Steps of a sequence of at most `most` tokens, with as many going back by at most `back`."""
    steps, position, farthest = [], 0, 0
    for _ in range(draw(st.integers(1, 6))):
        if position == most:
            break
        steps.append(draw(st.integers(1, min(60, most - position))))
        position += steps[-1]
        farthest = max(farthest, position)
        least = max(0, farthest - back)
        if back and position > least and draw(st.booleans()):
            steps.append(-draw(st.integers(1, position - least)))
            position += steps[-1]
    return steps


@settings(max_examples=15, deadline=None)
@given(st.data())
def test_eager_is_the_formula(data):
    pattern, int8 = data.draw(patterns()), data.draw(st.booleans())
    steps = data.draw(walks(130))
    Sequence(130, pattern, 16, int8).check(Sparse(pattern, 16, int8, 130), steps)


@settings(max_examples=15, deadline=None)
@given(st.data())
def test_eager_evicting_is_the_formula(data):
    pattern, int8 = data.draw(patterns()), data.draw(st.booleans())
    shape = evicting_cache(pattern, 130, data.draw(st.integers(0, 40)))
    if shape is not None:
        steps = data.draw(walks(130, shape.back))
        Sequence(130, pattern, 16, int8).check(Sparse(pattern, 16, int8, shape), steps)


@needs_kernels
@pytest.mark.parametrize("int8", [False, True])
@pytest.mark.parametrize(("pattern", "evicting"), [(p, False) for p in PATTERNS] + [(p, True) for p in PATTERNS[:4]])
def test_kernel_is_the_formula(pattern, int8, evicting):
    shape = evicting_cache(pattern, 600, 9) if evicting else 600
    sequence, kernel = Sequence(330, pattern, 32, int8), Kernel(pattern, 32, int8, shape)
    sequence.check(kernel, [1, 2, 7, 33, 1, 64, 1, -5, 3, 200, 1, 1, -9, 9, 15])
    sequence.check(kernel, [100, 1, 7])  # a new sequence in an old cache


@pytest.mark.slow
@needs_kernels
@settings(max_examples=8, deadline=None)
@given(st.data())
def test_kernel_any_chunking(data):
    pattern, int8 = data.draw(st.sampled_from(PATTERNS[:3])), data.draw(st.booleans())
    shape = data.draw(st.sampled_from([200, evicting_cache(pattern, 200, 9)]))
    steps = data.draw(walks(200, 9 if shape == 200 else shape.back))
    Sequence(200, pattern, 32, int8).check(Kernel(pattern, 32, int8, shape), steps)


def test_pattern_of_phi_3_small():
    """Numbers worked out apart from this code: blocks read by the last query, blocks kept, by KV head."""
    for blocks, read, kept in ((128, 30, 72), (2048, 270, 1032)):
        assert sum(SMALL.sees(3, blocks - 1, j) for j in range(blocks)) == read
        seen = {j for j in range(blocks) if any(SMALL.sees(h, blocks - 1, j) for h in range(4))}
        assert len(seen) == kept
    assert [SMALL.residues(g) for g in (0, 1, 2)] == [[4, 5, 6, 7], [0, 1, 2, 3], [4, 5, 6, 7]]


@settings(max_examples=100, deadline=None)
@given(patterns(), st.integers(1, 400), st.integers(0, 100))
def test_no_seen_block_is_ever_overwritten(pattern, context, back):
    """Every block that a head may still see is in a slot of its own, wherever the queries are, and back as far as said."""
    found = evicting_cache(pattern, context, back)
    if found is None:
        return
    assert found.positions >= context > found.rows and found.back >= back
    for g in range(pattern.kv_heads):
        assert len(pattern.residues(g)) == pattern.kept
        holder = {}
        for newest in range(found.positions // pattern.block):
            holder[found.slot(g, newest)] = newest
            oldest_query = max(0, newest - (found.reach - pattern.local_blocks))
            group = range(g * pattern.heads // pattern.kv_heads, (g + 1) * pattern.heads // pattern.kv_heads)
            for i in (oldest_query, newest):
                seen = [j for j in range(i + 1) if any(pattern.sees(h, i, j) for h in group)]
                assert all(holder[found.slot(g, j)] == j for j in seen)
        assert max(holder) * pattern.block < found.rows


def test_nothing_to_evict():
    assert evicting_cache(PATTERNS[4], 10**6) is None  # its heads see every block together
    assert evicting_cache(SMALL, 1024) is None  # all local


@needs_kernels
def test_block_0_is_dense():
    dense, rows = Attention(False, 4, 2, 32, 16, 0, 50), inputs(50, 4, 2, 32, 16)
    full = Pattern(4, 2, 4, 13, 1, 0)  # every block is local
    got = torch.ops.phi3mobile.blocksparse_attention(
        *rows,
        torch.zeros(1, 2, 50, 32),
        torch.zeros(1, 2, 50, 32),
        torch.tensor([0]),
        4,
        0,
        32**-0.5,
        full.block,
        full.local_blocks,
        full.stride,
        full.head_step,
    )
    want = dense(*rows, torch.tensor([0]))
    torch.testing.assert_close(got, want, rtol=0, atol=1e-6)


@needs_kernels
@pytest.mark.parametrize("int8", [False, True])
def test_too_far_back_is_an_error_and_position_0_is_not(int8, capfd):
    shape = evicting_cache(PATTERNS[0], 600, 9)
    sequence = Sequence(300, PATTERNS[0], 32, int8)
    said = f"position 1 is too far behind 200 for this evicted KV cache, which lets positions go back by {shape.back}"
    for operator in (Sparse(PATTERNS[0], 32, int8, shape), Kernel(PATTERNS[0], 32, int8, shape)):
        sequence.check(operator, [200])
        with pytest.raises((IndexError, RuntimeError)) as error:
            operator.run(cut(sequence.rows, 1, 3), 1)
        assert said in str(error.value) + capfd.readouterr().err
        sequence.check(operator, [150, 1, -5, 20])


BAD = [(-1, 1, 1, 0), (8, 0, 1, 0), (8, 1, 0, 0), (8, 1, 1, -1)]


@needs_kernels
@pytest.mark.parametrize("numbers", BAD)
def test_patterns_that_mean_nothing_are_errors(numbers, capfd):
    with pytest.raises(ValueError, match="the first three must be at least 1"):
        Pattern(4, 2, *numbers)
    pattern = Pattern(4, 2, 8, 1, 1, 0)
    for name, value in zip(("block", "local_blocks", "stride", "head_step"), numbers, strict=True):
        object.__setattr__(pattern, name, value)
    with pytest.raises(RuntimeError):
        Kernel(pattern, 32, False, 100).run(inputs(2, 4, 2, 32, 16), 0)
    assert "mean no pattern" in capfd.readouterr().err


def test_window_with_blocks_and_unfit_rings_are_errors():
    rows, caches = inputs(2, 4, 2, 32, 16), [torch.zeros(1, 2, 96, 32) for _ in range(2)]
    with pytest.raises(ValueError, match="window 3 was given; it must be 0"):
        torch.ops.phi3mobile.blocksparse_attention(*rows, *caches, torch.tensor([0]), 4, 3, 1.0, 8, 1, 4, 1)
    mark = torch.zeros(1, dtype=torch.int64)
    for ring in (0, 1, 3, 12):  # local_blocks 4 of stride 4 with 2 kept: 2 or more, in 12 blocks, an even rest
        with pytest.raises(ValueError, match="take both from blocksparse"):
            torch.ops.phi3mobile.blocksparse_attention_evicting(
                *rows, *caches, mark, torch.tensor([0]), 4, 1.0, 8, 4, 4, 1, ring
            )


def test_fake_and_out():
    shape = evicting_cache(PATTERNS[0], 700)
    for module in (Sparse(PATTERNS[0], 16, True, 100), Sparse(PATTERNS[0], 16, False, shape)):
        rows = (*inputs(3, 8, 2, 16, 8), torch.tensor([0]))
        exported = torch.export.export(module, rows, strict=False).module()
        torch.testing.assert_close(exported(*rows), module(*rows))
    caches, numbers = [torch.zeros(1, 2, 100, 16) for _ in range(2)], (8, 0, 1.0, 8, 3, 8, 1)
    out = torch.empty(3, 128)
    torch.ops.phi3mobile.blocksparse_attention.out(*rows[:3], *caches, rows[3], *numbers, out=out)
    torch.testing.assert_close(out, torch.ops.phi3mobile.blocksparse_attention(*rows[:3], *caches, rows[3], *numbers))


def fuzz(folder: Path, seconds: int, seed: int) -> str:
    cmake = Path(sys.executable).with_name("cmake")
    if not cmake.exists():
        pytest.skip("cmake is not installed beside this Python")
    source, python = Path(__file__).parents[2] / "phi3mobile/core", f"-DPython3_EXECUTABLE={sys.executable}"
    configure = ["-S", source, "-B", folder, "-DP3M_SANITIZE=ON", python]
    for command in (configure, ["--build", folder, "--target", "attention_fuzz", "-j2"]):
        made = subprocess.run([cmake, *command], capture_output=True, text=True)
        assert made.returncode == 0, made.stdout[-2000:] + made.stderr[-2000:]
    done = subprocess.run([folder / "attention_fuzz", str(seconds), str(seed)], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    return done.stdout


@needs_kernels
@pytest.mark.slow  # building with sanitizers takes a minute
@pytest.mark.parametrize("seconds", [3, 120])
def test_fuzz_under_sanitizers(seconds):
    """Every argument of every form, under AddressSanitizer and UBSan; the build is kept between runs."""
    folder = Path(__file__).parents[2] / "build" / "fuzz"
    assert "none wrong" in fuzz(folder, seconds, os.getpid() if seconds > 3 else 1)


# bench/sparse.py, at small sizes


def test_the_bench_counts_what_the_pattern_sees():
    from phi3mobile.bench import sparse

    assert sparse.seen_share(SMALL, 1024) == 1
    assert sparse.seen_share(SMALL, 8192) == pytest.approx(0.33, abs=0.01)
    assert sparse.seen_share(SMALL, 32768) == pytest.approx(0.18, abs=0.01)
    assert sparse.memory(1024)["model_share"] == 1
    assert sparse.memory(8192)["dense_mb"] == pytest.approx(8192 * 8 * 2 * 132 / 1e6, abs=0.01)
    assert sparse.memory(8192)["model_share"] == pytest.approx((1 + (72 + 4) / 128) / 2, abs=0.01)  # 76 blocks of 128


def test_masks_of_the_bench_are_what_the_model_of_phi_3_small_sees():
    from tiny import random_model, random_tokens, tiny

    from phi3mobile.bench.sparse import masked_logits, seen_blocks
    from phi3mobile.models.attend import visible

    for pattern in PATTERNS:
        positions = torch.arange(24) * pattern.block
        seen = torch.from_numpy(seen_blocks(pattern, 24))
        assert torch.equal(seen, visible(positions, positions, pattern=pattern).expand(pattern.heads, -1, -1))
    model, tokens = random_model(tiny("tiny-gqa"), 40), random_tokens(tiny("tiny-gqa"), 40)
    dense = model(tokens)[0]
    torch.testing.assert_close(masked_logits(model, tokens, None, 1), dense)
    torch.testing.assert_close(masked_logits(model, tokens, Pattern(4, 2, 8, 5, 10, 0), 1), dense)
    local = Pattern(4, 2, 8, 1, 10**6, 0)
    for last, first in ((40, False), (16, True)):  # a block and no other, or the first with its own
        got = masked_logits(model, tokens[:, :last], local, 1, first)
        torch.testing.assert_close(got[:8], dense[:8])
        assert (got[8:] - dense[8:last]).abs().max() < 1e-4 if first else (got[8:] - dense[8:]).abs().max() > 0.1


@needs_kernels
def test_the_bench_runs(tmp_path, capsys):
    from phi3mobile.bench import sparse
    from phi3mobile.errors import InputError

    sparse.main(["--depths", "2048", "--rounds", "1", "--no-model", "--picture", str(tmp_path / "seen.svg")])
    (row,) = json.loads(capsys.readouterr().out.splitlines()[-1])["kernel"]
    assert row["depth"] == 2048 and row["evicting_mb"] < row["dense_mb"]
    assert all(row[f"{form}_{kind}_ms"] > 0 for form in ("dense", "sparse", "evicting") for kind in ("decode", "prefill"))
    assert (tmp_path / "seen.svg").read_text().startswith("<svg")
    for wrong in (["--depths", "100"], ["--rounds", "0"], ["--depths", "x"], ["--picture", "seen.png"]):
        with pytest.raises(InputError):
            sparse.main(wrong)
