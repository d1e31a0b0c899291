"""The .litertlm package: what is in it, and what LiteRT-LM itself answers with it."""

import importlib.util
import io
import sys
import zlib

import numpy as np
import pytest

pytest.importorskip("ai_edge_litert", reason="LiteRT is not installed: pip install 'phi3mobile[litert]'")
pytest.importorskip("litert_lm_builder", reason="litert-lm-builder is not installed: pip install 'phi3mobile[litert]'")

from phi3mobile import extras
from phi3mobile.bundle import open_bundle
from phi3mobile.cli import main
from phi3mobile.engines.registry import open_engine
from phi3mobile.errors import InputError
from phi3mobile.export.build import export
from phi3mobile.export.targets.litert import package
from phi3mobile.session.sampling import GREEDY
from phi3mobile.session.session import Session
from phi3mobile.text.chat import ChatFormat


@pytest.fixture
def litert_lm():
    """The runtime, which is a package of its own."""
    runtime = pytest.importorskip("litert_lm", reason="LiteRT-LM is not installed: pip install litert-lm-api")
    runtime.set_min_log_severity(runtime.LogSeverity.ERROR)
    return runtime


def answers(litert_lm, path, conversation, most):
    """LiteRT-LM's greedy answers to the user's messages of one conversation, each of at most `most` tokens."""
    backend = litert_lm.Backend.CPU(thread_count=1)
    with (
        litert_lm.Engine(str(path), backend=backend, cache_dir=":nocache") as engine,
        engine.create_conversation(sampler_config=litert_lm.SamplerConfig(top_k=1), max_output_tokens=most) as chat,
    ):
        return [str(chat.send_message(text).contents.contents[0].text) for text in conversation]


def unpacked(path, folder):
    """The package's sections as files."""
    from litert_lm_builder import litertlm_peek

    litertlm_peek.peek_litertlm_file(str(path), str(folder), io.StringIO())
    return {file.suffix: file for file in folder.iterdir()}


def metadata_of(path, folder):
    from google.protobuf import text_format
    from litert_lm_builder.runtime.proto import llm_metadata_pb2

    text = unpacked(path, folder)[".pbtext"].read_text()
    return text_format.Parse(text, llm_metadata_pb2.LlmMetadata())


@pytest.mark.parametrize(("name", "limit"), [("tiny-gqa", 256), ("tiny-longrope", 32)])
def test_the_package_holds_stop_ids_template_and_its_limit(name, limit, bundle_of, tmp_path):
    """A model with a LongRoPE switch stays below it there: LiteRT-LM would go past without computing the sequence again."""
    bundle = open_bundle(bundle_of(name, "litert"))
    about = metadata_of(bundle.folder / package.PACKAGE, tmp_path)
    assert [token for union in about.stop_tokens for token in union.token_ids.ids] == [2, 0] and about.max_num_tokens == limit
    assert about.jinja_prompt_template.endswith(bundle.manifest["chat"]["template"])
    assert package.PACKAGE in bundle.manifest["files"] and not list(bundle.folder.glob(".*"))


def test_its_template_takes_texts_and_lists_of_parts(bundle_of, tmp_path):
    from jinja2 import Environment

    bundle = open_bundle(bundle_of("tiny-gqa", "litert"))
    about = metadata_of(bundle.folder / package.PACKAGE, tmp_path)
    chat = bundle.manifest["chat"]
    theirs = Environment(trim_blocks=True, lstrip_blocks=True).from_string(about.jinja_prompt_template)
    texts = {"system": "be brief", "user": "what is\n 1 < 2 && x? "}
    messages = [{"role": role, "content": text} for role, text in texts.items()]
    parts = [
        {"role": role, "content": [{"type": "text", "text": part} for part in text.partition("is")]}
        for role, text in texts.items()
    ]
    expected = ChatFormat(chat["template"]).render(messages)
    for given in (messages, parts, [messages[0], parts[1]]):
        assert theirs.render(messages=given, add_generation_prompt=True) == expected


@pytest.mark.parametrize("name", ["tiny-gqa", "tiny-window"])
def test_litert_lm_says_what_our_session_says(name, litert_lm, bundle_of):
    """Greedy, with padded prefills of one and several chunks. One turn: what random models say can't be tokenized back."""
    bundle = open_bundle(bundle_of(name, "litert"))
    for text in ("x", "the cat sat on the mat and the rat ate the cat " * 8):
        session = Session(bundle)
        expected = "".join(session.generate([{"role": "user", "content": text}], max_tokens=16, sampling=GREEDY))
        assert answers(litert_lm, bundle.folder / package.PACKAGE, [text], 16) == [expected]
    assert session.statistics.prompt_tokens > bundle.info.max_chunk


def test_litert_lm_stays_within_the_packages_limit(litert_lm, bundle_of):
    bundle = open_bundle(bundle_of("tiny-longrope", "litert"))
    (answer,) = answers(litert_lm, bundle.folder / package.PACKAGE, ["x"], 200)
    options = {"max_tokens": 200, "sampling": GREEDY, "repetition": True}  # as LiteRT-LM answers
    whole = "".join(Session(bundle).generate([{"role": "user", "content": "x"}], **options))
    assert whole.startswith(answer.rstrip("\ufffd")) and len(bundle.tokenizer.encode(answer)) <= 32


def test_the_tokenizer_goes_along(bundle_of, tmp_path):
    bundle = open_bundle(bundle_of("tiny-gqa", "litert"))
    data = (bundle.folder / package.PACKAGE).read_bytes()
    assert zlib.compress((bundle.folder / "tokenizer.json").read_bytes()) in data


def test_a_tokenizer_that_litert_lm_cannot_read_is_refused(checkpoint_of, tmp_path, monkeypatch):
    import phi3mobile.export.build as build

    monkeypatch.setattr(build, "TOKENIZER_FILES", ("tokenizer_config.json",))
    with pytest.raises(InputError, match=r"LiteRT-LM reads tokenizer\.json or tokenizer\.model"):
        export(checkpoint_of("tiny-gqa"), tmp_path / "out", "litert", method="rtn")
    assert not list(tmp_path.iterdir())


def test_a_damaged_package_is_refused(bundle_of, tmp_path):
    import shutil

    copy = shutil.copytree(bundle_of("tiny-gqa", "litert"), tmp_path / "copy")
    data = bytearray((copy / package.PACKAGE).read_bytes())
    data[len(data) // 2] ^= 1
    (copy / package.PACKAGE).write_bytes(data)
    with pytest.raises(InputError, match=r"model\.litertlm is damaged: its SHA-256 is not the manifest's"):
        open_bundle(copy)


def test_a_builder_that_does_not_import_is_named(checkpoint_of, tmp_path, monkeypatch):
    """As when protobuf refuses code that another version made: a conflict with another extra."""
    broken = tmp_path / "path" / "litert_lm_builder"
    broken.mkdir(parents=True)
    (broken / "__init__.py").write_text("")
    (broken / "litertlm_builder.py").write_text("raise RuntimeError('gencode 9 is newer\\nthan the runtime')")
    for name in [name for name in sys.modules if name.partition(".")[0] == "litert_lm_builder"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.syspath_prepend(broken.parent)
    with pytest.raises(InputError, match=r"not import beside protobuf \S+ \(gencode 9 is newer than the runtime\); install"):
        export(checkpoint_of("tiny-gqa"), tmp_path / "out", "litert")
    for name in [name for name in sys.modules if name.partition(".")[0] == "litert_lm_builder"]:
        del sys.modules[name]  # the whole ones come back


def test_a_missing_builder_is_named(checkpoint_of, tmp_path, monkeypatch, capsys):
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if "builder" in name else find(name))
    assert main(["export", str(checkpoint_of("tiny-gqa")), "-o", str(tmp_path / "out"), "--recipe", "litert"]) == 2
    assert f"needs the module litert_lm_builder: {extras.command('litert')}" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


# The demo model


@pytest.mark.slow
def test_the_demo_models_golden_text_from_both_runtimes(litert_lm, demo_checkpoint, tmp_path):
    """On sentences whose second best token is far behind; see test_parity_ladder."""
    from test_parity_ladder import GOLDEN, REPEAT

    bundle = open_bundle(export(demo_checkpoint, tmp_path / "bundle", "litert", 256, method="rtn"))
    for sentence in GOLDEN:
        prompt = REPEAT + sentence
        assert (
            "".join(Session(bundle).generate([{"role": "user", "content": prompt}], max_tokens=32, sampling=GREEDY)) == sentence
        )
        assert answers(litert_lm, bundle.folder / package.PACKAGE, [prompt], 32) == [sentence]


@pytest.mark.slow
def test_the_demo_models_logits_are_torchs(demo_checkpoint, tmp_path):
    from exported import psnr

    from phi3mobile.export.packed import PackedModel, load_packed
    from phi3mobile.export.recipe import find_recipe
    from phi3mobile.models.checkpoint import open_checkpoint

    bundle = open_bundle(export(demo_checkpoint, tmp_path / "bundle", "litert", 256, method="rtn"))
    packed = PackedModel(open_checkpoint(demo_checkpoint), find_recipe("litert"))
    tokens = np.array(bundle.tokenizer.encode("The KV cache holds the keys and values of all tokens that came before."))
    import torch

    expected = load_packed(packed, 256)(torch.from_numpy(tokens)[None])[0].numpy()
    assert psnr(expected[0], open_engine(bundle).forward(tokens[:1], 0)[0]) >= 40
    assert (open_engine(bundle).forward(tokens, 0).argmax(-1) == expected.argmax(-1)).mean() > 0.8
