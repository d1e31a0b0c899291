"""Recipes with our own kernels: the same ladder's last rungs, the packed-weight file, and memory as the manifest says."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
from exported import psnr, rounded_demo
from test_parity_ladder import GOLDEN, REPEAT, reference, same_logits, some_tokens

from phi3mobile.bundle import open_bundle
from phi3mobile.engines.native import native_library
from phi3mobile.engines.registry import open_engine
from phi3mobile.errors import InputError
from phi3mobile.export.plan import plan_export
from phi3mobile.export.verify import source_of, verify
from phi3mobile.session.sampling import GREEDY
from phi3mobile.session.session import Session

pytestmark = pytest.mark.skipif(native_library() is None, reason="the native library is not built: make native")


def both(name, recipe, checkpoint_of, bundle_of):
    bundle = open_bundle(bundle_of(name, recipe))
    return reference(checkpoint_of(name), bundle), open_engine(bundle)


SLOW = [pytest.param(name, marks=pytest.mark.slow) for name in ("tiny-partial", "tiny-window")]


@pytest.mark.parametrize("name", ["tiny-gqa", "tiny-longrope", *SLOW])
def test_float32_cache_equals_the_torch_model(name, checkpoint_of, bundle_of):
    engines = both(name, "host-fp32-kv", checkpoint_of, bundle_of)
    tokens = some_tokens(engines[1], 60)
    same_logits(*engines, tokens[:29])
    for position in range(29, 33):
        same_logits(*engines, tokens[position : position + 1], position)
    same_logits(*engines, tokens[10:40], 10)  # back over cached rows
    same_logits(*engines, tokens[:20], 0, long=True)


@pytest.mark.slow
def test_int8_cache_costs_little(checkpoint_of, bundle_of):
    torch_engine, program = both("tiny-partial", "host", checkpoint_of, bundle_of)
    tokens = some_tokens(program, 40)
    assert psnr(torch_engine.forward(tokens, 0), program.forward(tokens, 0)) >= 30
    assert open_bundle(bundle_of("tiny-partial", "host")).manifest["recipe"]["kv_bits"] == 8


@pytest.fixture(scope="module")
def demo_host(demo_checkpoint, tmp_path_factory):
    """The demo model under recipe host."""
    return rounded_demo(demo_checkpoint, tmp_path_factory.mktemp("host") / "bundle", "host")


@pytest.mark.parametrize("sentence", GOLDEN)
def test_golden_text(demo_host, sentence):
    with Session(demo_host) as session:
        text = "".join(session.generate([{"role": "user", "content": REPEAT + sentence}], max_tokens=48, sampling=GREEDY))
    assert text == sentence and session.statistics.finish_reason == "stop"


def test_lookup_quotes_the_same_text_with_fewer_forwards(demo_host):
    message = [{"role": "user", "content": REPEAT + GOLDEN[1]}]
    with Session(demo_host) as session:
        plain = "".join(session.generate(message, max_tokens=48, sampling=GREEDY))
        forwards = session.statistics.forwards
        session.reset()
        assert "".join(session.generate(message, max_tokens=48, sampling=GREEDY, lookup=True)) == plain
        assert session.statistics.accepted > 0 and session.statistics.forwards < forwards


MEMORY = """
import sys, numpy as np
from phi3mobile.bench.measure import memory_now
from phi3mobile.bundle import open_bundle
from phi3mobile.engines.registry import open_engine
from phi3mobile.errors import InputError
from phi3mobile.export.plan import plan_export
from phi3mobile.export.verify import source_of, verify
bundle = open_bundle(sys.argv[1])
before = memory_now()
engine = open_engine(bundle)
count, chunk = int(sys.argv[2]), engine.info.max_chunk
for position in range(0, count, chunk):
    engine.forward(np.ones(min(chunk, count - position), dtype=np.int64), position)
now = memory_now()
print(engine.packed_cache.split(":")[0], now.resident - before.resident, now.anonymous - before.anonymous)
"""


def measured(bundle, count):
    done = subprocess.run(
        [sys.executable, "-c", MEMORY, str(bundle), str(count)], capture_output=True, text=True, check=True
    ).stdout.split()
    return done[0], int(done[1]), int(done[2])


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc/self/status")
def test_the_manifests_memory_is_what_a_process_takes(demo_host):
    bundle = open_bundle(demo_host)
    memory, context = bundle.manifest["memory"], bundle.info.max_context
    state, resident, anonymous = measured(demo_host, context)
    assert state == "none"
    assert resident == pytest.approx(memory["peak"][str(context)], rel=0.10)
    assert anonymous < memory["kv_per_token"] * context + 2 * memory["activations"] + 20e6  # the weights are the file's


def test_logits_of_a_later_start_are_the_same(bundle_of):
    bundle = open_bundle(bundle_of("tiny-gqa", "host-fp32-kv"))
    tokens = np.arange(20)
    first = open_engine(bundle)
    logits = first.forward(tokens, 0)
    first.close()
    again = open_engine(bundle)
    assert again.packed_cache == "none" and np.array_equal(again.forward(tokens, 0), logits)


@pytest.fixture(scope="module")
def coarse_bundle(bundle_of):
    """A tiny model with a 4-bit KV cache."""
    return open_bundle(bundle_of("tiny-partial", "host-kv4"))


def test_4_bit_cache_equals_torch_beyond_its_int8_rows(coarse_bundle, checkpoint_of):
    """verify's layers: prefill and decode where most keys have 4 bits."""
    prompt = np.random.default_rng(1).integers(3, 200, 210).tolist()
    source = source_of(coarse_bundle, str(checkpoint_of("tiny-partial")))
    weights, layers, _ = verify(coarse_bundle, source, [prompt])
    assert weights.passed and layers.passed, layers.document()


def test_4_bit_cache_in_the_manifest(coarse_bundle, bundle_of):
    memory, context = coarse_bundle.manifest["memory"], coarse_bundle.info.max_context
    rows = 3 * 2 * 2 * ((16 + 2) * context + (32 + 4) * 256)  # layers, K and V, KV heads
    assert coarse_bundle.manifest["recipe"]["kv_bits"] == 4
    assert memory["kv_per_token"] == -(-rows // context) and 0 <= memory["kv_evicted"] < context
    other = open_bundle(bundle_of("tiny-partial", "host")).manifest["memory"]
    assert memory["activations"] == other["activations"] + 3 * 16  # a mark in each layer


def test_a_4_bit_cache_is_saved_and_restored(coarse_bundle, tmp_path):
    tokens = np.random.default_rng(2).integers(3, 200, 200)
    engine = open_engine(coarse_bundle)
    for position in range(0, 200, 100):
        engine.forward(tokens[position : position + 100], position)
    engine.save_state(tmp_path / "state", "about")
    want = engine.forward(tokens[:3], 200)
    engine.close()
    other = open_engine(coarse_bundle)
    other.load_state(tmp_path / "state")
    assert np.array_equal(other.forward(tokens[:3], 200), want)


def test_4_bit_cache_refuses_what_it_has_no_kernel_for(checkpoint_of, tmp_path):
    with pytest.raises(InputError, match=r"host-kv4 keeps keys and values in groups of 32: heads of 16 .* take host"):
        plan_export(checkpoint_of("tiny-gqa"), tmp_path / "out", "host-kv4", method="rtn")
    with pytest.raises(InputError, match="host-kv4 has no blocksparse"):
        plan_export(checkpoint_of("small-tiny"), tmp_path / "out", "host-kv4", method="rtn")
