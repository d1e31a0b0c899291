"""The interpreter of mlprograms: whole programs, states, compressed weights, rounding, and what it refuses."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from phi3mobile import extras
from phi3mobile.engines import EngineInfo, mil
from phi3mobile.engines.coreml import MilEngine
from phi3mobile.engines.mil.dtypes import Type, unpack
from phi3mobile.engines.mil.spec import Block, Feature, Function, Name, Op
from phi3mobile.engines.registry import open_engine
from phi3mobile.errors import InputError
from phi3mobile.export.census import census

ct = pytest.importorskip("coremltools", reason="coremltools is not installed: pip install 'phi3mobile[coreml]'")
from coremltools.converters.mil import Builder as mb  # noqa: E402
from coremltools.converters.mil.mil import get_new_symbol, types  # noqa: E402

FP32, FP16 = ct.precision.FLOAT32, ct.precision.FLOAT16


def packaged(folder: Path, program, precision=FP32, **options) -> Path:
    """A MIL program or traced torch module, converted and saved."""
    model = ct.convert(
        program,
        convert_to="mlprogram",
        minimum_deployment_target=ct.target.iOS18,
        compute_precision=precision,
        skip_model_load=True,
        **options,
    )
    model.save(str(folder / "m.mlpackage"))
    return folder / "m.mlpackage"


class Mixed(torch.nn.Module):
    """Many operators of the torch front end in one graph."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embed, self.up = torch.nn.Embedding(40, 24), torch.nn.Linear(24, 48)
        self.down = torch.nn.Linear(24, 24, bias=False)
        self.norm, self.mix = torch.nn.LayerNorm(24), torch.nn.Conv2d(4, 6, (1, 3), padding=(0, 1), groups=2)

    def forward(self, tokens, x):
        functional = torch.nn.functional
        y = self.norm(self.embed(tokens) + x)
        gate, up = self.up(y).chunk(2, -1)
        y = y + self.down(functional.silu(gate) * functional.gelu(up) + torch.sigmoid(up))
        heads = y.view(2, 5, 4, 6).transpose(1, 2)
        scores = heads @ heads.transpose(-1, -2) / 6**0.5
        mask = torch.tril(torch.ones(5, 5)) == 0
        attended = torch.softmax(scores.masked_fill(mask, -3e4), -1) @ heads
        fused = functional.scaled_dot_product_attention(heads, heads, heads, attn_mask=~mask)
        convolved = self.mix(attended + fused)
        best, order = torch.topk(y, 3, -1)
        rolled = torch.cat([-heads[..., 3:], heads[..., :3]], -1).clamp(-1, 1)
        repeated = heads.repeat_interleave(2, 1).mean(-1).cumsum(-1)
        chosen = torch.gather(y, -1, order).pow(2).sum(-1, keepdim=True).sqrt()
        where = torch.where(y > 0, torch.erf(y), y.abs().log1p()).amax(1)
        padded = functional.pad(y, (1, 2)).flatten(1).square().mean(-1)
        return convolved, best, rolled, repeated, chosen, where, padded


@pytest.fixture(scope="module")
def mixed(tmp_path_factory):
    model = Mixed().eval().requires_grad_(False)
    tokens, x = torch.randint(40, (2, 5)), torch.randn(2, 5, 24)
    traced = torch.jit.trace(model, (tokens, x))
    inputs = [ct.TensorType("tokens", (2, 5), np.int32), ct.TensorType("x", (2, 5, 24))]
    path = packaged(tmp_path_factory.mktemp("mixed"), traced, inputs=inputs)
    return path, {"tokens": tokens.numpy(), "x": x.numpy()}, [value.numpy() for value in model(tokens, x)]


def test_a_converted_torch_graph_computes_the_same(mixed):
    path, inputs, expected = mixed
    program = mil.load(path)
    found = program.run(inputs)
    assert len(found) == len(expected)
    for value, reference in zip(found.values(), expected, strict=True):
        np.testing.assert_allclose(value, reference, rtol=2e-4, atol=2e-5)
    assert program.function().inputs["x"] == Feature("float32", (2, 5, 24))
    assert {"linear", "conv", "topk", "gather_along_axis", "silu"} <= set(census(program)[0].operators)


def test_decoded_weights_are_kept_under_the_limit(mixed):
    path, inputs, _ = mixed
    free, tight = mil.load(path), mil.load(path, decoded_bytes=0)
    for first, second in zip(free.run(inputs).values(), tight.run(inputs).values(), strict=True):
        np.testing.assert_array_equal(first, second)
    assert tight._constants.bytes == 0


def test_trace_names_every_operator_once(mixed):
    path, inputs, _ = mixed
    seen = []
    mil.load(path).run(inputs, trace=lambda name, kind, outputs: seen.append((name, kind, len(outputs))))
    assert ("topk", 2) in {(kind, count) for _, kind, count in seen}
    assert len({name for name, _, _ in seen}) == len(seen)


def test_half_rounds_every_float16_result(tmp_path):
    @mb.program(input_specs=[mb.TensorSpec((64,), types.fp16) for _ in range(2)], opset_version=ct.target.iOS18)
    def product(x, y):
        return mb.add(x=mb.mul(x=x, y=y), y=mb.exp(x=x))

    program = mil.load(packaged(tmp_path, product, FP16))
    x, y = np.random.default_rng(0).uniform(-1, 1, (2, 64)).astype(np.float16)
    inputs = {"x": x, "y": y}
    narrow = (x * y).astype(np.float16) + np.exp(x.astype(np.float32)).astype(np.float16)
    (rounded,) = program.run(inputs, half=True).values()
    np.testing.assert_array_equal(rounded, narrow.astype(np.float32))
    wide = x.astype(np.float32) * y.astype(np.float32) + np.exp(x.astype(np.float32))
    (exact,) = program.run(inputs).values()
    np.testing.assert_allclose(exact, wide, rtol=1e-6, atol=1e-7)
    assert (exact != rounded).any()


def test_float16_overflows_as_on_the_device(tmp_path):
    @mb.program(input_specs=[mb.TensorSpec((2,), types.fp16)], opset_version=ct.target.iOS18)
    def squares(x):
        return mb.square(x=x)

    program = mil.load(packaged(tmp_path, squares, FP16))
    for half, expected in ((True, np.inf), (False, 90000)):
        (value,) = program.run({"x": np.float16([300, 1])}, half=half).values()
        np.testing.assert_array_equal(value, [expected, 1])


@pytest.mark.parametrize(
    "granularity, mode, dtype",
    [
        ("per_block", "linear_symmetric", "int4"),
        ("per_channel", "linear", "uint8"),
        ("per_tensor", "linear_symmetric", "int8"),
        ("per_block", "linear", "uint4"),
    ],
)
def test_compressed_weights_are_those_that_coremltools_decompresses(tmp_path, mixed, granularity, mode, dtype):
    import coremltools.optimize.coreml as optimize

    path, inputs, _ = mixed
    kind = optimize.OpLinearQuantizerConfig(mode=mode, dtype=dtype, granularity=granularity, block_size=8, weight_threshold=16)
    model = optimize.linear_quantize_weights(
        ct.models.MLModel(str(path), skip_model_load=True), optimize.OptimizationConfig(global_config=kind)
    )
    model.save(str(tmp_path / "q.mlpackage"))
    optimize.decompress_weights(model).save(str(tmp_path / "d.mlpackage"))
    packed, plain = mil.load(tmp_path / "q.mlpackage"), mil.load(tmp_path / "d.mlpackage")
    assert any(op.type == "constexpr_blockwise_shift_scale" for op in packed.function().block.walk())
    for first, second in zip(packed.run(inputs).values(), plain.run(inputs).values(), strict=True):
        np.testing.assert_allclose(first, second, rtol=1e-4, atol=1e-5)


def test_control_flow_and_flexible_shapes(tmp_path):
    def body(i, total):
        return mb.add(x=i, y=1), mb.add(x=total, y=mb.cast(x=i, dtype="fp32"))

    specs = [mb.TensorSpec((get_new_symbol(),), types.fp32), mb.TensorSpec((1,), types.int32)]

    @mb.program(input_specs=specs, opset_version=ct.target.iOS18)
    def program(x, n):
        count = mb.squeeze(x=n, axes=[0])
        first = mb.sub(x=count, y=count)
        start = (first, mb.cast(x=first, dtype="fp32"))
        _, total = mb.while_loop(_cond=lambda i, total: mb.less(x=i, y=count), _body=body, loop_vars=start)
        return mb.cond(
            pred=mb.greater(x=count, y=3), _true_fn=lambda: mb.mul(x=x, y=-1.0), _false_fn=lambda: mb.add(x=x, y=total)
        )

    shapes = [ct.TensorType("x", shape=(ct.RangeDim(1, 6, 3),)), ct.TensorType("n", shape=(1,), dtype=np.int32)]
    loaded = mil.load(packaged(tmp_path, program, inputs=shapes))
    x = np.arange(5, dtype=np.float32)
    for n, expected in ((3, x + 3), (5, -x), (0, x)):
        (value,) = loaded.run({"x": x, "n": np.array([n], np.int32)}).values()
        np.testing.assert_array_equal(value, expected)
    with pytest.raises(InputError, match=r"'x' has shape \[7\]; it takes \[1..6\]"):
        loaded.run({"x": np.zeros(7, np.float32), "n": np.array([1], np.int32)})


# States: a random program of reads, updates, uses and writes, against a reference that copies everything.
ACTION = st.tuples(st.sampled_from(["read", "update", "add", "view", "write"]), st.integers(0, 99))


@settings(max_examples=150, deadline=None)
@given(st.lists(ACTION, min_size=4, max_size=14), st.integers(0, 2**32 - 1))
def test_updates_in_place_never_change_what_was_read(actions, seed):
    kind = Type("float32", (4,))
    pool, ops = ["x"], []
    copies = {"x": np.random.default_rng(seed).normal(size=4).astype(np.float32)}
    state = {name: np.full(4, number, np.float32) for number, name in enumerate(("s", "t"))}
    kept = {name: value.copy() for name, value in state.items()}
    for index, (action, pick) in enumerate(actions):
        name, source = f"v{index}", pool[pick % len(pool)]
        target, place = ("s", "t")[pick % 2], pick % 4
        if action == "read":
            ops.append(Op("read_state", name, {"input": Name(target)}, ((name, kind),), ()))
            copies[name] = kept[target].copy()
        elif action == "write":
            ops.append(Op("write_state", name, {"input": Name(target), "data": Name(source)}, (), ()))
            kept[target] = copies[source].copy()
            continue
        elif action == "update":
            span = {"begin": np.array([place]), "end": np.array([place + 1]), "update": np.float32([index])}
            ops.append(Op("slice_update", name, {"x": Name(source), **span}, ((name, kind),), ()))
            copies[name] = copies[source].copy()
            copies[name][place] = index
            if pick % 3:  # as coremltools writes it: the update goes to the state at once
                ops.append(Op("write_state", name + "w", {"input": Name(target), "data": Name(name)}, (), ()))
                kept[target] = copies[name].copy()
        elif action == "view":
            ops.append(Op("reshape", name, {"x": Name(source), "shape": np.array([4])}, ((name, kind),), ()))
            copies[name] = copies[source].copy()
        else:
            ops.append(Op("add", name, {"x": Name(source), "y": Name(pool[-1])}, ((name, kind),), ()))
            copies[name] = copies[source] + copies[pool[-1]]
        pool.append(name)
    outputs = tuple(dict.fromkeys(pool[1 + seed % 2 :: 2]))
    feature = Feature("float32", (4,))
    block = Block((("x", kind), ("s", kind), ("t", kind)), outputs, tuple(ops))
    function = Function({"x": feature}, dict.fromkeys(outputs, feature), {"s": feature, "t": feature}, block)
    given_x = copies["x"].copy()
    found = mil.Program({"main": function}, "main", Path()).run({"x": given_x}, state)
    for name in outputs:
        np.testing.assert_array_equal(found[name], copies[name])
    for name, value in kept.items():
        np.testing.assert_array_equal(state[name], value)
    np.testing.assert_array_equal(given_x, copies["x"])


def test_a_cache_update_is_in_place():
    kind, long = Type("float16", (2, 8)), Type("float16", (2, 1))
    span = {"begin": np.array([0, 3]), "end": np.array([2, 4])}
    ops = (
        Op("read_state", "a", {"input": Name("s")}, (("a", kind),), ()),
        Op("slice_update", "b", {"x": Name("a"), "update": Name("x"), **span}, (("b", kind),), ()),
        Op("write_state", "c", {"input": Name("s"), "data": Name("b")}, (), ()),
        Op("read_state", "d", {"input": Name("s")}, (("d", kind),), ()),
        Op("reduce_sum", "e", {"x": Name("d")}, (("e", Type("float16")),), ()),
    )
    features = Feature("float16", (2, 1)), Feature("float16", ()), Feature("float16", (2, 8))
    block = Block((("x", long), ("s", kind)), ("e",), ops)
    program = mil.Program({"main": Function({"x": features[0]}, {"e": features[1]}, {"s": features[2]}, block)}, "main", Path())
    state = program.new_state()
    cache = state["s"]
    assert program.run({"x": np.ones((2, 1))}, state)["e"] == 2
    assert program.run({"x": np.ones((2, 1)) * 3}, state)["e"] == 6
    assert state["s"] is cache


@settings(max_examples=40, deadline=None)
@given(st.sampled_from([1, 2, 3, 4, 6]), st.integers(1, 40), st.integers(0, 2**32 - 1))
def test_packed_bits(bits, count, seed):
    values = np.random.default_rng(seed).integers(0, 2**bits, count).astype(np.uint8)
    loose = np.unpackbits(values[:, None], axis=1, bitorder="little")[:, :bits]
    packed = np.packbits(loose.reshape(-1), bitorder="little")
    np.testing.assert_array_equal(unpack(packed, Type(f"uint{bits}", (count,))), values)
    if bits == 4:
        np.testing.assert_array_equal(unpack(packed, Type("int4", (count,))), (values.astype(np.int8) ^ 8) - 8)


def test_what_is_refused(tmp_path, mixed):
    path, inputs, _ = mixed
    program = mil.load(path)
    for values, message in (
        ({"tokens": inputs["tokens"]}, r"'x' is missing: it takes float32 \[2, 5, 24\]"),
        (inputs | {"x": np.zeros((2, 5, 23))}, r"'x' has shape \[2, 5, 23\]; it takes \[2, 5, 24\]"),
        (inputs | {"tokens": np.zeros((2, 5))}, "'tokens' is float64; it takes int32"),
        (inputs | {"z": np.zeros(1)}, "'z' was given; this function takes tokens, x"),
    ):
        with pytest.raises(InputError, match=message):
            program.run(values)
    with pytest.raises(InputError, match="no function 'prefill'; it has main"):
        program.run(inputs, function="prefill")
    with pytest.raises(InputError, match="does not exist"):
        mil.load(tmp_path / "absent.mlpackage")
    with pytest.raises(InputError, match="it has no model file"):
        mil.load(tmp_path)
    (tmp_path / "noise.mlmodel").write_bytes(b"\xff\x13noise")
    with pytest.raises(InputError, match=r"noise.mlmodel is not a Core ML model|holds a nothing"):
        mil.load(tmp_path / "noise.mlmodel")
    copy = shutil.copytree(path, tmp_path / "short.mlpackage")
    weights = next(copy.rglob("weight.bin"))
    weights.write_bytes(weights.read_bytes()[:200])
    with pytest.raises(InputError, match="copy the"):
        mil.load(copy).run(inputs)
    weights.unlink()
    with pytest.raises(InputError, match=r"weight.bin can't be read .*copy the whole"):
        mil.load(copy).run(inputs)


def test_an_unknown_operator_is_named_with_its_place():
    kind, feature = Type("float32", (2,)), Feature("float32", (2,))
    block = Block((("x", kind),), ("y",), (Op("warp_drive", "layer_7_warp", {"x": Name("x")}, (("y", kind),), ()),))
    program = mil.Program({"main": Function({"x": feature}, {"y": feature}, {}, block)}, "main", Path())
    with pytest.raises(InputError, match=r"'warp_drive' \(at 'layer_7_warp'\) is not known"):
        program.run({"x": np.zeros(2)})


def test_states_must_be_given_whole():
    kind, feature = Type("float16", (2,)), Feature("float16", (2,))
    block = Block((("s", kind),), ("y",), (Op("read_state", "y", {"input": Name("s")}, (("y", kind),), ()),))
    program = mil.Program({"main": Function({}, {"y": feature}, {"s": feature}, block)}, "main", Path())
    with pytest.raises(InputError, match=r"state 's' is missing; it must be \[2\]: make it with new_state"):
        program.run({})
    with pytest.raises(InputError, match=r"state 's' has shape \[3\]"):
        program.run({}, {"s": np.zeros(3)})


def test_missing_coremltools_names_the_extra(mixed, monkeypatch):
    import importlib.util
    import sys

    for name in [name for name in sys.modules if name.startswith(("coremltools", "_phi3mobile_coreml"))]:
        monkeypatch.delitem(sys.modules, name)
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *rest: None if name == "coremltools" else find(name, *rest))
    with pytest.raises(InputError, match=re.escape(extras.command("coreml"))):
        mil.load(mixed[0])


def test_the_programs_in_a_pte(tmp_path):
    pytest.importorskip("executorch.backends.apple.coreml.executorchcoreml", reason="this ExecuTorch has no Core ML backend")
    from executorch.backends.apple.coreml.compiler import CoreMLBackend
    from executorch.backends.apple.coreml.partition import CoreMLPartitioner
    from executorch.exir import to_edge_transform_and_lower

    class Summing(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = torch.nn.Linear(16, 8)
            self.register_buffer("seen", torch.zeros(1, 8))

        def forward(self, x):
            self.seen.copy_(self.seen + torch.nn.functional.silu(self.linear(x)))
            return torch.softmax(self.seen, -1)

    model, x = Summing().eval().requires_grad_(False), torch.randn(1, 16)
    specs = CoreMLBackend.generate_compile_specs(minimum_deployment_target=ct.target.iOS18, compute_precision=FP32)
    partitioner = CoreMLPartitioner(compile_specs=specs, take_over_mutable_buffer=True)
    lowered = to_edge_transform_and_lower(torch.export.export(model, (x,)), partitioner=[partitioner])
    (tmp_path / "m.pte").write_bytes(lowered.to_executorch().buffer)
    (program,) = mil.blobs_of_pte(tmp_path / "m.pte")
    (name,), state, folder = program.function().inputs, program.new_state(), program.folder
    for _ in range(3):
        (found,) = program.run({name: x.numpy()}, state).values()
        np.testing.assert_allclose(found, model(x), rtol=1e-5, atol=1e-6)
    del program
    assert not folder.exists()
    with pytest.raises(InputError, match="is not a file"):
        mil.blobs_of_pte(tmp_path / "absent.pte")
    (tmp_path / "noise.pte").write_bytes(b"noise" * 40)
    with pytest.raises(InputError, match="is not an ExecuTorch program"):
        mil.blobs_of_pte(tmp_path / "noise.pte")


@pytest.fixture(scope="module")
def coreml_bundle(bundle_of):
    from phi3mobile.bundle import open_bundle

    return open_bundle(bundle_of("tiny-gqa", "ios-gpu"))


def test_engine_agrees_with_itself_in_chunks_and_going_back(coreml_bundle):
    engine = open_engine(coreml_bundle)
    tokens = np.random.default_rng(0).integers(0, engine.info.vocab, 20)
    whole = engine.forward(tokens, 0)
    assert whole.shape == (20, engine.info.vocab) and whole.dtype == np.float32
    parts = [engine.forward(tokens[:9], 0), engine.forward(tokens[9:10], 9), engine.forward(tokens[10:], 10)]
    np.testing.assert_allclose(np.concatenate(parts), whole, rtol=1e-3, atol=1e-4)
    engine.forward(np.zeros(5, np.int64), 10)
    np.testing.assert_allclose(engine.forward(tokens[10:], 10), whole[10:], rtol=1e-3, atol=1e-4)
    seen = []
    engine.trace = lambda name, kind, outputs: seen.append(name)
    engine.forward(tokens[:1], 0)
    assert "layer_0" in seen
    engine.close()
    with pytest.raises(InputError, match="closed"):
        engine.forward(tokens, 0)


def test_engine_refuses(coreml_bundle):
    program, runtime, info = mil.load(coreml_bundle.program), coreml_bundle.manifest["runtime"], coreml_bundle.info
    engine = MilEngine(program, info, runtime)
    for tokens, position, message in (
        ([], 0, "0 tokens"),
        ([1], -1, "positions -1"),
        ([1, 2], info.max_context - 1, "the context has"),
        ([info.vocab], 0, "the vocabulary has"),
        ([1] * (info.max_chunk + 1), 0, "fit one forward"),
    ):
        with pytest.raises(InputError, match=message):
            engine.forward(np.array(tokens, np.int64), position)
    with pytest.raises(InputError, match="lacks functions"):
        MilEngine(program, EngineInfo(8, 8, 8), {"rows": 8, "key_step": 8})


def test_census_says_what_keeps_the_ane_out(coreml_bundle, capsys):
    from phi3mobile.cli import main

    found = {item.function: item for item in census(mil.load(coreml_bundle.program))}
    assert set(found) == set(coreml_bundle.manifest["runtime"]["functions"])
    decode = found["decode"].report()
    assert decode["operators"]["linear"] > 0 and "const" not in decode["operators"] and decode["weights"]["int4"] > 0
    assert "weights with a scale per block" in decode["off_ane"] and "gathers" in decode["off_ane"]
    main(["inspect", str(coreml_bundle.folder)])
    assert "not for the ANE" in capsys.readouterr().out


def test_census_of_widths_ranks_and_types():
    wide, narrow = Type("float16", (1, 20000)), Type("float32", (1, 1, 1, 1, 1, 2))
    feature = Feature("float16", (1, 20000))
    ops = (
        Op("add", "sum", {"x": Name("x"), "y": Name("x")}, (("a", wide),), ()),
        Op("reshape", "deep", {"x": Name("a"), "shape": np.array([1])}, (("b", narrow),), ()),
    )
    function = Function({"x": feature}, {"b": feature}, {}, Block((("x", wide),), ("b",), ops))
    (found,) = census(mil.Program({"main": function}, "main", Path()))
    assert found.off_ane == {"a dimension over 16384": ["sum", "deep"], "float32 values": ["deep"], "rank over 5": ["deep"]}
