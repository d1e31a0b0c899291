"""The native runner and its packed-weight files, on a small 4-bit decoder."""

import json
import os
import re
import resource
import struct
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from phi3mobile.engines import EngineInfo, packed_cache
from phi3mobile.engines.native import NativeEngine, instruction_set, load_library, native_library, runtime_version
from phi3mobile.errors import InputError
from phi3mobile.files import cache_root

pytestmark = pytest.mark.skipif(native_library() is None, reason="the native library is not built (make native)")

VOCAB, WIDTH, CONTEXT, CHUNK = 96, 64, 32768, 16
INFO = EngineInfo(vocab=VOCAB, max_context=CONTEXT, max_chunk=CHUNK)
TOKENS = np.array([5, 80, 2, 41], dtype=np.int64)


def make_decoder(layers):
    """Embedding, layers of int4 linears around our attention with an int8 cache, int4 head."""
    import torch
    from torchao.quantization import Int8DynamicActivationIntxWeightConfig, quantize_
    from torchao.quantization.granularity import PerGroup

    from phi3mobile.models import ops  # noqa: F401

    class Layer(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.qkv = torch.nn.Linear(WIDTH, 3 * WIDTH, bias=False)
            self.out = torch.nn.Linear(WIDTH, WIDTH, bias=False)
            for name in ("k", "v"):
                self.register_buffer(f"{name}_cache", torch.zeros(1, 2, CONTEXT, 32, dtype=torch.int8))
                self.register_buffer(f"{name}_scale", torch.zeros(1, 2, CONTEXT))

        def forward(self, x, input_pos):
            angles = torch.ones(x.shape[1], 16)
            cache = (self.k_cache, self.v_cache, self.k_scale, self.v_scale)
            rest = (input_pos, 2, 0, 32**-0.5)
            rows = self.qkv(x)[0]
            return x + self.out(torch.ops.phi3mobile.blocksparse_attention_int8(rows, angles, angles, *cache, *rest))

    class Decoder(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.embed = torch.nn.Embedding(VOCAB, WIDTH)
            self.layers = torch.nn.ModuleList(Layer() for _ in range(layers))
            self.head = torch.nn.Linear(WIDTH, VOCAB, bias=False)

        def forward(self, tokens, input_pos):
            x = self.embed(tokens)
            for layer in self.layers:
                x = layer(x, input_pos)
            return self.head(x)

    torch.manual_seed(layers)
    decoder = Decoder().eval()
    weights = Int8DynamicActivationIntxWeightConfig(weight_dtype=torch.int4, weight_granularity=PerGroup(32))
    quantize_(decoder, weights)
    return decoder


def export(decoder, path, delegate=True):
    import torch
    from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackDynamicallyQuantizedPartitioner
    from executorch.exir import to_edge_transform_and_lower

    chunk = torch.export.Dim("chunk", min=1, max=CHUNK)
    with torch.no_grad():
        args = (torch.zeros(1, 3, dtype=torch.int64), torch.tensor([0]))
        program = torch.export.export(decoder, args, dynamic_shapes=({1: chunk}, None), strict=False)
        edge = to_edge_transform_and_lower(
            program,
            partitioner=[XnnpackDynamicallyQuantizedPartitioner()] if delegate else [],
            constant_methods={"get_vocab_size": VOCAB, "get_eos_ids": [1, 7], "use_kv_cache": True},
        )
    path.write_bytes(edge.to_executorch().buffer)
    return path


@pytest.fixture(scope="module")
def decoder():
    return make_decoder(2)


@pytest.fixture(scope="module")
def pte(decoder, tmp_path_factory):
    return export(decoder, tmp_path_factory.mktemp("native") / "model.pte")


@pytest.fixture(scope="module")
def foreign(tmp_path_factory):
    """A trusted file of packed weights, and the mark, of another model."""
    folder = tmp_path_factory.mktemp("foreign")
    return open_once(export(make_decoder(0), folder / "other.pte"), folder / "other.packed")[2]


def open_once(pte, file):
    """Status and logits of one open and close; the cache file."""
    engine = NativeEngine(pte, INFO, file)
    try:
        return engine.packed_cache, engine.forward(TOKENS, 0), file
    finally:
        engine.close()


IN_PROCESS = """
import sys, time
import numpy as np
from pathlib import Path
from phi3mobile.engines import EngineInfo
from phi3mobile.engines.native import NativeEngine
pte, file, hold = Path(sys.argv[1]), Path(sys.argv[2]), float(sys.argv[3])
engine = NativeEngine(pte, EngineInfo(96, 32768, 16), file)
logits = engine.forward(np.array([5, 80, 2, 41]), 0)
print(engine.packed_cache, "torch" in sys.modules, logits.tobytes().hex(), sep="|", flush=True)
if hold:
    sys.stdin.read()
"""


def start(pte, file, hold=False, code=IN_PROCESS):
    command = [sys.executable, "-c", code, str(pte), str(file), str(int(hold))]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment)


def read(process):
    status, torch_there, logits = process.stdout.readline().strip().split("|")
    return status, torch_there == "True", np.frombuffer(bytes.fromhex(logits), np.float32).reshape(-1, VOCAB)


def test_matches_eager(decoder, pte):
    import torch

    engine = NativeEngine(pte, INFO, None)
    assert engine.packed_cache == "heap: no cache file was given"
    for tokens, position in (([5, 80, 2, 41], 0), ([9], 4), ([3, 3], 5), ([7, 8], 4)):
        want = decoder(torch.tensor([tokens]), torch.tensor([position]))[0].detach().numpy()
        got = engine.forward(np.array(tokens), position)
        # Dynamic int8 activations: a rounding decided otherwise moves a value by one step.
        np.testing.assert_allclose(got, want, rtol=0, atol=0.02)
    engine.close()


def test_first_open_creates_second_reuses(pte, tmp_path):
    file = tmp_path / "new" / "folder" / "a.packed"
    states = [open_once(pte, file) for _ in range(3)]
    assert [s[0] for s in states] == ["created", "reused", "reused"]
    heap = open_once(pte, None)[1]
    for _, logits, _ in states:
        assert np.array_equal(logits, heap)
    assert sum(size for _, _, size in packed_cache.read_index(file)) > WIDTH * WIDTH * 8 / 2


def test_other_users_of_the_runtime_do_not_hide_what_it_says(pte, tmp_path):
    """ExecuTorch's Python bindings take over the process's logger; what becomes of the weights is told only there."""
    again = """engine.close()
import executorch.runtime
executorch.runtime.Runtime.get()
engine = NativeEngine(pte, EngineInfo(96, 32768, 16), file.with_name("b.packed"))
logits ="""
    code = IN_PROCESS.replace("logits =", again)
    with start(pte, tmp_path / "a.packed", code=code) as process:
        assert read(process)[0] == "created"


def spoil_truncate(file):
    file.write_bytes(file.read_bytes()[:-100])


def spoil_garbage(file):
    file.write_bytes(os.urandom(20000))


def spoil_empty(file):
    file.write_bytes(b"")


def spoil_a_weight(file):
    data = bytearray(file.read_bytes())
    data[100:200] = bytes(100)
    file.write_bytes(data)


def spoil_mark(file):
    file.with_name(file.name + ".json").write_text("{")


def spoil_lost_entries(file):
    """Whole by its own index, of a load killed after one weight: XNNPACK alone would take it, the rest on the heap."""
    data = file.read_bytes()
    start, _, magic, version = struct.unpack("<QIII", data[-20:])
    first = data[start : start + 4 + 64 + 20]
    file.write_bytes(data[:start] + first + struct.pack("<QIII", start, 1, magic, version))
    assert len(packed_cache.read_index(file)) == 1


@pytest.mark.parametrize("spoil", [spoil_truncate, spoil_garbage, spoil_empty, spoil_a_weight, spoil_mark, spoil_lost_entries])
def test_damaged_file_is_replaced(pte, tmp_path, spoil):
    _, before, file = open_once(pte, tmp_path / "a.packed")
    whole = file.read_bytes()
    spoil(file)
    status, logits, _ = open_once(pte, file)
    assert status == "created"
    assert np.array_equal(logits, before)
    assert len(file.read_bytes()) == len(whole)
    assert open_once(pte, file)[0] == "reused"


def test_file_of_another_model_is_replaced(pte, foreign, tmp_path):
    file = tmp_path / "a.packed"
    file.write_bytes(foreign.read_bytes())
    mark = foreign.with_name(foreign.name + ".json")
    file.with_name(file.name + ".json").write_bytes(mark.read_bytes())
    assert open_once(pte, file)[0] == "created"


def test_unwritable_folder_is_said(pte, tmp_path):
    (tmp_path / "plain").write_text("a file, not a folder")
    status, logits, _ = open_once(pte, tmp_path / "plain" / "a.packed")
    assert status.startswith(f"heap: can't write in {tmp_path / 'plain'}")
    assert np.array_equal(logits, open_once(pte, None)[1])
    if os.geteuid() == 0:
        pytest.skip("root may write into a read-only folder")
    tmp_path.chmod(0o500)
    assert open_once(pte, tmp_path / "a.packed")[0].startswith("heap: can't write")


def test_long_path_is_said(pte, tmp_path):
    assert "longer than 255 bytes" in open_once(pte, tmp_path / ("x" * 200) / "a.packed")[0]


def test_full_disk_is_said(pte, tmp_path, monkeypatch):
    usage = type("usage", (), {"free": 3 << 20})
    monkeypatch.setattr(packed_cache.shutil, "disk_usage", lambda _: usage)
    status, _, file = open_once(pte, tmp_path / "a.packed")
    assert status == "heap: the disk has 3 MiB free, 64 MiB are needed"
    assert not file.exists()


def test_oldest_files_make_room(pte, tmp_path):
    files = [open_once(pte, tmp_path / f"{name}.packed")[2] for name in "abc"]
    for age, file in zip((10, 30, 20), files, strict=True):
        mark = file.with_name(file.name + ".json")
        os.utime(mark, (1e9 - age, 1e9 - age))
    size = files[0].stat().st_size
    with packed_cache.reserve(tmp_path / "d.packed", size, limit=3 * size) as slot:
        assert slot.file == tmp_path / "d.packed"
    assert [f.exists() for f in files] == [True, False, True]
    with packed_cache.reserve(tmp_path / "d.packed", size, limit=size - 1) as slot:
        assert "over the limit" in slot.reason


def test_second_engine_of_the_process_shares(pte, tmp_path):
    one = NativeEngine(pte, INFO, tmp_path / "a.packed")
    two = NativeEngine(pte, INFO, tmp_path / "a.packed")
    assert (one.packed_cache, two.packed_cache) == ("created", "reused")
    one.forward(TOKENS, 0)
    one.forward(TOKENS, 4)
    logits = two.forward(TOKENS, 0)  # each has its own KV cache
    assert np.array_equal(logits, one.forward(TOKENS, 0))
    one.close()
    assert np.array_equal(logits, two.forward(TOKENS, 0))
    two.close()


def test_two_processes_at_once(pte, tmp_path):
    want = open_once(pte, None)[1]
    processes = [start(pte, tmp_path / "a.packed") for _ in range(2)]
    results = [read(p) for p in processes]
    for process in processes:
        process.communicate()
    for status, torch_there, logits in results:
        assert status in ("created", "reused") or status.startswith("heap: ")
        assert not torch_there
        assert np.array_equal(logits, want)
    assert open_once(pte, tmp_path / "a.packed")[0] in ("created", "reused")


def test_file_held_by_another_process(pte, tmp_path):
    holder = start(pte, tmp_path / "a.packed", hold=True)
    assert read(holder)[0] == "created"
    status, logits, file = open_once(pte, tmp_path / "a.packed")
    assert status == "heap: another process has this model open"
    assert np.array_equal(logits, open_once(pte, None)[1])
    file.with_name(file.name + ".json").write_text("")
    assert open_once(pte, file)[0] == "heap: another process has this model open"  # and the file is left alone
    holder.communicate()
    assert open_once(pte, file)[0] == "created"


def test_kv_cache_costs_only_what_is_used(pte):
    def resident():
        return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()

    if not Path("/proc/self/statm").exists():
        pytest.skip("no /proc here")
    open_once(pte, None)  # the libraries are in
    before = resident()
    engine = NativeEngine(pte, INFO, None)
    engine.forward(TOKENS, 0)
    whole_cache = 2 * 2 * 2 * CONTEXT * (32 + 4)
    assert resident() - before < whole_cache / 2
    engine.close()


def test_metadata(pte):
    engine = NativeEngine(pte, INFO, None)
    assert engine.metadata("get_vocab_size") == [VOCAB]
    assert engine.metadata("get_eos_ids") == [1, 7]
    assert engine.metadata("use_kv_cache") == [1]
    assert engine.metadata("get_nothing") == [] == engine.metadata("forward")
    assert engine.threads >= 1
    engine.close()


def test_view_is_the_runtimes_memory(pte):
    engine = NativeEngine(pte, INFO, None)
    view = engine.forward_view(TOKENS, 0)
    copy = engine.forward(TOKENS, 0)
    assert np.array_equal(view, copy)
    engine.forward_view(TOKENS[::-1], 0)
    assert not np.array_equal(view, copy)
    engine.close()


@pytest.mark.parametrize(
    ("tokens", "position", "message"),
    [
        ([], 0, "0 tokens were given: 1..16 fit one forward"),
        ([1] * 17, 0, "17 tokens were given: 1..16 fit one forward"),
        ([[1]], 0, "tokens of shape [1, 1] and type int64 were given: they are integers [T]"),
        ([1], -1, "positions -1..-1 were given"),
        ([1, 2], CONTEXT - 1, "positions 32767..32768 were given"),
        ([VOCAB], 0, "token 96..96 was given: the vocabulary has 96"),
        ([-1], 0, "token -1..-1"),
    ],
)
def test_bad_forward(pte, tokens, position, message):
    engine = NativeEngine(pte, INFO, None)
    with pytest.raises(InputError, match=message.replace("[", r"\[").replace("]", r"\]")):
        engine.forward(np.array(tokens, np.int64), position)
    engine.close()
    with pytest.raises(InputError, match="closed"):
        engine.forward(TOKENS, 0)


def test_runtime_error_has_the_runtimes_words(pte):
    engine = NativeEngine(pte, EngineInfo(VOCAB, CONTEXT + 9, CHUNK), None)
    with pytest.raises(RuntimeError, match="2 tokens at position 32768 are outside the KV cache of 32768"):
        engine.forward(TOKENS[:2], CONTEXT)
    assert engine.forward(TOKENS, 0).shape == (4, VOCAB)  # still usable
    engine.close()


def test_bad_files(pte, tmp_path):
    with pytest.raises(InputError, match="is not a file"):
        NativeEngine(tmp_path / "none.pte", INFO, None)
    with pytest.raises(InputError, match="-1 threads"):
        NativeEngine(pte, INFO, None, threads=-1)
    garbage = tmp_path / "garbage.pte"
    garbage.write_bytes(b"garbage " * 100)
    cut = tmp_path / "cut.pte"
    cut.write_bytes(pte.read_bytes()[:5000])
    for file in (garbage, cut):
        with pytest.raises(InputError, match="can't load the program"):
            NativeEngine(file, INFO, tmp_path / "a.packed")
    unknown = tmp_path / "unknown.pte"
    unknown.write_bytes(pte.read_bytes().replace(b"phi3mobile::blocksparse", b"phi3mobile::blocksqarse"))
    with pytest.raises(InputError, match="phi3mobile::blocksqarse_attention_int8"):
        NativeEngine(unknown, INFO, tmp_path / "a.packed")


def test_threads_are_the_processes(pte):
    engine = NativeEngine(pte, INFO, None, threads=2)
    assert engine.threads == 2
    want = engine.forward(TOKENS, 0)
    with pytest.raises(InputError, match="open models run on a pool of 2 threads"):
        NativeEngine(pte, INFO, None, threads=3)
    NativeEngine(pte, INFO, None).close()  # no wish: shares the pool as it is
    engine.close()
    engine = NativeEngine(pte, INFO, None, threads=3)
    assert engine.threads == 3
    assert np.array_equal(engine.forward(TOKENS, 0), want)
    engine.close()


def test_library_versions():
    import importlib.metadata

    assert runtime_version().split("+")[0] == importlib.metadata.version("executorch").split("+")[0]
    assert load_library().p3m_threads() >= 1


def test_isa_is_the_one_in_use():
    best = instruction_set()
    assert best in ("avx512", "avx2", "neon", "baseline")
    try:
        assert load_library().p3m_use_isa(b"baseline") == 0 and instruction_set() in ("baseline", "neon")
    finally:
        load_library().p3m_use_isa(None)
    assert instruction_set() == best


def test_the_log_lines_are_this_runtimes():
    """packed_log.h repeats words of XNNPACK's log: of which version it says, and the runtime here must have them."""
    import importlib.util

    header = (Path(__file__).parents[2] / "phi3mobile/core/src/packed_log.h").read_text()
    words = dict(re.findall(r'string_view (k\w+) = "([^"]+)"', header))
    assert set(words) == {"kReadFrom", "kReused", "kCreated", "kHeld"}
    assert runtime_version().startswith(words.pop("kReadFrom"))
    (folder,) = importlib.util.find_spec("executorch").submodule_search_locations
    (library,) = Path(folder, "lib").glob("libexecutorch_backend_xnnpack.*")
    known = library.read_bytes()
    assert not [word for word in words.values() if word.encode() not in known]


def test_packed_weights_lie_in_the_one_cache(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert packed_cache.file_for("ab" * 32, "1.5.1+cpu") == tmp_path / "phi3mobile" / "packed" / (
        "ab" * 16 + "-1.5.1-cpu.packed"
    )
    assert packed_cache.folder().parent == cache_root() and not cache_root().exists()


def test_files_without_a_mark_are_limited_too_the_longest_unused_first(monkeypatch, tmp_path):
    """LiteRT writes its files itself and leaves no mark: they count, by their own dates."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(packed_cache, "LIMIT", 250)
    packed_cache.folder().mkdir(parents=True)
    for at, name in enumerate(("oldest", "older", "fresh")):
        file = packed_cache.folder() / f"{name}-litert-2.3.packed"
        file.write_bytes(bytes(100))
        os.utime(file, (1_000_000 + at, 1_000_000 + at))
    marked = packed_cache.folder() / "marked.packed"
    marked.write_bytes(bytes(100))
    marked.with_name("marked.packed.json").write_text("{}")
    packed_cache.file_for("ab" * 32, "litert-2.3")
    assert {file.name for file in packed_cache.folder().iterdir()} == {
        "fresh-litert-2.3.packed",
        "marked.packed",
        "marked.packed.json",
    }


def packed_file(names):
    index = b"".join(struct.pack("<I", len(n)) + n + struct.pack("<QQI", 10 * i, 10, 7) for i, n in enumerate(names))
    data = bytes(10 * len(names))
    return data + index + struct.pack("<QIII", len(data), len(names), 0x58505743, 2)


@given(st.lists(st.binary(max_size=9), min_size=1, max_size=5), st.data())
def test_index_of_any_file(tmp_path_factory, names, data):
    file = tmp_path_factory.mktemp("index") / "a.packed"
    whole = packed_file(names)
    file.write_bytes(whole)
    assert [size for _, _, size in packed_cache.read_index(file)] == [10] * len(names)
    cut = data.draw(st.integers(0, len(whole) - 1))
    file.write_bytes(whole[:cut])
    with pytest.raises(ValueError, match="packed"):
        packed_cache.read_index(file)
    file.write_bytes(data.draw(st.binary(max_size=200)) + whole[-20:])
    try:
        packed_cache.read_index(file)
    except ValueError as error:
        assert "a.packed" in str(error)


def test_mark_is_json(pte, tmp_path):
    _, _, file = open_once(pte, tmp_path / "a.packed")
    mark = json.loads(file.with_name(file.name + ".json").read_text())
    assert mark["file"] == "a.packed"
    assert mark["bytes"] == file.stat().st_size
    assert mark["entries"] == len(packed_cache.read_index(file))
