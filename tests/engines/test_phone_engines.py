"""One contract for every engine, and what the engines of the phones do with ExecuTorch's Java and Objective-C classes."""

import ctypes
from dataclasses import replace

import numpy as np
import pytest
from fake_engine import FakeEngine
from fake_phone import FakeObjectiveC, find_class

from phi3mobile.bundle import open_bundle
from phi3mobile.engines import native
from phi3mobile.engines.android import AndroidEngine, _floats
from phi3mobile.engines.apple import AppleEngine
from phi3mobile.engines.native import native_library
from phi3mobile.engines.registry import open_engine
from phi3mobile.errors import InputError
from phi3mobile.session.session import Session

ENGINES = ["fake", "eager", "executorch", "native", "android", "apple"]
PRESETS = ["tiny-gqa", "tiny-longrope"]


@pytest.fixture
def open_as(bundle_of, checkpoint_of):
    """Name of an engine and of a tiny preset -> that engine over that model."""

    def get(name, preset="tiny-gqa"):
        if name == "fake":
            return FakeEngine(max_context=64, max_chunk=16, original_context=32 if preset == "tiny-longrope" else None)
        if name == "eager":
            from phi3mobile.engines.eager import EagerEngine
            from phi3mobile.models.loading import load_model

            return EagerEngine(load_model(checkpoint_of(preset)), chunk=16)
        if name == "native":
            if native_library() is None:
                pytest.skip("the native library is not built: make native")
            return open_engine(open_bundle(bundle_of(preset, "host")))
        bundle = open_bundle(bundle_of(preset))
        if name == "android":
            return AndroidEngine(bundle.program, bundle.info, find_class=find_class)
        if name == "apple":
            return AppleEngine(bundle.program, bundle.info, FakeObjectiveC())
        return open_engine(bundle)

    return get


def tokens_for(engine, count, seed=0):
    return np.random.default_rng(seed).integers(0, engine.info.vocab, count)


@pytest.mark.parametrize("name", ENGINES)
def test_every_engine_keeps_the_contract(name, open_as):
    engine = open_as(name)
    length = min(12, engine.info.max_chunk)
    tokens = tokens_for(engine, length)
    whole = engine.forward(tokens, 0)
    assert whole.shape == (length, engine.info.vocab) and whole.dtype == np.float32 and np.isfinite(whole).all()
    kept = whole.copy()

    close = {"rtol": 1e-3, "atol": 2e-2 * float(np.abs(whole).max())}  # int8 activations round by the chunk
    parts = [engine.forward(tokens[:5], 0), engine.forward(tokens[5:6], 5), engine.forward(tokens[6:], 6)]
    np.testing.assert_allclose(np.concatenate(parts), whole, **close)
    assert np.array_equal(whole, kept), "a result stays valid after the next call"

    other = tokens_for(engine, 3, seed=1)
    branch = engine.forward(other, 4)  # going back: rows from 4 on are overwritten, those before stay
    fresh = engine.forward(np.concatenate([tokens[:4], other]), 0)[4:]
    np.testing.assert_allclose(branch, fresh, **close)

    engine.reset()
    np.testing.assert_allclose(engine.forward(tokens, 0), whole, **close)
    engine.close()


@pytest.mark.parametrize("name", ["android", "apple"])
@pytest.mark.parametrize("preset", PRESETS)
def test_a_phone_gets_what_the_computer_gets(name, preset, open_as):
    phone, computer = open_as(name, preset), open_as("executorch", preset)
    tokens = tokens_for(computer, 9)
    last_bits = {"rtol": 1e-5, "atol": 1e-5}  # ExecuTorch's attention adds in an order that follows where its buffers lie
    for part, position, long in ((9, 0, False), (9, 9, False), (9, 3, False), (9, 0, True), (1, 9, False)):
        expected = computer.forward(tokens[:part], position, long)
        np.testing.assert_allclose(phone.forward(tokens[:part], position, long), expected, **last_bits)


def test_a_longrope_model_is_told_the_regime(open_as):
    engine = open_as("android", "tiny-longrope")
    if engine.info.original_context is None:
        pytest.skip("this preset has no LongRoPE switch")
    tokens = tokens_for(engine, 9)
    assert not np.allclose(engine.forward(tokens, 0, long=True), engine.forward(tokens, 0, long=False), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("name", ["android", "apple"])
def test_a_session_on_a_phone_says_what_the_computer_says(name, open_as, tiny_bundle):
    bundle, messages = open_bundle(tiny_bundle), [{"role": "user", "content": "the cat sat"}]
    texts = []
    for engine in (open_as(name), open_as("executorch")):
        with Session(bundle, engine) as session:
            texts.append("".join(session.generate(messages, max_tokens=12)))
    assert texts[0] == texts[1] and texts[0]


def test_objective_c_objects_are_given_back(tiny_bundle):
    bundle, objc = open_bundle(tiny_bundle), FakeObjectiveC()
    engine = AppleEngine(bundle.program, bundle.info, objc)
    for position in range(3):
        engine.forward(np.array([1, 2, 3]), position)
    assert objc.live == ["ExecuTorchModule"]
    engine.close()
    engine.close()
    assert objc.live == []


def android(pte, info):
    return AndroidEngine(pte, info, find_class=find_class)


def apple(pte, info):
    return AppleEngine(pte, info, FakeObjectiveC())


@pytest.mark.parametrize("make", [android, apple])
def test_bad_programs_and_closed_engines(make, tmp_path, tiny_bundle):
    bundle = open_bundle(tiny_bundle)
    with pytest.raises(InputError, match=r"none\.pte is not a file: give the \.pte of a bundle"):
        make(tmp_path / "none.pte", bundle.info)
    broken = tmp_path / "broken.pte"
    broken.write_bytes(b"no program" * 100)
    with pytest.raises(InputError, match=r"broken\.pte can't be loaded by this app's ExecuTorch"):
        make(broken, bundle.info)
    engine = make(bundle.program, bundle.info)
    engine.close()
    with pytest.raises(InputError, match="the engine is closed"):
        engine.forward(np.array([1]), 0)


@pytest.mark.parametrize("make", [android, apple])
def test_models_that_see_pictures_are_refused_by_name(make, tiny_bundle):
    bundle = open_bundle(tiny_bundle)
    with pytest.raises(
        InputError, match=r"model\.pte is of a model that sees pictures, .*text alone: take a bundle of a text"
    ) as told:
        make(bundle.program, replace(bundle.info, hidden=64))
    assert "\n" not in str(told.value) and "android-multimodal" in str(told.value)


@pytest.mark.parametrize("phone", [("getandroidapilevel", lambda: 34), ("platform", "ios")])
def test_so_are_their_bundles_where_a_phone_opens_them(phone, tiny_bundle, monkeypatch):
    import sys

    bundle = open_bundle(tiny_bundle)
    seeing = replace(bundle, manifest=bundle.manifest | {"vision": {"hidden": bundle.manifest["model"]["hidden"]}})
    monkeypatch.setattr(sys, *phone, raising=False)
    monkeypatch.setattr(native, "_android_finds", lambda name: False)  # a library that this process loaded before is found
    with pytest.raises(InputError, match=r"model\.pte is of a model that sees pictures"):
        open_engine(seeing)


def test_outside_of_an_app_the_engines_say_so(tiny_bundle):
    bundle = open_bundle(tiny_bundle)
    with pytest.raises(InputError, match="runs in an Android app"):
        AndroidEngine(bundle.program, bundle.info)
    if ctypes.util.find_library("objc") is None:
        with pytest.raises(InputError, match="no Objective-C runtime here"):
            AppleEngine(bundle.program, bundle.info)


def test_only_a_float_tensor_is_an_answer():
    with pytest.raises(RuntimeError, match="a float32 tensor was expected"):
        _floats(bytes([4, 0, 0, 0, 0, 0, 0, 0, 9]))


def test_a_block_is_called_as_c_calls_it():
    from phi3mobile.engines.objc import _WIDTHS, make_block

    got = []

    def handle(own, pointer, count, kind):
        got.append((ctypes.string_at(pointer, count * _WIDTHS[kind]), kind))

    block = make_block(0, handle)
    values = np.arange(3, dtype=np.float32)
    kind = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_ssize_t, ctypes.c_int8)
    word = ctypes.cast(block, ctypes.POINTER(ctypes.c_void_p))  # isa, flags and reserved, invoke
    ctypes.cast(word[2], kind)(ctypes.cast(block, ctypes.c_void_p), values.ctypes.data, 3, 6)
    assert got == [(values.tobytes(), 6)]


def test_a_computer_is_no_phone(monkeypatch):
    import sys

    from phi3mobile.engines.phone import phone_engine

    assert phone_engine() is None
    monkeypatch.setattr(sys, "getandroidapilevel", lambda: 34, raising=False)
    assert phone_engine() is AndroidEngine
    monkeypatch.undo()
    monkeypatch.setattr(sys, "platform", "ios")
    assert phone_engine() is AppleEngine
