"""The .tflite and its engine: torch's logits, the same integers in one buffer, a cache that grows, errors."""

import json
import re
import shutil

import numpy as np
import pytest
from exported import psnr
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import TINY, random_tokens, tiny

pytest.importorskip("ai_edge_litert", reason="LiteRT is not installed: pip install 'phi3mobile[litert]'")

from ai_edge_litert import schema_py_generated as schema

from phi3mobile import extras
from phi3mobile.bundle import open_bundle
from phi3mobile.cli import main
from phi3mobile.engines import EngineInfo, litert, packed_cache
from phi3mobile.engines.litert import LitertEngine, check_litert, open_litert
from phi3mobile.engines.registry import open_engine
from phi3mobile.errors import InputError
from phi3mobile.export.build import export
from phi3mobile.export.packed import EMBEDDING, HEAD, PackedModel, load_packed
from phi3mobile.export.plan import check_pieces
from phi3mobile.export.recipe import find_recipe
from phi3mobile.export.targets import target_of
from phi3mobile.export.targets.litert.decoder import int4_bytes
from phi3mobile.export.targets.litert.write import to_litert
from phi3mobile.manifest import MANIFEST
from phi3mobile.models.checkpoint import open_checkpoint
from phi3mobile.models.form import Form
from phi3mobile.models.presets import PRESETS
from phi3mobile.models.quantized import Packed, pack_nibbles
from phi3mobile.session.session import Session


@pytest.fixture(scope="session")
def rounded(bundle_of, checkpoint_of):
    """Name of a preset -> (its LiteRT bundle, the same integers)."""

    def get(name):
        packed = PackedModel(open_checkpoint(checkpoint_of(name)), find_recipe("litert"))
        return open_bundle(bundle_of(name, "litert")), packed

    return get


# Parity


@pytest.mark.parametrize("name", TINY)
def test_the_program_computes_what_torch_does(name, rounded, monkeypatch):
    """Chunks, single and padded tokens, going back, both regimes, the cache's end; the cache grows and shrinks on the way."""
    monkeypatch.setattr(litert, "ROW_STEP", 16)
    bundle, packed = rounded(name)
    engine, model = open_engine(bundle), load_packed(packed, 256)
    tokens, original, chunk = random_tokens(packed.config, 256), packed.config.original_context, engine.info.max_chunk
    long = original is not None
    steps = [(0, 1, False), (1, 6, False), (6, 29, False), (29, 31, False), (12, 20, False), (20, 21, False)]
    steps += [(start, start + chunk, long) for start in range(0, 256 - chunk, chunk)]
    steps += [(256 - chunk, 255, long), (255, 256, long), (0, 9, False)] + ([(0, original + 1, False)] if long else [])
    for start, end, regime in steps:
        expected = model(tokens[:, start:end], start, regime)[0].numpy()
        assert psnr(expected, engine.forward(tokens[0, start:end].numpy(), start, regime)) >= 40, (start, end)
    engine.close()


def test_a_session_crosses_the_long_rope_switch_as_torch_does(rounded):
    from phi3mobile.engines.eager import EagerEngine

    bundle, packed = rounded("tiny-longrope")
    assert bundle.info.original_context == 32
    messages = [{"role": "user", "content": "hello"}]
    texts = [
        "".join(Session(bundle, engine=engine).generate(messages, max_tokens=40))
        for engine in (open_engine(bundle), EagerEngine(load_packed(packed, 256)))
    ]
    assert texts[0] == texts[1]


@settings(max_examples=12, deadline=None)
@given(st.lists(st.tuples(st.floats(0, 1), st.integers(1, 40)), min_size=1, max_size=6))
def test_any_walk_over_positions_gives_the_logits_of_one_forward(rounded, walk):
    """Each step begins at a share of what is filled. Rows kept while the cache changes its size are the right ones."""
    bundle, _ = rounded("tiny-window")
    tokens = random_tokens(tiny("tiny-window"), 256)[0].numpy()
    expected = _whole(bundle, tokens)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(litert, "ROW_STEP", 8)
        engine, filled = open_engine(bundle), 0
        for share, count in walk:
            start = int(share * filled)
            filled = min(start + count, 256)
            if filled > start:
                assert psnr(expected[start:filled], engine.forward(tokens[start:filled], start)) >= 40
        engine.close()


_known = {}


def _whole(bundle, tokens):
    if bundle.folder not in _known:
        engine = open_engine(bundle)
        parts = [engine.forward(tokens[start : start + 64], start) for start in range(0, 256, 64)]
        _known[bundle.folder] = np.concatenate(parts)
    return _known[bundle.folder]


# The file


def read_model(path):
    data = path.read_bytes()
    return data, schema.ModelT.InitFromPackedBuf(data)


def weight_bytes(data, model, tensor):
    buffer = model.buffers[tensor.buffer]
    return np.frombuffer(data, np.uint8, buffer.size, buffer.offset)


@pytest.mark.parametrize("name", ["tiny-gqa", "tiny-tied"])
def test_dequantized_weights_are_bit_exact_and_stored_once(name, rounded):
    bundle, packed = rounded(name)
    data, model = read_model(bundle.program)
    graphs = {graph.name.decode(): {t.name.decode(): t for t in graph.tensors} for graph in model.subgraphs}
    assert set(graphs) == set(bundle.manifest["runtime"]["functions"]) == {"decode", "prefill_8", "prefill_32", "prefill_128"}
    names = [n for n in (*packed.checkpoint.names(), HEAD) if packed.form_of(n)]
    for weight in dict.fromkeys(names):
        stored = EMBEDDING if weight == HEAD and name == "tiny-tied" else weight
        tensors = [graph[stored] for graph in graphs.values()]
        assert len({tensor.buffer for tensor in tensors}) == 1, weight
        tensor, expected = tensors[0], packed.tensor(weight)
        codes = weight_bytes(data, model, tensor)
        if expected.bits == 8:
            assert tensor.type == schema.TensorType.INT8 and not tensor.quantization.zeroPoint.any()
            values = codes.view(np.int8).reshape(expected.shape) * tensor.quantization.scale[:, None]
        else:
            assert tensor.type == schema.TensorType.INT4 and tensor.quantization.details.blockSize == 32
            scales = list(graphs["decode"].values())[tensor.quantization.details.scales]
            halves = weight_bytes(data, model, scales).view(np.float16).astype(np.float32)
            nibbles = np.stack([codes << 4, codes & 0xF0], -1).view(np.int8) >> 4
            values = (nibbles.reshape(-1, 32) * halves[:, None]).reshape(expected.shape)
        assert np.array_equal(values, expected.dequantized().numpy()), weight
    assert bundle.manifest["runtime"]["one_table"] == (name == "tiny-tied")


@given(st.lists(st.integers(-8, 7), min_size=2, max_size=64).filter(lambda codes: len(codes) % 2 == 0))
def test_int4_bytes_are_twos_complement_with_the_even_column_low(codes):
    import torch

    row = torch.tensor([codes], dtype=torch.int8)
    data = int4_bytes(Packed(4, len(codes), pack_nibbles(row), torch.ones(1, 1)))[0]
    pairs = zip(codes[::2], codes[1::2], strict=True)
    assert data.tolist() == [(low & 15) | (high & 15) << 4 for low, high in pairs]


def test_a_killed_export_leaves_nothing(checkpoint_of, tmp_path, monkeypatch):
    from phi3mobile.export.targets.litert import package

    def fail(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(package, "_add_tokenizer", fail)
    with pytest.raises(KeyboardInterrupt):
        export(checkpoint_of("tiny-gqa"), tmp_path / "out", "litert", method="rtn")
    assert not list(tmp_path.iterdir())


# Packed weights


def test_packed_weights_are_written_once_and_mapped_after(rounded):
    bundle, _ = rounded("tiny-mha")
    tokens = np.arange(9)
    first = open_engine(bundle)
    expected = first.forward(tokens, 0)
    sha = bundle.manifest["files"]["model.tflite"]["sha256"]
    (file,) = packed_cache.folder().glob(f"{sha[:32]}-litert-*{packed_cache.SUFFIX}")
    made = file.stat().st_mtime_ns
    second = open_engine(bundle)  # while the first one is open
    assert np.array_equal(second.forward(tokens, 0), expected) and file.stat().st_mtime_ns == made
    assert not list(packed_cache.folder().glob(f".{file.name}*"))
    first.close(), second.close()


def test_without_a_place_for_packed_weights_the_engine_computes_the_same(rounded, monkeypatch):
    bundle, _ = rounded("tiny-gqa")
    engine = open_engine(bundle)
    expected = engine.forward(np.arange(9), 0)
    engine.close()
    monkeypatch.setattr(packed_cache, "folder", lambda: bundle.program / "below a file")
    engine = open_engine(bundle)
    assert np.array_equal(engine.forward(np.arange(9), 0), expected)
    engine.close()


# Verbs


def test_run_and_verify_take_the_bundle(rounded, capsys):
    bundle, _ = rounded("tiny-gqa")
    assert main(["run", str(bundle.folder), "hello there", "--max-tokens", "4"]) == 0
    assert main(["verify", str(bundle.folder), "--prompt", "the cat sat on the mat"]) == 0
    document = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert document["passed"] and list(document["comparisons"]) == ["weights", "int8 activations", "4 bit"]
    assert main(["inspect", str(bundle.folder)]) == 0
    assert "LiteRT" in capsys.readouterr().out


# Errors


@pytest.mark.parametrize(
    ("tokens", "position", "message"),
    [
        ([], 0, "0 tokens were given: 1..128 fit one forward"),
        ([1] * 129, 0, "129 tokens were given"),
        ([1], 256, "positions 256..256 were given: the context has 256"),
        ([1], -1, "positions -1..-1"),
        ([-1], 0, "token -1..-1 was given: the vocabulary has 304"),
        ([3, 304], 0, "token 3..304"),
    ],
)
def test_wrong_forwards_are_refused(tokens, position, message, rounded):
    engine = open_engine(rounded("tiny-gqa")[0])
    with pytest.raises(InputError, match=message):
        engine.forward(np.array(tokens, np.int64), position)
    engine.close()


def test_a_closed_engine_says_so(rounded):
    engine = open_engine(rounded("tiny-gqa")[0])
    engine.close()
    with pytest.raises(InputError, match="the engine is closed"):
        engine.forward(np.zeros(1, np.int64), 0)


def test_phi3_small_is_refused_with_its_layer(checkpoint_of, tmp_path):
    refused = r"recipe litert has no layernorm \(every layer\), .*blocksparse \(layer 0\), .*, which this model needs"
    with pytest.raises(InputError, match=rf"{refused}; take ios-gpu, android-cpu, .*"):
        export(checkpoint_of("small-tiny"), tmp_path / "out", "litert")
    assert not list(tmp_path.iterdir())


def test_other_groups_than_multiples_of_32_are_named(checkpoint_of, tmp_path):
    from dataclasses import replace

    packed = PackedModel(open_checkpoint(checkpoint_of("tiny-gqa")), replace(find_recipe("litert"), group=0, embedding_bits=8))
    packed.form_of = lambda name, plain=packed.form_of: Form(4, 16) if "down_proj" in name else plain(name)
    with pytest.raises(InputError, match=r"model\.layers\.0\.mlp\.down_proj\.weight has a scale for 16 columns"):
        to_litert(packed, tmp_path, 64, 8)


@pytest.mark.parametrize(("context", "chunk"), [(8, 16), (8, 0)])
def test_a_chunk_past_the_context_is_refused(context, chunk, checkpoint_of, tmp_path):
    packed = PackedModel(open_checkpoint(checkpoint_of("tiny-gqa")), find_recipe("litert"))
    with pytest.raises(InputError, match="tokens of one prefill step"):
        to_litert(packed, tmp_path, context, chunk)


def test_a_context_past_the_models_is_refused(checkpoint_of, tmp_path):
    with pytest.raises(InputError, match="context 257: this model takes 1 to 256"):
        export(checkpoint_of("tiny-gqa"), tmp_path / "out", "litert", 257)


def test_a_damaged_program_is_refused(rounded, tmp_path):
    bundle, _ = rounded("tiny-gqa")
    copy = shutil.copytree(bundle.folder, tmp_path / "copy")
    program = copy / "model.tflite"
    program.write_bytes(program.read_bytes()[:-1])
    with pytest.raises(InputError, match=r"model\.tflite has \d+ bytes, the manifest says \d+; copy the bundle again"):
        open_bundle(copy)
    program.write_bytes(b"no program at all" * 50)
    with pytest.raises(InputError, match=r"model\.tflite: LiteRT can't load it .*; export it again"):
        LitertEngine(program, bundle.info, bundle.manifest["runtime"])


def test_a_manifest_that_does_not_fit_the_program_is_refused(rounded):
    bundle, _ = rounded("tiny-gqa")
    with pytest.raises(InputError, match="lacks functions; export with the recipe litert"):
        LitertEngine(bundle.program, bundle.info, {})
    with pytest.raises(InputError, match="lacks the signatures prefill_7"):
        LitertEngine(bundle.program, bundle.info, {"functions": {"decode": 1, "prefill_7": 7}})
    with pytest.raises(InputError, match="-1 threads were asked for"):
        LitertEngine(bundle.program, EngineInfo(304, 256, 128), bundle.manifest["runtime"], threads=-1)


def test_an_older_litert_is_refused(rounded, tmp_path):
    check_litert("2.3.0", "2.3.1"), check_litert("2.3.0", "2.4.0"), check_litert("2.3.0", "3.0.0")
    with pytest.raises(InputError, match=r"made for LiteRT 2\.3\.0, installed is 2\.2\.9: pip install 'ai-edge"):
        check_litert("2.3.0", "2.2.9")
    copy = shutil.copytree(rounded("tiny-gqa")[0].folder, tmp_path / "copy")
    manifest = json.loads((copy / MANIFEST).read_text())
    manifest["runtime"]["version"] = "99.0.0"
    (copy / MANIFEST).write_text(json.dumps(manifest))
    with pytest.raises(InputError, match=r"made for LiteRT 99\.0\.0"):
        open_litert(open_bundle(copy))


def test_what_is_missing_is_named_before_any_work(checkpoint_of, rounded, tmp_path, monkeypatch):
    bundle, _ = rounded("tiny-gqa")
    find = litert.importlib.util.find_spec
    monkeypatch.setattr(litert.importlib.util, "find_spec", lambda name: None if name == "ai_edge_litert" else find(name))
    with pytest.raises(InputError, match=re.escape(f"needs the module ai_edge_litert: {extras.command('litert')}")):
        export(checkpoint_of("tiny-gqa"), tmp_path / "out", "litert")
    with pytest.raises(InputError, match="needs ai-edge-litert"):
        open_engine(bundle)
    assert not list(tmp_path.iterdir())


def test_every_dense_preset_has_only_pieces_of_the_target():
    recipe = find_recipe("litert")
    for config in PRESETS.values():
        sparse = any(config.blocksparse(layer) for layer in range(config.num_hidden_layers))
        if not sparse and config.block(0).routing is None and config.vision is None:
            check_pieces(config, recipe, target_of(recipe))
            recipe.check(config)
