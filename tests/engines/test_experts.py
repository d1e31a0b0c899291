"""The file of experts and the engine that reads it: exact for every budget and chunking, every fault by name."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from exported import psnr
from tiny import random_tokens

from phi3mobile.bundle import open_bundle
from phi3mobile.engines.expert_file import ExpertShape
from phi3mobile.engines.native import load_library, native_library, open_native
from phi3mobile.engines.registry import open_engine
from phi3mobile.errors import InputError
from phi3mobile.export.packed import PackedModel, load_packed
from phi3mobile.export.recipe import find_recipe
from phi3mobile.memory import parse_memory
from phi3mobile.models.checkpoint import open_checkpoint
from phi3mobile.session.session import Session

pytestmark = pytest.mark.skipif(native_library() is None, reason="the native library is not built: make native")
RECIPE = "host-fp32-kv"


@pytest.fixture(scope="module")
def bundle(bundle_of):
    return open_bundle(bundle_of("moe-tiny", RECIPE))


def one_of(bundle) -> int:
    """Bytes of one expert where it runs."""
    engine = open_native(bundle)
    size = engine.experts["bytes_of_one"]
    engine.close()
    return size


def tokens_of(bundle, count: int = 60) -> np.ndarray:
    return np.random.default_rng(0).integers(3, bundle.info.vocab, count)


@pytest.mark.parametrize("isa", [None, "avx512", "avx2", "baseline"])
def test_the_kernel_computes_what_torch_does(isa: str | None, bundle, checkpoint_of):
    library = load_library()
    if library.p3m_use_isa(isa and isa.encode()):
        pytest.skip(f"this machine has no {isa}")
    try:
        packed = load_packed(PackedModel(open_checkpoint(checkpoint_of("moe-tiny")), find_recipe(RECIPE)))
        tokens = random_tokens(packed.config, 40)
        engine = open_native(bundle)
        assert psnr(packed(tokens)[0].numpy(), engine.forward(tokens[0].numpy(), 0)) > 90
        engine.close()
    finally:
        library.p3m_use_isa(None)


@pytest.mark.parametrize("preset", ["moe-tiny", "mixtral-tiny"])
def test_every_chunking_and_every_budget_gives_the_same_bits(preset: str, bundle_of):
    bundle = open_bundle(bundle_of(preset, RECIPE))
    tokens, one = tokens_of(bundle), one_of(bundle)
    engine = open_native(bundle)
    whole = engine.forward(tokens, 0)
    assert engine.experts["mapped"] and engine.experts["misses"] == 0
    engine.close()
    for slots in (2, 5, 9):
        if (
            slots * one
            >= bundle.manifest["runtime"]["experts"]["layers"] * bundle.manifest["runtime"]["experts"]["experts"] * one
        ):
            continue
        engine = open_native(bundle, experts_memory=slots * one)
        assert np.array_equal(engine.forward(tokens, 0), whole)
        cuts = [(0, 30), (30, 57), (57, 58), (58, 59), (59, 60)]
        assert np.array_equal(np.concatenate([engine.forward(tokens[a:b], a) for a, b in cuts]), whole)
        counted = engine.experts
        assert not counted["mapped"] and counted["slots"] == slots and counted["bytes_read"] == counted["misses"] * one
        engine.close()


def test_more_memory_reads_less(bundle):
    tokens, one, read = tokens_of(bundle, 40), one_of(bundle), []
    for slots in (2, 18, 30):
        engine = open_native(bundle, experts_memory=slots * one)
        for at in range(len(tokens)):
            engine.forward(tokens[at : at + 1], at)
        read.append(engine.experts["misses"])
        engine.close()
    assert read == sorted(read, reverse=True) and read[-1] < read[0] / 2


def test_a_budget_below_one_token_says_the_least(bundle):
    one = one_of(bundle)
    with pytest.raises(
        InputError, match=rf"is too small: a token needs 2 experts of a layer at once, at least {2 * one} bytes"
    ):
        open_native(bundle, experts_memory=2 * one - 1)


def test_memory_for_experts_is_a_number_with_a_unit():
    assert [parse_memory(text) for text in ("4GB", "1.5 gb", "512MiB", "77", 9)] == [4 * 10**9, 15 * 10**8, 512 << 20, 77, 9]
    for text in ("", "much", "-1GB", "4 TBs", "0", "1e9"):
        with pytest.raises(InputError, match="give bytes above 0, such as 4GB"):
            parse_memory(text)


def test_a_model_without_experts_refuses_memory_for_them(tiny_bundle):
    with pytest.raises(InputError, match="has no experts: leave out the memory for them"):
        open_engine(open_bundle(tiny_bundle), experts_memory=10**9)


@pytest.fixture
def copied(bundle, tmp_path):
    """The bundle in a folder of its own, checked; what happens to it afterwards is the engine's to find."""
    return open_bundle(shutil.copytree(bundle.folder, tmp_path / "copied"))


@pytest.fixture
def damaged(copied):
    path = copied.folder / copied.manifest["runtime"]["experts"]["file"]
    whole = path.read_bytes()

    def change(at: int | None = None, length: int | None = None, every: int | None = None) -> Path:
        """Another bit at one place, or every so many bytes from the end on; or only the first bytes."""
        data = bytearray(whole[:length])
        places = [] if at is None else [at]
        places += [] if every is None else [100 - every * record for record in range(1, 33)]
        for place in places:
            data[place] ^= 1
        path.write_bytes(data)
        return path

    return change


@pytest.mark.parametrize("memory", [None, 3])
def test_a_damaged_expert_is_named_while_running(copied, damaged, memory):
    one = one_of(copied)
    path = damaged(every=one)
    engine = open_native(copied, experts_memory=memory and memory * one)
    for _ in range(2):  # and again, not wrong numbers
        with pytest.raises(InputError, match=r"is damaged at layer 0, expert \d+: the checksum does not match") as error:
            engine.forward(tokens_of(copied, 20), 0)
        assert str(path) in str(error.value) and "\n" not in str(error.value)
    engine.close()


def test_a_file_that_is_cut_off_while_running_is_named(copied, damaged):
    one = one_of(copied)
    path = damaged()
    engine = open_native(copied, experts_memory=2 * one)
    with path.open("r+b") as file:
        file.truncate(path.stat().st_size - 20 * one)
    with pytest.raises(InputError, match=r"can.t be read at layer .*: it is cut off or the disk fails"):
        engine.forward(tokens_of(copied), 0)
    engine.close()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"length": -1}, "it is cut off or damaged"),
        ({"length": 30}, "is too short for a file of experts"),
        ({"at": 0}, "is not a file of experts that this version reads"),
        ({"at": 70}, "its header does not match its checksum"),
        ({"at": 20}, "its header does not match its checksum|impossible sizes"),
    ],
)
def test_a_damaged_file_is_refused_when_it_is_opened(copied, damaged, change, message):
    damaged(**change)
    with pytest.raises(InputError, match=message):
        open_native(copied)


def test_the_header_is_what_the_engine_reads(bundle):
    about = bundle.manifest["runtime"]["experts"]
    shape = ExpertShape(**{key: about[key] for key in ("layers", "experts", "hidden", "inner", "group13", "group2")})
    assert (bundle.folder / "experts.bin").stat().st_size == shape.size == about["bytes"]
    assert (bundle.folder / "experts.bin").read_bytes()[:56] == shape.header()[:56]


def test_a_router_that_is_not_finite_is_named(checkpoint_of, tmp_path):
    from safetensors.torch import load_file, save_file

    from phi3mobile.export.build import export

    source = tmp_path / "c"
    shutil.copytree(checkpoint_of("moe-tiny"), source)
    tensors = load_file(source / "model.safetensors")
    tensors["model.layers.1.block_sparse_moe.gate.weight"][3] = 3e38  # finite, and what it gives is not
    save_file(tensors, source / "model.safetensors", metadata={"format": "pt"})
    bundle = open_bundle(export(source, tmp_path / "b", RECIPE, method="rtn"))
    engine = open_native(bundle)
    with pytest.raises(InputError, match="the router of layer 1 gives logits that are not finite"):
        engine.forward(tokens_of(bundle, 5), 0)
    engine.close()


def test_a_session_is_the_same_text_for_every_budget(bundle):
    messages = [{"role": "user", "content": "the cat sat on the mat and the cat sat on"}]
    texts = []
    for slots in (None, 2, 6):
        with Session(bundle, experts_memory=slots and slots * one_of(bundle)) as session:
            texts.append("".join(session.generate(messages, max_tokens=24)))
            texts.append("".join(session.generate(messages, max_tokens=24, lookup=True)))
            again = [*messages, {"role": "assistant", "content": "hello"}, {"role": "user", "content": "what is the name?"}]
            "".join(session.generate(again, max_tokens=4))
            assert session.statistics.reused_tokens > 0 and session.experts["hits"] + session.experts["misses"] > 0
    assert len(set(texts)) == 1 and texts[0]


def test_run_tells_of_the_experts(bundle, capsys):
    from phi3mobile.cli import main

    memory = 4 * one_of(bundle)
    assert main(["run", str(bundle.folder), "hello", "--max-tokens", "4", "--experts-memory", str(memory), "--json"]) == 0
    said = json.loads(capsys.readouterr().out.strip().splitlines()[-1])
    experts = said["statistics"]["experts"]
    assert experts["slots"] == 4 and experts["bytes_read"] > 0
