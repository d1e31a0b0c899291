"""phi-3-small's evicting KV cache in a bundle: sessions that go back far, what the manifest says of it, memory it takes."""

from __future__ import annotations

import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from exported import LINES, psnr, talking_checkpoint
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import tiny

from phi3mobile.bundle import open_bundle
from phi3mobile.engines.eager import EagerEngine
from phi3mobile.engines.native import native_library
from phi3mobile.engines.registry import open_engine
from phi3mobile.export.build import export
from phi3mobile.export.cards import bundle_card, checkpoint_card
from phi3mobile.export.packed import PackedModel, load_packed
from phi3mobile.export.recipe import find_recipe
from phi3mobile.export.targets.executorch.attention import NativeAttention, Place, eviction_of
from phi3mobile.models.attend import attend
from phi3mobile.models.blocksparse import Pattern, evicting_cache
from phi3mobile.models.checkpoint import open_checkpoint
from phi3mobile.models.presets import PRESETS
from phi3mobile.models.rope import apply_rope
from phi3mobile.session.session import Session

needs_kernels = pytest.mark.skipif(native_library() is None, reason="the native library is not built: make native")
SHAPE = {
    "num_hidden_layers": 2,
    "hidden_size": 1024,
    "head_dim": 128,
    "max_position_embeddings": 8192,
    "original_max_position_embeddings": 8192,
}
CONTEXT, BACK = 8192, 520


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return talking_checkpoint(tmp_path_factory.mktemp("evicting") / "checkpoint", "small-tiny", **SHAPE)


@pytest.fixture(scope="module")
def bundle(checkpoint):
    """One sparse and one dense layer; the sparse one's cache keeps every second remote block."""
    return open_bundle(export(checkpoint, checkpoint.parent / "bundle", "host", CONTEXT, method="rtn"))


@needs_kernels
def test_a_session_that_goes_back_far_has_the_cache_of_a_fresh_one(bundle):
    story, events = " ".join(LINES * 9), []
    edited = story.replace("cat", "dog")  # from the first words on
    plan = [story, story + LINES[0], story[:-200], story[:400], story, edited, edited[:600] + LINES[1], edited, story]
    with Session(bundle, on_event=events.append) as session, Session(bundle) as fresh:
        reused = []
        for prompt in plan:
            "".join(session.complete(prompt, max_tokens=9, lookup=len(reused) % 2 == 1))
            reused.append(session.statistics.reused_tokens)
            tokens = session._rows.tokens
            for at in range(0, len(tokens), 128):
                fresh.engine.forward(np.array(tokens[at : at + 128]), at)
            last = np.array(tokens[-1:]), len(tokens) - 1
            assert psnr(fresh.engine.forward(*last), session.engine.forward(*last)) >= 40
    assert len(session.parts.tokenizer.encode(story)) > BACK
    assert reused[1] > BACK and reused[2] > BACK  # the next turn, and back a little
    assert reused[3] == reused[5] == reused[6] == reused[8] == 0 < min(reused[4], reused[7])
    assert len(events) == 4 and all("prefilled again" in event for event in events)


@needs_kernels
def test_the_program_computes_what_the_torch_model_does(bundle, checkpoint):
    eager = EagerEngine(load_packed(PackedModel(open_checkpoint(checkpoint), find_recipe("host")), CONTEXT))
    assert eager.info.back is None and bundle.info.back == BACK
    engine, tokens = open_engine(bundle), np.random.default_rng(0).integers(8, 250, 900)
    for start, end in ((0, 128), (128, 199), *((at, at + 100) for at in range(199, 899, 100)), (700, 790), (790, 900)):
        got, want = engine.forward(tokens[start:end], start), eager.forward(tokens[start:end], start)
        said = [token for token in range(304) if token not in (7, 250, 251)]
        assert psnr(want[:, said], got[:, said]) >= 30
    with pytest.raises(RuntimeError, match=f"too far behind 900 for this evicted KV cache.* go back by {BACK}"):
        engine.forward(tokens[100:101], 100)
    assert engine.forward(tokens[:9], 0).shape == (9, 304)
    engine.close()


@needs_kernels
def test_manifest_and_card_tell_what_is_saved(bundle):
    memory, model = bundle.manifest["memory"], bundle.manifest["model"]
    assert model["back"] == BACK
    row = 2 * 4 * (128 + 4)  # k and v, KV heads, int8 and its scale
    full, kept = 2 * CONTEXT * row, (CONTEXT + CONTEXT // 2 + 34 * 8) * row  # half the blocks and a ring of 34
    assert memory["kv_per_token"] * CONTEXT == pytest.approx(kept, abs=CONTEXT) and memory["kv_evicted"] == full - kept
    assert memory["peak"]["512"] == memory["weights"] + memory["activations"] + (512 + 256 + 256) * row
    assert bundle_card(bundle)["KV cache"].startswith("13.3 MB at context, 77% of a full one")
    assert "phi3mobile::blocksparse_attention_evicting_int8.out" in bundle.manifest["runtime"]["operators"]


MEMORY = """
import sys, numpy as np
from phi3mobile.bench.measure import memory_now
from phi3mobile.bundle import open_bundle
from phi3mobile.engines.registry import open_engine
bundle = open_bundle(sys.argv[1])
engine, seen = open_engine(bundle), []
for position in range(0, bundle.info.max_context, 128):
    engine.forward(np.ones(128, dtype=np.int64), position)
    seen.append(memory_now().anonymous)
print(*seen)
"""


@needs_kernels
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc/self/status")
def test_the_cache_takes_what_the_memory_table_says(bundle):
    command = [sys.executable, "-c", MEMORY, str(bundle.folder)]
    seen = list(map(int, subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()))
    peak = {int(tokens): size for tokens, size in bundle.manifest["memory"]["peak"].items()}
    for tokens in (2048, 8192):
        assert seen[tokens // 128 - 1] - seen[3] == pytest.approx(peak[tokens] - peak[512], rel=0.10)


@needs_kernels
def test_the_benchmarks_go_back_as_far_as_they_like(bundle):
    from phi3mobile.bench.runtimes import Ours
    from phi3mobile.bench.steps import Steps

    tokens = np.random.default_rng(0).integers(8, 250, 900).tolist()
    used, fresh = Ours(bundle.folder, CONTEXT, 0), Ours(bundle.folder, CONTEXT, 0)
    for at in range(0, 900, 128):
        used.forward(tokens[at : at + 128], at)
    fresh.forward(tokens[:100], 0)
    assert np.array_equal(used.forward([9], 100), fresh.forward([9], 100))
    steps = Steps(open_engine(bundle))
    for step in ("decode:800:2:2", "decode:100:2:1", "prefill:900:1", "decode:790:2:1", "decode:20:2:1"):
        assert all(seconds > 0 for line in steps.run(step) if line["kind"] == "decode" for seconds in line["seconds"])


def test_a_checkpoints_card_tells_what_host_recipes_save():
    card = checkpoint_card(SimpleNamespace(config=PRESETS["phi-3-small-8k"]))
    assert card["evicted by host recipes"] == "2048: 6%, 4096: 16%, 8192: 20%"
    assert "evicted by host recipes" not in checkpoint_card(SimpleNamespace(config=PRESETS["phi-3-mini-4k"]))


def test_only_sparse_layers_of_our_kernels_evict_and_only_where_it_saves():
    config, host = tiny("small-tiny", **SHAPE), find_recipe("host")
    assert eviction_of(config, host, 0, 1024).rows == (32 * 2 + 34) * 8
    assert eviction_of(config, host, 1, 1024) is None  # dense
    assert eviction_of(config, host, 0, 256) is None  # the ring alone is longer
    assert eviction_of(config, find_recipe("android-cpu"), 0, 1024) is None


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 3000), st.integers(0, 64))
def test_rows_of_tokens_are_bounds_of_what_is_written(tokens, back):
    found = evicting_cache(Pattern(8, 2, 8, 3, 8, 1), 3000, back)
    written = [{found.slot(g, j) for j in range(-(-tokens // 8))} for g in range(2)]
    most = max(map(len, written)) * 8
    assert most - 8 * 8 <= found.rows_for(tokens) <= most + 8 * 8
    assert found.rows_for(tokens) <= found.rows


@settings(max_examples=30, deadline=None)
@given(
    st.lists(st.integers(1, 40), min_size=1, max_size=6),
    st.booleans(),
    st.sampled_from([(8, 3, 4), (4, 1, 3), (5, 2, 8)]),
    st.sampled_from([2, 4]),
)
def test_the_evicting_form_of_attention_equals_the_models(lengths, homo, numbers, kv_heads):
    names = ("blocksparse_block_size", "blocksparse_num_local_blocks", "blocksparse_vert_stride")
    config = tiny(
        "small-tiny", num_key_value_heads=kv_heads, blocksparse_homo_head_pattern=homo, **dict(zip(names, numbers, strict=True))
    )
    pattern, generator, position = config.blocksparse(0), torch.Generator().manual_seed(0), 0
    evicting = evicting_cache(pattern, 240, 9)
    if evicting is None:
        return
    attention = NativeAttention(config, 240, 32, pattern, evicting)
    k_cache, v_cache = torch.zeros(1, 240, kv_heads, 16), torch.zeros(1, 240, kv_heads, 16)
    for length in lengths:
        end = position + length
        q, k, v = (torch.randn(1, length, count, 16, generator=generator) for count in (8, kv_heads, kv_heads))
        cos, sin = torch.randn(length, 8, generator=generator), torch.randn(length, 8, generator=generator)
        k_cache[:, position:end], v_cache[:, position:end] = apply_rope(k, cos, sin), v
        expected = attend(apply_rope(q, cos, sin), k_cache, v_cache, position, config.attention_scale, pattern=pattern)[0]
        place = Place(torch.tensor([position]), position, cos, sin, None, [])
        ours = attention(place, torch.cat([part[0].flatten(1) for part in (q, k, v)], 1))
        assert (ours - expected).abs().max() < 1e-5
        position = end
