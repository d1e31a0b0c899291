"""MIL lowerings of our operators, one at a time, in the interpreter, against their torch definitions."""

import numpy as np
import pytest
import torch
from exported import psnr
from hypothesis import given, settings
from hypothesis import strategies as st

ct = pytest.importorskip("coremltools", reason="coremltools is not installed: pip install 'phi3mobile[coreml]'")

from coremltools.converters.mil.mil import Builder as mb  # noqa: E402
from coremltools.converters.mil.mil import Function, types  # noqa: E402

from phi3mobile.engines import mil  # noqa: E402
from phi3mobile.export.targets.coreml import blocks, sparse, torch_ops  # noqa: E402, F401  registers the lowerings
from phi3mobile.export.targets.coreml.package import TARGET, Weights, write_package  # noqa: E402
from phi3mobile.models.blocksparse import Pattern  # noqa: E402

OPERATORS = torch.ops.phi3mobile


def converted(module, example, folder):
    """A torch module through torch.export and coremltools, as the interpreter runs it."""
    program = torch.export.export(module.eval(), example).run_decompositions({})
    path = folder / "model.mlpackage"
    ct.convert(program, minimum_deployment_target=TARGET, skip_model_load=True).save(str(path))
    return mil.load(path)


def run(program, values, half=False):
    names = list(program.function().inputs)
    (result,) = program.run(dict(zip(names, values, strict=True)), {}, half=half).values()
    return result


@pytest.mark.parametrize("scale", [0, 1e-4, 1e-2, 1, 1e3, 3e4])
@pytest.mark.parametrize("kind", ["rms", "layer"])
def test_norms_are_right_at_every_magnitude(kind, scale, tmp_path):
    generator = np.random.default_rng(0)
    x, weight, bias = generator.normal(size=(1, 5, 64)), generator.normal(size=64), generator.normal(size=64)
    x, weight, bias = ((scale * x / np.abs(x).max()), weight, bias) if scale else (np.zeros_like(x), weight, bias)
    x, weight, bias = (value.astype(np.float16) for value in (x, weight, bias))
    with Function({"x": mb.placeholder(shape=x.shape, dtype=types.fp16)}, opset_version=TARGET) as function:
        given_x = function.inputs["x"]
        normed = blocks.rms_norm(given_x, weight, 1e-5) if kind == "rms" else blocks.layer_norm(given_x, weight, bias, 1e-5)
        function.set_outputs([normed])
    write_package(tmp_path / "m.mlpackage", {"main": function}, "main", Weights())
    result = run(mil.load(tmp_path / "m.mlpackage"), [x], half=True)
    exact, w, b = (torch.from_numpy(value).double() for value in (x, weight, bias))
    if kind == "rms":
        expected = exact * torch.rsqrt(exact.square().mean(-1, keepdim=True) + 1e-5) * w
    else:
        expected = torch.nn.functional.layer_norm(exact, (64,), w, b, 1e-5)
    assert np.abs(result - expected.numpy()).max() < 0.02


class Rotate(torch.nn.Module):
    def forward(self, x, cos, sin):
        return OPERATORS.rotated(x, cos, sin)


@pytest.mark.parametrize("half", [8, 5])
def test_the_rotary_operator(half, tmp_path):
    example = torch.randn(1, 6, 4, 16), torch.randn(4, half), torch.randn(4, half)
    program = converted(Rotate(), example, tmp_path)
    assert psnr(Rotate()(*example).numpy(), run(program, [value.numpy() for value in example])) > 70


class Attend(torch.nn.Module):
    def __init__(self, *rest):
        super().__init__()
        self.rest = rest

    def forward(self, q, keys, values, rows, position):
        keys = OPERATORS.with_rows(keys, rows, position)
        return OPERATORS.attended(q, keys, values, position, *self.rest)


def same_attention(tmp_path, heads, kv_heads, length, rows, positions, rest):
    """Converts once, then compares at every position; the interpreter's reads tell how sparse it is."""
    generator = torch.Generator().manual_seed(0)
    shapes = (1, heads, length, 16), (1, kv_heads, rows, 16), (1, kv_heads, rows, 16), (1, kv_heads, length, 16)
    values = [torch.randn(shape, generator=generator) for shape in shapes]
    module = Attend(*rest)
    program = converted(module, (*values, torch.zeros(1, dtype=torch.int64)), tmp_path)
    for position in positions:
        expected = module(*values, torch.tensor([position])).numpy()
        result = run(program, [*(value.numpy() for value in values), np.array([position], np.int32)])
        assert psnr(expected, result) > 60, position
    return program


@pytest.mark.parametrize("length", [1, 5])
@pytest.mark.parametrize("window", [0, 12])
def test_dense_attention(length, window, tmp_path):
    same_attention(tmp_path, 4, 2, length, 64, (0, 1, 30, 64 - length), (window, 0.2))


PATTERNS = [  # heads, kv_heads, block, local_blocks, stride, head_step
    (8, 4, 8, 3, 4, 1),
    (4, 4, 8, 2, 4, 0),
    (6, 2, 8, 2, 2, 1),
    *(
        pytest.param(pattern, marks=pytest.mark.slow)
        for pattern in [(8, 2, 8, 2, 8, 1), (4, 2, 8, 1, 2, 1), (2, 1, 16, 2, 4, 2)]
    ),
]


@pytest.mark.parametrize("pattern", PATTERNS)
@pytest.mark.parametrize("length", [1, 13])
def test_block_sparse_attention(pattern, length, tmp_path):
    heads, kv_heads, *rest = pattern
    positions = (0, 7, 8, 23, 24, 25, 63, 64, 100, 127, 128, 192 - length, 256 - length)
    same_attention(tmp_path, heads, kv_heads, length, 256, positions, (0, 0.2, *rest))


def test_block_sparse_attention_reads_only_what_is_seen(tmp_path):
    """phi-3-small's pattern at 8k: rows that a decode step and a chunk multiply with, of those that dense attention would."""
    pattern = Pattern(32, 8, 64, 16, 8, 1)
    for length, most in ((1, 0.27), (128, 0.29)):
        rows = sparse.local_rows(pattern, length) + 8192 // pattern.stride
        assert rows / 8192 < most
    heads, rows = 8, 1024
    program = same_attention(tmp_path, heads, 4, 1, rows, (rows - 1,), (0, 0.2, 8, 3, 4, 1))
    multiplied = []

    def trace(name, kind, outputs):
        if kind == "matmul":
            multiplied.append(next(iter(outputs.values())).size)

    values = [np.zeros(tuple(feature.shape), np.float32) for feature in program.function().inputs.values()]
    values[-1] = np.array([rows - 1], np.int32)
    program.run(dict(zip(program.function().inputs, values, strict=True)), {}, trace=trace)
    scores = heads * (rows // 4 + 1 + 3 * 8)  # a quarter, and the local window
    assert sum(multiplied) == scores + 2 * heads * 16  # and the two results over V


@settings(max_examples=50, deadline=None)
@given(
    st.sampled_from([(8, 4), (8, 2), (6, 2), (4, 4), (32, 8)]),
    st.integers(1, 4),
    st.sampled_from([2, 4, 8]),
    st.integers(0, 3),
    st.integers(0, 40),
)
def test_local_and_remote_blocks_are_what_the_pattern_shows(grouping, local, stride, head_step, query_block):
    heads, kv_heads = grouping
    pattern = Pattern(heads, kv_heads, 8, local, stride, head_step)
    parts = sparse.residues(pattern)
    assert sorted(head for part in parts for head in part.heads) == list(range(heads))
    for part in parts:
        assert len(part.heads) == part.count * len(part.kv_heads)
        for index, head in enumerate(part.heads):
            assert part.kv_heads[index // part.count] == head // (heads // kv_heads)
            for block in range(query_block + 1):
                seen = query_block - block < local or block % stride == part.residue
                assert seen == pattern.sees(head, query_block, block)
