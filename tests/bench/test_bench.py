"""Benchmarks: what is computed from the times, that peers compute the same model, and that failures are named."""

from __future__ import annotations

import argparse
import json
import os
import signal
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from phi3mobile.bench import host, peers
from phi3mobile.bench.host import compare, cosine, depths_for, summary, together
from phi3mobile.bench.measure import ReadBandwidth, paired_ratio, percentile
from phi3mobile.bench.peers import Entry, missing_peers, our_entry
from phi3mobile.bench.table import rows_of, title_of
from phi3mobile.bench.verb import add_arguments, check
from phi3mobile.bench.worker import Worker, WorkerDied
from phi3mobile.bundle import open_bundle
from phi3mobile.cli import main
from phi3mobile.errors import InputError
from phi3mobile.export.demo_model import demo_recipe
from phi3mobile.models.checkpoint import open_checkpoint


@pytest.fixture
def worker():
    worker = Worker()
    yield worker
    worker.close()


# What is computed


@given(st.lists(st.floats(0.001, 1000), min_size=1, max_size=30))
def test_percentiles_lie_between_the_extremes(values):
    low, middle, high = (percentile(values, share) for share in (5, 50, 95))
    assert min(values) <= low <= middle <= high <= max(values)


def test_a_ratio_is_taken_within_rounds():
    # The second round ran on a machine half as fast: it does not move the ratio.
    assert paired_ratio([2.0, 4.0, 2.0], [1.0, 2.0, 1.0]) == 2
    with pytest.raises(ValueError, match="shorter"):
        paired_ratio([1.0, 2.0], [1.0])


@given(st.integers(2, 10_000))
def test_default_depths_fit_any_context(context):
    count = min(32, context // 2)
    depths = depths_for(context, None, count)
    assert depths == sorted(set(depths)) and all(1 <= depth <= context - count for depth in depths)


def test_depths_are_checked_against_the_context():
    assert depths_for(4096, None) == [128, 1024, 4064]
    assert depths_for(2048, [1024, 1, 1024]) == [1, 1024]
    with pytest.raises(InputError, match=r"--depths 2017: 1\.\.2016 leave room for 32 tokens in this context of 2048"):
        depths_for(2048, [128, 2017])


def test_attention_reads_no_more_than_its_window():
    entry = Entry("phi3mobile", Path("x"), 1000, 10, window=50)
    assert [entry.bytes_read(depth) for depth in (20, 50, 80)] == [1200, 1500, 1500]


def test_cosine():
    assert cosine([1, 2, 3], [2, 4, 6]) == pytest.approx(1) and cosine([1, 0], [0, 3]) == 0


def test_the_read_bandwidth_is_that_of_a_machine():
    meter = ReadBandwidth(2, 8 << 20)
    assert 1e8 < meter.measure() < 1e13
    meter.close()


def samples(seconds: float) -> dict:
    """Two rounds of a runtime that takes `seconds` a token in the first and twice that in the second."""
    times = [[seconds] * 3, [seconds * 2] * 3]
    load = {"load_s": 1.0, "anonymous_bytes": 5_000_000, "peak_bytes": 7_000_000}
    read = [98_000.0 * 0.01 / seconds, 49_000.0 * 0.01 / seconds]  # bytes per second around each of the two decodes
    return {
        ("cold", 0): [load],
        ("warm", 0): [load | {"load_s": 0.5}],
        ("decode", 8): times,
        ("read", 8): read,
        ("prefill", 16): [seconds, seconds * 2],
        ("memory", 0): [load],
        ("logits", 0): [[1.0, 2.0]],
        ("left", 0): [3_000_000_000, 2_000_000_000],
    }


def test_the_summary_of_known_times(tmp_path):
    path = tmp_path / "weights"
    path.write_bytes(b"x" * 1000)
    entries = {name: Entry(name, path, 900, 10) for name in ("phi3mobile", "slow")}
    machine = {("read", 8): [98_000.0, 49_000.0], ("busy", 8): [0.0, 3.0]}
    document = summary({"machine": machine, "phi3mobile": samples(0.01), "slow": samples(0.03)}, entries)
    ours, slow = document["runtimes"]["phi3mobile"], document["runtimes"]["slow"]
    assert list(document["runtimes"]) == ["phi3mobile", "slow"] and document["others_cpu_percent"] == 1.5
    assert ours["decode"]["8"]["tokens_per_s"] == 66.7 and ours["decode"]["8"]["share_of_read_bandwidth"] == 1
    assert slow["ours_is_faster_by"] == {"decode_8": 3, "prefill_16": 3} and slow["logits_cosine"] == 1
    assert "ours_is_faster_by" not in ours and ours["file_bytes"] == 1000 and ours["load_warm_s"] == 0.5
    rows = rows_of(slow)
    assert rows["decode at depth 8"] == "22.2 tokens/s  (ours 3.00x)" and rows["TTFT 16"] == "45 ms"
    assert rows_of(ours)["decode at depth 8"] == "66.7 tokens/s"
    assert rows["memory left meanwhile"] == "2.00 GB"
    head = {"bundle": "b", "recipe": "host", "context": 40, "threads": 2, "rounds": 2, "export_s": 9.0}
    head |= {"loaded_together": [["phi3mobile"], ["slow"]]}
    title = title_of(document | head | {"export_peak_bytes": 1e9})
    assert "exported in 9 s with 1.00 GB peak" in title and "together, for memory: phi3mobile | slow;" in title


# Peers


@pytest.mark.parametrize("name", ["tiny-gqa", "tiny-tied", "tiny-window"])
@pytest.mark.parametrize("kind", ["F16", "Q8_0", "Q4_0"])
def test_a_gguf_holds_the_checkpoint(checkpoint_of, tmp_path, name, kind):
    import gguf

    from phi3mobile.bench.to_gguf import Kind, _tensors, write_gguf

    checkpoint = open_checkpoint(checkpoint_of(name))
    file = tmp_path / "model.gguf"
    write_gguf(checkpoint, file, Kind[kind], Kind.Q8_0)
    expected, found = dict(_tensors(checkpoint)), {t.name: t for t in gguf.GGUFReader(file).tensors}
    assert list(found) == list(expected) and not list(tmp_path.glob(".*"))
    for tensor, values in expected.items():
        read = gguf.quants.dequantize(found[tensor].data, found[tensor].tensor_type).reshape(values.shape)
        allowed = {"F32": 1e-7, "F16": 1e-3, "Q8_0": 0.01, "Q4_0": 0.15}[found[tensor].tensor_type.name]
        assert np.abs(read - values).max() <= allowed * np.abs(values).max(), tensor


@pytest.mark.parametrize(("kind", "least"), [("F16", 0.9999), ("Q8_0", 0.99)])
@pytest.mark.parametrize("name", ["tiny-gqa", "tiny-tied"])
def test_llama_cpp_computes_our_logits(checkpoint_of, tmp_path, name, kind, least):
    """Prefill and decode of an unquantized model of ours against the GGUF of its weights."""
    pytest.importorskip("llama_cpp", reason="make bench installs llama-cpp-python")
    from phi3mobile.bench.runtimes import LlamaCpp
    from phi3mobile.bench.to_gguf import Kind, write_gguf
    from phi3mobile.engines.eager import EagerEngine
    from phi3mobile.models.loading import model_from

    checkpoint = open_checkpoint(checkpoint_of(name))
    write_gguf(checkpoint, tmp_path / "model.gguf", Kind[kind])
    reference = EagerEngine(model_from(checkpoint, 64), 64)
    peer = LlamaCpp(tmp_path / "model.gguf", 64, 1)
    tokens = np.random.default_rng(0).integers(0, peer.vocab, 40)
    expected = reference.forward(tokens, 0)
    assert cosine(peer.forward(tokens[:30].tolist(), 0), expected[29]) > least
    for position in (30, 31, 10):  # on, and back
        assert cosine(peer.forward([int(tokens[position])], position), expected[position]) > least


@pytest.mark.slow
def test_every_4_bit_runtime_computes_the_model(bundle_of, checkpoint_of):
    """Ours and each installed peer against the float model, one token after the other: 4-bit errors only.

    Single positions of these random weights are off by up to 0.13, so the mean; another position's logits are the control.
    """
    from phi3mobile.bench.runtimes import RUNTIMES
    from phi3mobile.engines.eager import EagerEngine
    from phi3mobile.models.loading import model_from

    bundle, checkpoint = open_bundle(bundle_of("tiny-gqa", demo_recipe())), open_checkpoint(checkpoint_of("tiny-gqa"))
    entries, missing = peers.prepare_peers(bundle, checkpoint, None, lambda *_: None)
    assert set(missing) == set(missing_peers())
    tokens = np.random.default_rng(0).integers(0, 256, 12)
    expected = EagerEngine(model_from(checkpoint, 64)).forward(tokens, 0)
    for name, entry in ({"ours": our_entry(bundle)} | entries).items():
        runtime = RUNTIMES[entry.runtime](entry.path, 64, 1)
        runtime.forward(tokens.tolist(), 0)
        found = [runtime.forward([int(token)], position).copy() for position, token in enumerate(tokens)]  # from the start
        same = np.mean([cosine(one, other) for one, other in zip(found, expected, strict=True)])
        control = np.mean([cosine(one, other) for one, other in zip(found, np.roll(expected, 1, 0), strict=True)])
        assert same > 0.85 and control < 0.5, f"{name}: {same:.3f}, {control:.3f}"


def test_missing_peers_are_named(monkeypatch, bundle_of, checkpoint_of):
    monkeypatch.setattr(peers.importlib.util, "find_spec", lambda name: None)
    bundle, checkpoint = open_bundle(bundle_of("tiny-gqa", demo_recipe())), open_checkpoint(checkpoint_of("tiny-gqa"))
    entries, missing = peers.prepare_peers(bundle, checkpoint, None, lambda *_: None)
    assert entries == {} and missing == missing_peers()
    assert missing["onnxruntime-genai"] == "onnxruntime-genai is not installed: make bench installs it"


# Workers


def test_a_worker_that_is_killed_is_named(worker):
    os.kill(worker._process.pid, signal.SIGKILL)
    with pytest.raises(WorkerDied, match="its process ended by SIGKILL"):
        worker.ask("memory")


def test_what_goes_wrong_in_a_worker_is_one_line(worker, tmp_path):
    load = {"do": "load", "context": 8, "threads": 1}
    with pytest.raises(InputError, match="does not exist or is not a folder"):
        worker.ask(**load, runtime="phi3mobile", path=str(tmp_path / "nothing"))
    with pytest.raises(WorkerDied, match="KeyError: 'abacus'"):
        worker.ask(**load, runtime="abacus", path="x")


def test_a_peer_that_dies_leaves_the_others(bundle_of, tmp_path):
    """A runtime that can't open its file is named with the reason; ours is measured all the same."""
    pytest.importorskip("llama_cpp", reason="make bench installs llama-cpp-python")
    bad = tmp_path / "bad.gguf"
    bad.write_bytes(b"GGUF" + bytes(60))
    bundle = open_bundle(bundle_of("tiny-gqa", demo_recipe()))
    entries = {"phi3mobile": our_entry(bundle), "broken": Entry("llama.cpp", bad, 1, 1)}
    document = compare(entries, bundle.info.max_context, rounds=1, depths=[4])
    assert list(document["runtimes"]) == ["phi3mobile"] and list(document["failed"]) == ["broken"]
    assert document["failed"]["broken"].startswith("load: ValueError")


def test_runtimes_are_loaded_together_as_far_as_they_fit():
    needs = {"phi3mobile": 30, "a": 30, "b": 30, "c": 200, "d": 10}
    assert together(needs, 1000) == [list(needs)]
    assert together(needs, 100) == [["phi3mobile", "a"], ["b"], ["c"], ["d"]]  # 80 at a time; what never fits goes alone


@pytest.mark.slow
def test_what_does_not_fit_together_is_closed_between_its_turns(bundle_of, monkeypatch):
    bundle = open_bundle(bundle_of("tiny-gqa", demo_recipe()))
    entries = {"phi3mobile": our_entry(bundle), "twin": our_entry(bundle)}
    loaded: list[set] = []
    ask = Worker.ask
    alive: set = set()

    def watched(self, do, *arguments, **options):
        alive.add(self)
        loaded.append({worker for worker in alive if worker._process.poll() is None})
        return ask(self, do, *arguments, **options)

    monkeypatch.setattr(Worker, "ask", watched)
    monkeypatch.setattr(host, "SHARE", 1e-9)
    document = compare(entries, bundle.info.max_context, rounds=2, depths=[4, 8])
    assert document["loaded_together"] == [["phi3mobile"], ["twin"]] and max(map(len, loaded)) == 1
    twin = document["runtimes"]["twin"]
    assert set(twin["decode"]) == {"4", "8"} and twin["logits_cosine"] == 1.0 and twin["memory_left_bytes"] > 0
    monkeypatch.undo()
    both = compare(entries, bundle.info.max_context, rounds=1, depths=[4])
    assert both["loaded_together"] == [["phi3mobile", "twin"]] and not both["failed"]


# The verb


def refused(capsys, *arguments) -> str:
    assert main(["bench", *map(str, arguments)]) == 2
    shown = capsys.readouterr()
    assert shown.out == ""
    return shown.err


def test_flags_that_do_not_fit(capsys, bundle_of, tmp_path):
    bundle = bundle_of("tiny-gqa", demo_recipe())
    for arguments, message in (
        ([], "give either a bundle or --shape NAME"),
        ([bundle, "--shape", "tiny-gqa"], "give either a bundle or --shape NAME"),
        ([bundle, "--context", 64], "--recipe and --context go with --shape"),
        ([bundle, "--recipe", "host"], "--recipe and --context go with --shape"),
        ([bundle, "--rounds", 0], "--rounds 0: give 1 or more"),
        ([bundle, "--depths", "4,x"], "--depths 4,x: give numbers"),
        ([bundle, "--depths", "4,1000000"], "--depths 1000000: 1.."),
        ([bundle, "--gguf", tmp_path / "x"], "--gguf goes with --peers"),
        ([bundle, "--peers", "--gguf", tmp_path / "x"], "is not a file; give a GGUF"),
        ([bundle, "--image-tokens", 757], "sees no pictures: leave out --image-tokens"),
        ([bundle, "--image-tokens", 757, "--lookup"], "--image-tokens goes with the speed of a bundle on this machine"),
        (["--shape", "tiny-gqa", "--image-tokens", 757], "--image-tokens goes with the speed of a bundle on this machine"),
        (
            [bundle, "--preset", "quick", "--image-tokens", 757],
            "--image-tokens goes with the speed of a bundle on this machine",
        ),
        (["--shape", "phi-9"], "unknown preset 'phi-9'; known are phi-3-mini-4k"),
        (["--shape", "tiny-gqa", "--context", 100000], "--context 100000: tiny-gqa takes 1 to 256"),
        (["--shape", "tiny-gqa", "--recipe", "magic"], "recipe 'magic' is not known"),
    ):
        line = refused(capsys, *arguments)
        assert message in line and line.count("\n") == 1, arguments


@pytest.mark.slow
def test_a_picture_is_seen_until_the_first_token(capsys, bundle_of):
    bundle = bundle_of("vision-tiny", demo_recipe())
    assert main(["bench", str(bundle), "--rounds", "2", "--depths", "8", "--image-tokens", "313"]) == 0
    *table, last = capsys.readouterr().out.splitlines()
    seen = json.loads(last)["picture"]
    assert seen["tokens"] == 313 and "TTFT picture of 313" in "\n".join(table)
    assert 2 * seen["view_s"] <= seen["tower_s"] * 1.5 and seen["ttft_s"] > max(seen["tower_s"], seen["prefill_s"]) > 0
    assert "no picture takes 400 tokens; the nearest sizes are 457 and 469" in refused(capsys, bundle, "--image-tokens", 400)
    assert "--image-tokens 2509: the context has 2048" in refused(capsys, bundle, "--image-tokens", 2509)


def test_depths_are_parsed():
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    assert check(parser.parse_args(["b", "--depths", "8,16"])) == [8, 16] and check(parser.parse_args(["b"])) is None


@pytest.mark.slow
def test_a_shape_is_made_exported_and_reused(capsys):
    """Ends in one JSON line; what the export cost is told when there was one."""
    from phi3mobile.bench.shape import shape_bundle

    assert main(["bench", "--shape", "tiny-gqa", "--rounds", "1", "--depths", "8"]) == 0
    *table, last = capsys.readouterr().out.splitlines()
    document = json.loads(last)
    assert document["rounds"] == 1 and document["context"] == 256 and "decode at depth 8" in "\n".join(table)
    assert document["decode"]["8"]["tokens_per_s"] > 0 and document["anonymous_bytes"] > 0
    assert document["export_s"] > 0 and document["export_peak_bytes"] > 50e6  # torch alone takes more
    again, made = shape_bundle("tiny-gqa", document["recipe"], 256, lambda *_: None)
    assert str(again) == document["bundle"] and made == {}


def test_peers_on_a_tiny_model(capsys, bundle_of):
    """The whole comparison, with whichever peers are installed."""
    assert main(["bench", str(bundle_of("tiny-gqa", demo_recipe())), "--peers", "--rounds", "1", "--depths", "8"]) == 0
    out = capsys.readouterr().out
    document = json.loads(out.splitlines()[-1])
    columns = {name.split()[0] for name in (*document["peers"], *document["missing"])}
    assert columns == {"llama.cpp", "onnxruntime-genai", "LiteRT"}
    for name, figures in document["peers"].items():
        assert -1 <= figures["logits_cosine"] <= 1 and name in out  # random weights: small after 128 tokens at 4 bit
        assert set(figures["ours_is_faster_by"]) == {"decode_8", "prefill_128", f"prefill_{document['context']}"}
    for name, reason in document["missing"].items():
        assert f"not in the table: {name}: {reason}" in out
