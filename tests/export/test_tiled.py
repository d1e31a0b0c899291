"""Our delegate: bit for bit the same however a prompt is cut, near torch for every kind of segment, and damage is named."""

from __future__ import annotations

import numpy as np
import pytest
from exported import psnr_of_rows
from tiny import random_tokens

from phi3mobile.bundle import Bundle, open_bundle
from phi3mobile.engines.native import NativeEngine, native_library, open_native
from phi3mobile.errors import InputError
from phi3mobile.export.packed import PackedModel, load_packed
from phi3mobile.export.recipe import find_recipe
from phi3mobile.export.targets.executorch.write import to_executorch
from phi3mobile.models.checkpoint import open_checkpoint
from phi3mobile.models.form import Form
from phi3mobile.models.tensors import DOWN, GATE_UP, QKV, O

pytestmark = pytest.mark.skipif(native_library() is None, reason="the native library is not built: make native")
RECIPE = "host-fp32-kv"


@pytest.fixture(scope="module")
def bundle(bundle_of) -> Bundle:
    return open_bundle(bundle_of("tiny-gqa", RECIPE))


def test_no_weight_is_packed_and_every_cut_gives_the_same_bits(bundle):
    engine = open_native(bundle)
    assert engine.packed_cache == "none"
    tokens = np.random.default_rng(0).integers(3, bundle.info.vocab, 40)
    whole = engine.forward(tokens, 0)
    for cuts in ([7, 33], [1, 1, 38], [13, 12, 15], [1] * 40):
        at, logits = 0, []
        for count in cuts:
            logits.append(engine.forward(tokens[at : at + count], at))
            at += count
        assert np.array_equal(np.concatenate(logits), whole), cuts
    engine.close()


@pytest.mark.parametrize("name", ["tiny-gqa", "tiny-longrope", "small-tiny", "moe-tiny"])
def test_a_prefill_gives_the_last_row_of_a_forward_and_the_same_cache(bundle_of, name):
    opened = open_bundle(bundle_of(name, "host"))
    tokens = np.random.default_rng(1).integers(3, 60, 30)
    found = []
    for prefills in (False, True):
        engine = open_native(opened)
        assert engine.metadata("get_last_row") == [1]
        rows = []
        for long in (False, True):
            for at, end in ((0, 13), (13, 14), (14, 25)):
                given = tokens[at:end], at, long
                rows.append(engine.prefill(*given) if prefills else engine.forward(*given)[-1])
            rows += list(engine.forward(tokens[25:], 25, long))
        found.append(np.stack(rows))
        engine.close()
    assert np.array_equal(*found)


def test_a_prefill_of_rows_is_one_of_their_tokens(once, checkpoint_of):
    from phi3mobile.export.build import export

    bundle = once("seeing-host", lambda out: export(checkpoint_of("vision-tiny"), out, "host", 2048, method="rtn"))
    engine, tokens = open_native(open_bundle(bundle)), np.arange(3, 20)
    assert np.array_equal(engine.prefill_embeddings(engine.embed(tokens), 0), engine.forward(tokens, 0)[-1])
    with pytest.raises(InputError, match="embeddings of shape"):
        engine.prefill_embeddings(np.zeros((3, 5), np.float32), 0)
    with pytest.raises(InputError, match=r"positions 2040\.\.2056 were given"):
        engine.prefill(tokens, 2040)
    engine.close()


class Mixed(PackedModel):
    """Every form in turn: offsets in groups of 32, 8 bits, 4 bits."""

    def matrix_form(self, name: str) -> Form:
        tensor, wanted = self.config.tensors().get(name), super().matrix_form(name)
        if tensor is None or tensor.role not in (QKV, O, GATE_UP, DOWN):
            return wanted
        return [Form(4, 32, offsets=True), Form(8, tensor.shape[1]), wanted][(tensor.layer or 0) % 3]


def test_every_form_computes_what_torch_does(checkpoint_of, bundle, tmp_path):
    packed = Mixed(open_checkpoint(checkpoint_of("tiny-gqa")), find_recipe(RECIPE))
    tokens = random_tokens(packed.config, 40)
    to_executorch(packed, tmp_path / "a.pte", bundle.info.max_context, bundle.info.max_chunk, [2])
    engine = NativeEngine(tmp_path / "a.pte", bundle.info, None)
    rows = psnr_of_rows(load_packed(packed)(tokens)[0].numpy(), engine.forward(tokens[0].numpy(), 0))
    assert np.quantile(rows, 0.9) > 110 and rows.min() > 40
    engine.close()


@pytest.mark.parametrize(
    ("told", "instead", "said"),
    [
        (b'"version":2', b'"version":9', "another version of phi3mobile: export the bundle again"),
        (b'"hidden":', b'"hidDen":', "a segment without hidden: export the bundle again"),
        (b'"eps":', b'"epS":', "a segment without its norm"),
        (b'"qkv":', b'"o":  ', "a segment whose matrices do not fit each other"),
        (b'"tiles":"tiles_', b'"tiles":"tilez_', "the program lacks the data tilez_"),
        (b'"rows":', b'"rows":9', "have another size than their matrix"),
        (b'"group":32', b'"group":48', "a matrix of impossible sizes"),
        (b'"bits":4', b'"bits":8', "a matrix of impossible sizes"),
        (b'{"version"', b'["version"', "is not JSON"),
    ],
)
def test_what_does_not_fit_is_named(told, instead, said, bundle, tmp_path):
    data = bundle.program.read_bytes()
    at = data.index(told, data.index(b'{"version":2,"hidden"'))
    end = at + len(instead)  # a digit more overwrites one
    (tmp_path / "a.pte").write_bytes(data[:at] + instead + data[end:])
    with pytest.raises(InputError, match=said):
        NativeEngine(tmp_path / "a.pte", bundle.info, None)
