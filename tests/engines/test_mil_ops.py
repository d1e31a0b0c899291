"""Our MIL operators against coremltools' own numpy inference (written by others) and against torch."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes

from phi3mobile.engines.mil import ops

ct = pytest.importorskip("coremltools", reason="coremltools is not installed: pip install 'phi3mobile[coreml]'")
from coremltools.converters.mil import Builder as mb  # noqa: E402
from coremltools.converters.mil.mil import Function, types  # noqa: E402

quickly = settings(max_examples=25, deadline=None)
shapes = array_shapes(min_dims=1, max_dims=4, min_side=1, max_side=5)
seeds = st.integers(0, 2**32 - 1)


def theirs(name: str, **arguments):
    """coremltools' value of an operator with constant arguments."""
    with Function({}, opset_version=ct.target.iOS18):
        found = getattr(mb, name)(**arguments)
    values = [item.val if item.val is not None else item.op.materialized_val_inference() for item in _list(found)]
    return values if isinstance(found, list | tuple) else values[0]


def _list(found):
    return list(found) if isinstance(found, list | tuple) else [found]


def ours(name: str, **arguments):
    for key, value in arguments.items():
        arguments[key] = np.array(value) if isinstance(value, list) and key != "values" else value
    with np.errstate(all="ignore"):
        return ops.find(name)(**arguments)


def agree(name: str, **arguments) -> None:
    """Both give the same shape and values."""
    for mine, reference in zip(_list(ours(name, **arguments)), _list(theirs(name, **arguments)), strict=True):
        assert np.shape(mine) == np.shape(reference), name
        np.testing.assert_allclose(mine, reference, rtol=2e-5, atol=2e-6, err_msg=name)


def floats(seed: int, shape: tuple[int, ...], low: float = -2.0, high: float = 2.0) -> np.ndarray:
    return np.random.default_rng(seed).uniform(low, high, shape).astype(np.float32)


UNARY = [
    "abs",
    "ceil",
    "cos",
    "cosh",
    "erf",
    "exp",
    "exp2",
    "floor",
    "inverse",
    "relu",
    "relu6",
    "round",
    "rsqrt",
    "sigmoid",
    "sign",
    "sin",
    "sinh",
    "softplus",
    "softsign",
    "sqrt",
    "square",
    "tan",
    "tanh",
    "atan",
    "log",
    "acos",
    "asin",
    "atanh",
]
BINARY = [
    "add",
    "sub",
    "mul",
    "real_div",
    "pow",
    "maximum",
    "minimum",
    "greater",
    "greater_equal",
    "less",
    "less_equal",
    "equal",
    "not_equal",
]


@quickly
@given(st.sampled_from(UNARY), shapes, seeds)
def test_unary(name, shape, seed):
    limited = name in ("acos", "asin", "atanh")
    positive = name in ("log", "sqrt", "rsqrt", "inverse")
    agree(name, x=floats(seed, shape, 0.1 if positive else -0.9, 0.9 if limited else 2.0))


@quickly
@given(st.sampled_from(BINARY), shapes, seeds)
def test_binary_broadcasts(name, shape, seed):
    agree(name, x=floats(seed, shape, 0.1), y=floats(seed + 1, shape[-1:], 0.1))


@quickly
@given(st.sampled_from(["add", "sub", "mul", "floor_div", "mod", "maximum"]), shapes, seeds)
def test_integer_arithmetic(name, shape, seed):
    generator = np.random.default_rng(seed)
    x, y = (generator.integers(-9, 9, shape).astype(np.int32) for _ in range(2))
    agree(name, x=x, y=np.where(y == 0, 3, y).astype(np.int32))


@pytest.mark.parametrize("name", ["logical_and", "logical_or", "logical_xor"])
def test_logic(name):
    x, y = np.array([True, True, False, False]), np.array([True, False, True, False])
    agree(name, x=x, y=y)


@pytest.mark.parametrize(
    "name, parameters",
    [
        ("clip", {"alpha": -0.5, "beta": 0.5}),
        ("threshold", {"alpha": 0.3}),
        ("elu", {"alpha": 0.7}),
        ("leaky_relu", {"alpha": 0.2}),
        ("linear_activation", {"alpha": 2.0, "beta": 1.0}),
        ("clamped_relu", {"alpha": 0.2, "beta": 1.0}),
        ("scaled_tanh", {"alpha": 0.5, "beta": 2.0}),
        ("sigmoid_hard", {"alpha": 0.3, "beta": 0.4}),
        ("thresholded_relu", {"alpha": 0.5}),
    ],
)
def test_activations_with_parameters(name, parameters):
    agree(name, x=floats(1, (3, 7)), **{key: np.float32(value) for key, value in parameters.items()})


@pytest.mark.parametrize("mode", ["EXACT", "TANH_APPROXIMATION", "SIGMOID_APPROXIMATION"])
def test_gelu(mode):
    agree("gelu", x=floats(2, (4, 9)), mode=mode)


def test_silu_and_channelwise_activations():
    x = floats(3, (2, 3, 5))
    np.testing.assert_allclose(ours("silu", x=x), torch.nn.functional.silu(torch.tensor(x)), rtol=1e-5, atol=1e-6)
    alpha = floats(4, (3,), 0.1)
    np.testing.assert_allclose(ours("prelu", x=x, alpha=alpha), torch.nn.functional.prelu(torch.tensor(x), torch.tensor(alpha)))
    parametric = alpha[:, None] * np.log1p(np.exp(alpha[:, None] * x))
    np.testing.assert_allclose(ours("softplus_parametric", x=x, alpha=alpha, beta=alpha), parametric, rtol=1e-5)


@st.composite
def slicings(draw):
    shape = draw(shapes)
    begin, end, stride = [], [], []
    for size in shape:
        first = draw(st.integers(0, size - 1))
        begin.append(draw(st.sampled_from([first, first - size])))
        end.append(draw(st.integers(first + 1, size)))
        stride.append(draw(st.integers(1, 3)))
    masks = {name: [draw(st.booleans()) for _ in shape] for name in ("begin_mask", "end_mask")}
    squeeze = [draw(st.booleans()) for _ in shape]
    squeeze[draw(st.integers(0, len(shape) - 1))] = False
    return shape, {"begin": begin, "end": end, "stride": stride, **masks, "squeeze_mask": squeeze}


@quickly
@given(slicings(), seeds)
def test_slice_by_index_and_slice_update(slicing, seed):
    shape, span = slicing
    x = floats(seed, shape)
    agree("slice_by_index", x=x, **span)
    size = ours("slice_by_index", x=x, **span).shape
    update = floats(seed + 1, size)
    mine = ours("slice_update", x=x.copy(), update=update, **span)
    np.testing.assert_array_equal(mine, theirs("slice_update", x=x, update=update, **span))


def test_reversed_slice():
    agree("slice_by_index", x=floats(1, (5, 3)), begin=[4, 0], end=[0, 3], stride=[-2, 1], end_mask=[True, False])


@quickly
@given(shapes, seeds, st.data())
def test_shapes(shape, seed, data):
    x = floats(seed, shape)
    rank, axis = len(shape), data.draw(st.integers(-len(shape), len(shape) - 1))
    agree("transpose", x=x, perm=data.draw(st.permutations(range(rank))))
    agree("reshape", x=x, shape=[-1])
    agree("reshape", x=x, shape=[0] * rank)
    agree("reshape", x=x, shape=[1, *shape[:-1], -1])
    agree("expand_dims", x=x, axes=[axis])
    agree("tile", x=x, reps=data.draw(st.lists(st.integers(1, 3), min_size=rank, max_size=rank)))
    agree("reverse", x=x, axes=[axis])
    agree("stack", values=[x, x + 1], axis=axis)
    agree("concat", values=[x, x + 1, x], axis=axis)
    woven = ours("concat", values=[x, x + 1], axis=axis, interleave=True)  # coremltools' inference forgets interleave
    expected = np.repeat(x, 2, axis) + np.expand_dims(np.arange(2 * shape[axis]) % 2, [*range(1, rank - axis % rank)])
    np.testing.assert_allclose(woven, expected, rtol=1e-6)
    agree("split", x=np.concatenate([x, x + 1], axis), num_splits=2, axis=axis)
    begin = [data.draw(st.integers(0, size - 1)) for size in shape]
    size = [data.draw(st.sampled_from([-1, size - first])) for size, first in zip(shape, begin, strict=True)]
    np.testing.assert_array_equal(
        ours("slice_by_size", x=x, begin=begin, size=size), x[tuple(slice(first, None) for first in begin)]
    )
    np.testing.assert_array_equal(ours("shape", x=x), shape)
    agree("squeeze", x=x[None], axes=[0])


def test_uneven_split_scalars_and_ranges():
    agree("split", x=floats(1, (2, 7)), split_sizes=[3, 1, 3], axis=1)
    np.testing.assert_array_equal(ours("concat", values=[np.int32(3), np.array([4, 5], np.int32)], axis=0), [3, 4, 5])
    agree("range_1d", start=np.int32(2), end=np.int32(11), step=np.int32(3))
    agree("fill", shape=[2, 3], value=np.float32(0.5))
    np.testing.assert_array_equal(ours("reshape", x=np.zeros((2, 50)), shape=[1, 0, -1, 0]).shape, (1, 1, 2, 50))


@pytest.mark.parametrize("mode", ["constant", "reflect", "replicate"])
def test_pad(mode):
    x = floats(1, (2, 4, 5))
    expected = np.pad(x, [(0, 0), (1, 2), (3, 0)], mode={"replicate": "edge"}.get(mode, mode))
    np.testing.assert_array_equal(ours("pad", x=x, pad=[1, 2, 3, 0], mode=mode), expected)


@quickly
@given(st.integers(-1, 4), st.integers(-1, 4), seeds)
def test_band_part(lower, upper, seed):
    agree("band_part", x=floats(seed, (2, 4, 5)), lower=lower, upper=upper)


@quickly
@given(array_shapes(min_dims=2, max_dims=4, min_side=1, max_side=5), seeds, st.data())
def test_gathers(shape, seed, data):
    x, generator = floats(seed, shape), np.random.default_rng(seed)
    axis = data.draw(st.integers(-len(shape), len(shape) - 1))
    indices = generator.integers(-shape[axis], shape[axis], (2, 3)).astype(np.int32)
    agree("gather", x=x, indices=indices % shape[axis], axis=axis)
    np.testing.assert_array_equal(ours("gather", x=x, indices=indices, axis=axis), np.take(x, indices, axis))
    along = generator.integers(0, shape[axis], shape).astype(np.int32)
    agree("gather_along_axis", x=x, indices=along, axis=axis)
    points = np.stack([generator.integers(0, size, 6) for size in shape[:2]], -1).astype(np.int32)
    np.testing.assert_array_equal(ours("gather_nd", x=x, indices=points), x[points[:, 0], points[:, 1]])


def test_batched_gathers():
    x, indices = floats(1, (3, 4, 5)), np.array([[0, 3], [1, 1], [2, 0]], np.int32)
    expected = np.stack([row[chosen] for row, chosen in zip(x, indices, strict=True)])
    np.testing.assert_array_equal(ours("gather", x=x, indices=indices, axis=1, batch_dims=1), expected)
    np.testing.assert_array_equal(ours("gather_nd", x=x, indices=indices[..., None], batch_dims=1), expected)


SCATTERS = [("add", "sum"), ("mul", "prod"), ("max", "amax"), ("min", "amin"), ("update", "")]


@pytest.mark.parametrize("mode, torch_mode", SCATTERS)
def test_scatters_as_torch(mode, torch_mode):
    data, updates = floats(1, (5, 4)), floats(2, (3, 4))
    indices = np.array([[4, 1, 0, 2], [0, 3, 1, 0], [2, 2, 4, 1]], np.int32)
    start, index, source = torch.tensor(data), torch.tensor(indices).long(), torch.tensor(updates)
    expected = start.scatter_reduce(0, index, source, torch_mode) if torch_mode else start.scatter(0, index, source)
    mine = ours("scatter_along_axis", data=data.copy(), indices=indices, updates=updates, axis=0, mode=mode)
    np.testing.assert_allclose(mine, expected, rtol=1e-6)


def test_scatter_rows_and_points():
    data = floats(1, (5, 4))
    rows = ours("scatter", data=data.copy(), indices=[3, 0], updates=np.ones((2, 4), np.float32), axis=0, mode="add")
    np.testing.assert_array_equal(rows[[3, 0]], data[[3, 0]] + 1)
    np.testing.assert_array_equal(rows[[1, 2, 4]], data[[1, 2, 4]])
    columns = ours("scatter", data=data.copy(), indices=[1], updates=np.zeros((5, 1), np.float32), axis=1, mode="update")
    assert not columns[:, 1].any() and (columns[:, 0] == data[:, 0]).all()
    points = ours("scatter_nd", data=data.copy(), indices=[[0, 1], [4, 3]], updates=[5.0, 6.0], mode="update")
    assert points[0, 1] == 5 and points[4, 3] == 6 and points[0, 0] == data[0, 0]


@quickly
@given(shapes, seeds, st.booleans(), st.data())
def test_sorting(shape, seed, ascending, data):
    x = np.random.default_rng(seed).permutation(int(np.prod(shape))).reshape(shape).astype(np.float32)
    axis = data.draw(st.integers(-len(shape), len(shape) - 1))
    agree("argsort", x=x, axis=axis, ascending=ascending)
    agree("topk", x=x, k=data.draw(st.integers(1, shape[axis])), axis=axis, ascending=ascending)


def test_one_hot_non_zero_and_select():
    indices = np.array([[0, 2], [1, 1]], np.int32)
    for axis in (-1, 0, 1):
        expected = np.moveaxis(np.eye(3)[indices], -1, axis)
        np.testing.assert_array_equal(ours("one_hot", indices=indices, one_hot_vector_size=3, axis=axis), expected)
    agree("non_zero", x=np.array([[0.0, 2.0], [3.0, 0.0]], np.float32))
    agree("select", cond=np.array([True, False]), a=np.float32([1, 2]), b=np.float32([3, 4]))


REDUCTIONS = {
    "max": torch.amax,
    "min": torch.amin,
    "mean": torch.mean,
    "sum": torch.sum,
    "prod": lambda x, d, k: _prod(x, d, k),
    "l1_norm": lambda x, d, k: x.abs().sum(d, k),
    "l2_norm": lambda x, d, k: x.square().sum(d, k).sqrt(),
    "sum_square": lambda x, d, k: x.square().sum(d, k),
    "log_sum": lambda x, d, k: x.sum(d, k).log(),
    "log_sum_exp": torch.logsumexp,
}


def _prod(x, axes, keep):
    for axis in sorted((axis % x.ndim for axis in axes), reverse=True):
        x = x.prod(axis, keep)
    return x


@quickly
@given(st.sampled_from(sorted(REDUCTIONS)), shapes, seeds, st.booleans(), st.data())
def test_reductions_as_torch(name, shape, seed, keep, data):
    x = floats(seed, shape, 0.1)
    axes = data.draw(st.lists(st.integers(0, len(shape) - 1), min_size=1, unique=True))
    signed = [axis - data.draw(st.sampled_from([0, len(shape)])) for axis in axes]
    mine = ours(f"reduce_{name}", x=x, axes=signed, keep_dims=keep)
    expected = REDUCTIONS[name](torch.tensor(x), axes, keep)
    assert mine.shape == tuple(expected.shape)
    np.testing.assert_allclose(mine, expected, rtol=2e-5, atol=1e-6)


@quickly
@given(shapes, seeds, st.booleans(), st.booleans(), st.data())
def test_running_sums_and_extremes(shape, seed, exclusive, reverse, data):
    x, axis = floats(seed, shape), data.draw(st.integers(0, len(shape) - 1))
    turned = np.flip(x, axis) if reverse else x
    summed = np.cumsum(np.insert(turned, 0, 0, axis), axis)
    kept = np.delete(summed, -1 if exclusive else 0, axis)
    found = ours("cumsum", x=x, axis=axis, exclusive=exclusive, reverse=reverse)
    np.testing.assert_allclose(found, np.flip(kept, axis) if reverse else kept, rtol=1e-5, atol=1e-5)
    np.testing.assert_array_equal(ours("reduce_argmax", x=x, axis=axis), x.argmax(axis))
    np.testing.assert_array_equal(ours("reduce_argmin", x=x, axis=axis, keep_dims=True), x.argmin(axis, keepdims=True))


@quickly
@given(shapes, seeds, st.data())
def test_softmax_and_norms(shape, seed, data):
    x, axis = floats(seed, shape), data.draw(st.integers(0, len(shape) - 1))
    agree("softmax", x=x, axis=axis)
    gamma, beta = floats(seed + 1, shape[axis:]), floats(seed + 2, shape[axis:])
    mine = ours("layer_norm", x=x, axes=list(range(axis, len(shape))), gamma=gamma, beta=beta, epsilon=np.float32(1e-3))
    expected = torch.nn.functional.layer_norm(torch.tensor(x), shape[axis:], torch.tensor(gamma), torch.tensor(beta), 1e-3)
    np.testing.assert_allclose(mine, expected, rtol=1e-4, atol=1e-5)


def test_channel_norms_as_torch():
    x = floats(1, (2, 3, 4, 5))
    mean, variance, gamma, beta = floats(2, (3,)), floats(3, (3,), 0.1), floats(4, (3,)), floats(5, (3,))
    tensors = [torch.tensor(value) for value in (x, mean, variance, gamma, beta)]
    mine = ours("batch_norm", x=x, mean=mean, variance=variance, gamma=gamma, beta=beta)
    np.testing.assert_allclose(mine, torch.nn.functional.batch_norm(*tensors), rtol=1e-4, atol=1e-5)
    mine = ours("instance_norm", x=x, gamma=gamma, beta=beta)
    expected = torch.nn.functional.instance_norm(tensors[0], weight=tensors[3], bias=tensors[4])
    np.testing.assert_allclose(mine, expected, rtol=1e-4, atol=1e-5)
    norm = np.sqrt(np.square(x).sum((1, 2, 3), keepdims=True) + 1e-6)
    np.testing.assert_allclose(ours("l2_norm", x=x), x / norm, rtol=1e-5)


@quickly
@given(st.integers(1, 5), st.integers(1, 6), st.integers(1, 7), st.booleans(), st.booleans(), seeds)
def test_products(rows, inner, columns, transpose_x, transpose_y, seed):
    x = floats(seed, (2, inner, rows) if transpose_x else (2, rows, inner))
    y = floats(seed + 1, (columns, inner) if transpose_y else (inner, columns))
    agree("matmul", x=x, y=y, transpose_x=transpose_x, transpose_y=transpose_y)
    agree("linear", x=floats(seed, (3, rows, inner)), weight=floats(seed, (columns, inner)), bias=floats(seed, (columns,)))
    values = [floats(seed, (2, rows, 3, inner)), floats(seed, (2, inner, 3, columns))]
    agree("einsum", values=values, equation="nchw,nwhu->nchu")


@quickly
@given(
    st.integers(1, 3),
    st.integers(1, 2),
    st.sampled_from(["valid", "custom", "same"]),
    st.integers(1, 2),
    st.integers(1, 2),
    seeds,
)
def test_conv_as_torch(kernel, stride, pad_type, dilation, groups, seed):
    x, weight, bias = floats(seed, (2, 4, 9, 7)), floats(seed, (6, 4 // groups, kernel, kernel)), floats(seed, (6,))
    parameters = {"strides": [stride] * 2, "dilations": [dilation] * 2, "groups": groups, "pad_type": pad_type}
    mine = ours("conv", x=x, weight=weight, bias=bias, pad=[1, 2, 0, 1], **parameters)
    padded = torch.tensor(x)
    if pad_type == "custom":
        padded = torch.nn.functional.pad(padded, [0, 1, 1, 2])
    if pad_type == "same":
        assert mine.shape[2:] == tuple(-(-size // stride) for size in x.shape[2:])
        if stride == 1:
            padded = torch.nn.functional.pad(padded, _same(kernel, dilation) * 2)
        else:
            return
    expected = torch.nn.functional.conv2d(padded, torch.tensor(weight), torch.tensor(bias), stride, 0, dilation, groups)
    np.testing.assert_allclose(mine, expected, rtol=1e-4, atol=1e-5)


def _same(kernel: int, dilation: int) -> list[int]:
    total = (kernel - 1) * dilation
    return [total // 2, total - total // 2]


@pytest.mark.parametrize("kind", ["float", "bool", "none"])
def test_attention_as_torch(kind):
    q, k, v = floats(1, (2, 3, 4, 8)), floats(2, (2, 3, 6, 8)), floats(3, (2, 3, 6, 8))
    allowed = np.random.default_rng(1).random((4, 6)) < 0.6
    allowed[:, 0] = True
    mask = {"float": floats(4, (4, 6)), "bool": allowed, "none": None}[kind]
    expected = torch.nn.functional.scaled_dot_product_attention(
        *map(torch.tensor, (q, k, v)), attn_mask=None if mask is None else torch.tensor(mask)
    )
    arguments = {} if mask is None else {"attn_mask": mask}
    mine = ours("scaled_dot_product_attention", query=q, key=k, value=v, **arguments)
    np.testing.assert_allclose(mine, expected, rtol=1e-4, atol=1e-5)
    agree("scaled_dot_product_attention", query=q, key=k, value=v, **arguments)


def test_pooling_and_shuffles_as_torch():
    x = floats(1, (2, 8, 6, 4))
    tensor, functional = torch.tensor(x), torch.nn.functional
    for name in ("max", "avg"):
        mine = ours(f"{name}_pool", x=x, kernel_sizes=[2, 3], strides=[2, 1], pad_type="valid")
        np.testing.assert_allclose(mine, getattr(functional, f"{name}_pool2d")(tensor, (2, 3), (2, 1)), rtol=1e-5)
    np.testing.assert_array_equal(ours("pixel_shuffle", x=x, upscale_factor=2), functional.pixel_shuffle(tensor, 2))
    np.testing.assert_array_equal(ours("pixel_unshuffle", x=x, downscale_factor=2), functional.pixel_unshuffle(tensor, 2))
    windows = ours("sliding_windows", x=x, axis=2, size=3, stride=2)
    np.testing.assert_array_equal(windows, np.stack([x[:, :, 0:3], x[:, :, 2:5]], 2))


@quickly
@given(st.integers(1, 3), st.integers(1, 3), st.integers(1, 4), st.integers(1, 4), st.booleans(), seeds)
def test_blockwise_weights(rows, blocks, height, width, with_offset, seed):
    generator = np.random.default_rng(seed)
    data = generator.integers(-8, 8, (rows * height, blocks * width)).astype(np.int8)
    scale = generator.uniform(0.5, 2, (rows, blocks)).astype(np.float32)
    offset = {"offset": generator.integers(-8, 8, (rows, blocks)).astype(np.int8)} if with_offset else {}
    agree("constexpr_blockwise_shift_scale", data=data, scale=scale, **offset)


@quickly
@given(st.sampled_from([1, 2, 3, 4, 6, 8]), st.integers(1, 2), st.integers(1, 2), st.integers(1, 3), st.integers(0, 1), seeds)
def test_palettes(bits, blocks, columns, vector, axis, seed):
    generator = np.random.default_rng(seed)
    shape = (blocks * 3, columns * 2)
    kind = {
        1: types.np_uint1_dtype,
        2: types.np_uint2_dtype,
        3: types.np_uint3_dtype,
        4: types.np_uint4_dtype,
        6: types.np_uint6_dtype,
        8: np.uint8,
    }[bits]
    indices = generator.integers(0, 2**bits, shape).astype(kind)
    lut = generator.uniform(-1, 1, (blocks, columns, 2**bits, vector)).astype(np.float32)
    chosen = {"vector_axis": axis} if vector > 1 else {}
    reference = theirs("constexpr_lut_to_dense", indices=indices, lut=lut, **chosen)
    np.testing.assert_array_equal(
        ours("constexpr_lut_to_dense", indices=indices.astype(np.uint8), lut=lut, **chosen), reference
    )


def test_sparse_and_affine_weights():
    mask = np.array([[1, 0, 1], [0, 1, 1]], np.uint8)
    found = ours("constexpr_sparse_to_dense", nonzero_data=np.float32([1, 2, 3, 4]), mask=mask)
    np.testing.assert_array_equal(found, [[1, 0, 2], [0, 3, 4]])
    arguments = {
        "quantized_data": np.array([[1, 2], [3, 4]], np.uint8),
        "zero_point": np.array([1, 2], np.uint8),
        "scale": np.float32([0.5, 2]),
        "axis": 0,
    }
    np.testing.assert_array_equal(ours("constexpr_affine_dequantize", **arguments), [[0, 0.5], [2, 4]])
    sparse = ours(
        "constexpr_sparse_blockwise_shift_scale",
        data_mask=mask,
        nonzero_data=np.int8([1, 2, 3, 4]),
        scale=np.float32([[2], [3]]),
        offset=np.int8([[1], [0]]),
    )
    np.testing.assert_array_equal(sparse[1], [0, 2, 9, 12])


@quickly
@given(shapes, st.sampled_from(["int8", "uint8"]), st.booleans(), seeds)
def test_quantize_and_dequantize(shape, dtype, per_axis, seed):
    x, size = floats(seed, shape, -3, 3), shape[0]
    scale = floats(seed, (size,), 0.01, 0.1) if per_axis else np.float32(0.05)
    zero = np.random.default_rng(seed).integers(0, 20, (size,)).astype(dtype) if per_axis else np.array(7, dtype)
    axis = {"axis": 0} if per_axis else {}
    mine = ours("quantize", input=x, scale=scale, zero_point=zero, output_dtype=dtype, **axis)
    reference = theirs("quantize", input=x, scale=scale, zero_point=zero, output_dtype=dtype, **axis)
    assert np.abs(mine - reference.astype(np.float32)).max() <= 1  # a tie may fall either way in float32
    agree("dequantize", input=reference, scale=scale, zero_point=zero, **axis)


@pytest.mark.parametrize("dtype", ["fp16", "fp32", "int32", "bool"])
def test_cast(dtype):
    reference = theirs("cast", x=np.float32([-1.7, 0.0, 2.5]), dtype=dtype)
    np.testing.assert_allclose(ours("cast", x=np.float32([-1.7, 0.0, 2.5]), dtype=dtype), reference, rtol=1e-3)
