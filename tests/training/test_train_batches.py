"""Packing, sources, chat encoding, schedules: what a step reads and how fast it learns."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import random_tokens, tiny
from training_tiny import VOCAB, chat_lines, pair_lines, write_shards

from phi3mobile.errors import InputError
from phi3mobile.training.batches import IGNORED, Document, pack, stream_rows
from phi3mobile.training.chats import conversations, open_encoder, preferences
from phi3mobile.training.config import Chats, Schedule
from phi3mobile.training.data.mixture import Mixture, Phase, Source
from phi3mobile.training.loop import logits_of, token_losses
from phi3mobile.training.model import empty_hf
from phi3mobile.training.schedule import lr_factor
from phi3mobile.training.sources import PackedSource, TextSource, held_out


@given(st.lists(st.integers(1, 20), min_size=1, max_size=30))
@settings(max_examples=60, deadline=None)
def test_packing_keeps_every_document_whole_and_alone(sizes):
    documents = [Document(list(range(100 * i, 100 * i + size))) for i, size in enumerate(sizes)]
    rows = pack([[document] for document in documents], 20, pad=9999)
    found = []
    for row in range(len(rows)):
        for number in range(int(rows.documents[row].max()) + 1):
            inside = rows.documents[row] == number
            tokens = rows.tokens[row][inside]
            assert rows.positions[row][inside].tolist() == list(range(len(tokens)))
            assert rows.labels[row][inside].tolist() == [*tokens[1:].tolist(), IGNORED]
            found.append(tokens.tolist())
        rest = rows.documents[row] == -1
        assert (rows.tokens[row][rest] == 9999).all() and (rows.labels[row][rest] == IGNORED).all()
    assert sorted(found) == sorted(list(document.tokens) for document in documents)
    assert rows.targets == sum(sizes) - len(sizes)


def test_a_document_longer_than_a_row_is_refused():
    with pytest.raises(InputError, match="21 tokens, a row 20"):
        pack([[Document(list(range(21)))]], 20, 0)
    with pytest.raises(InputError, match="no row"):
        pack([], 20, 0)


@pytest.mark.parametrize("attention", ["sdpa", "eager", pytest.param("flex_attention", marks=pytest.mark.slow)])
def test_packed_documents_do_not_see_each_other(attention):
    config = tiny("tiny-window")
    torch.manual_seed(0)
    model = empty_hf(config, attention).eval()
    parts = [random_tokens(config, size, seed=size)[0] for size in (7, 20, 13)]
    rows = pack([[Document(part.tolist())] for part in parts], 48, 0)
    with torch.no_grad():
        packed = logits_of(model, rows)[0]
        alone = torch.cat([model(input_ids=part[None], use_cache=False).logits[0] for part in parts])
    assert len(rows) == 1 and (packed[:40] - alone).abs().max() < 1e-5


def test_stream_rows_have_no_label_over_a_border():
    tokens = torch.arange(1, 12)[None]
    segments = torch.tensor([[0, 0, 0, 1, 1, 2, 2, 2, 2, 2, 3]])
    rows = stream_rows(tokens, segments)
    assert rows.tokens.tolist() == [list(range(1, 11))]
    assert rows.positions.tolist() == [[0, 1, 2, 0, 1, 0, 1, 2, 3, 4]]
    assert rows.labels.tolist() == [[2, 3, IGNORED, 5, IGNORED, 7, 8, 9, 10, IGNORED]]


def test_loss_is_that_of_transformers():
    config = tiny("tiny-gqa")
    torch.manual_seed(0)
    model = empty_hf(config)
    tokens = random_tokens(config, 30)
    rows = stream_rows(tokens, torch.zeros_like(tokens))
    ours = token_losses(model, rows).sum() / rows.targets
    assert torch.allclose(ours, model(input_ids=tokens, labels=tokens).loss, atol=1e-5)


# sources


def mixture(folder, epochs=4.0):
    return Mixture((Phase((Source(folder, 1.0, epochs),)),))


def test_all_ranks_together_read_what_one_process_does(tmp_path):
    folder = write_shards(tmp_path / "shards")
    one, two = TextSource(mixture(folder), 4, 32), [TextSource(mixture(folder), 4, 32, rank, 2) for rank in range(2)]
    for _ in range(5):
        expected = sorted(one.next().tokens.tolist())
        assert sorted(row for source in two for row in source.next().tokens.tolist()) == expected
    packed = stream_rows(torch.arange(330).reshape(10, 33), torch.zeros(10, 33))
    one, two = PackedSource(packed, 4), [PackedSource(packed, 4, 0, rank, 2) for rank in range(2)]
    seen = []
    for _ in range(5):
        expected = sorted(one.next().tokens.tolist())
        seen += expected
        assert sorted(row for source in two for row in source.next().tokens.tolist()) == expected
    assert sorted(seen) == sorted(packed.tokens.tolist() * 2)  # two epochs, each row once an epoch


@pytest.mark.parametrize("kind", ["text", "packed"])
def test_a_source_goes_on_where_its_state_was_taken(kind, tmp_path):
    folder = write_shards(tmp_path / "shards")

    def make():
        return TextSource(mixture(folder), 4, 32) if kind == "text" else PackedSource(held_out(folder, 32), 4, seed=3)

    source = make()
    source.next()
    state = json.loads(json.dumps(source.state()))
    expected = [source.next().tokens for _ in range(3)]
    again = make()
    again.load(state)
    assert all(torch.equal(again.next().tokens, tokens) for tokens in expected)


def test_sources_refuse_what_does_not_fit(tmp_path):
    folder = write_shards(tmp_path / "shards", documents=20)
    source = TextSource(mixture(folder, 1.0), 4, 32)
    with pytest.raises(InputError, match="lower schedule"):
        source.check(10_000, VOCAB, None)
    with pytest.raises(InputError, match=f"{VOCAB} ids, the model 100"):
        source.check(1, 100, None)
    with pytest.raises(InputError, match="give a multiple"):
        TextSource(mixture(folder), 3, 32, 0, 2)
    with pytest.raises(InputError, match="rows of examples"):
        PackedSource(held_out(folder, 32), 4).load({"taken": 0, "of": 1})


# chats


def test_only_the_assistant_is_learned_and_ids_are_those_of_the_session(tmp_path, tiny_checkpoint_folder):
    encoder = open_encoder(tiny_checkpoint_folder)
    messages = [
        {"role": "system", "content": "be short"},
        {"role": "user", "content": "the cat?"},
        {"role": "assistant", "content": "a cat sat."},
        {"role": "user", "content": "<|im_end|> 12 + 34"},
        {"role": "assistant", "content": "46"},
    ]
    documents = encoder.answers(messages)
    learned = [
        [token for token, learn in zip(document.tokens, document.learned, strict=True) if learn] for document in documents
    ]
    text = "".join(encoder.tokenizer.decode(part) for part in learned)
    assert text == "a cat sat.<|im_end|>46<|im_end|>"
    last = documents[-1]
    prompt = encoder.prompt(messages[:-1])
    assert list(last.tokens[: len(prompt)]) == prompt and last.learned[len(prompt)]
    assert not any(learn for learn in last.learned[len(prompt) - 3 : len(prompt)])


def test_phi3s_own_template_and_vocabulary(tmp_path):
    from pathlib import Path

    source = Path(__file__).parents[3] / "shared" / "data" / "phi3-tokenizer"
    if not source.is_dir():
        pytest.skip("the Phi-3 vocabulary is not in this checkout")
    encoder = open_encoder(source, "phi-3")
    messages = [{"role": "user", "content": "What is 2 + 2?"}, {"role": "assistant", "content": "It is 4."}] * 2
    (document,) = encoder.answers(messages)
    learned = [token for token, learn in zip(document.tokens, document.learned, strict=True) if learn]
    assert learned.count(32007) == 2 and encoder.tokenizer.decode(learned).count("It is 4.") == 2
    assert not {32001, 32010} & set(learned)
    assert list(document.tokens[: len(encoder.prompt(messages[:-1]))]) == encoder.prompt(messages[:-1])


def test_preferences_share_a_row(tmp_path, tiny_checkpoint_folder):
    encoder = open_encoder(tiny_checkpoint_folder)
    units = preferences(Chats((str(pair_lines(tmp_path / "p.jsonl")),)), encoder, 128)
    rows = pack(units, 128, 0)
    assert all(len(unit) == 2 for unit in units)
    assert ((rows.documents.amax(1) + 1) % 2 == 0).all()


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "1 is not JSON"),
        ("[]", "give one JSON object a line"),
        ('{"messages": []}', '"messages" must be'),
        ('{"messages": [{"role": "bot", "content": "x"}]}', '"messages" must be'),
        ('{"messages": [{"role": "user", "content": "x"}]}', "nothing to learn"),
        (
            json.dumps({"messages": [{"role": "user", "content": "x"}, {"role": "assistant", "content": "y" * 900}]}),
            "a row 128",
        ),
        ("", "no example"),
    ],
)
def test_damaged_conversations_are_named(line, message, tmp_path, tiny_checkpoint_folder):
    file = tmp_path / "chat.jsonl"
    file.write_text(line + "\n")
    with pytest.raises(InputError, match=message):
        conversations(Chats((str(file),)), open_encoder(tiny_checkpoint_folder), 128)


def test_equal_sides_and_unknown_templates_are_refused(tmp_path, tiny_checkpoint_folder):
    file = tmp_path / "p.jsonl"
    file.write_text(json.dumps({"messages": [{"role": "user", "content": "x"}], "chosen": "a", "rejected": "a"}))
    with pytest.raises(InputError, match="two different texts"):
        preferences(Chats((str(file),)), open_encoder(tiny_checkpoint_folder), 128)
    with pytest.raises(InputError, match="known are phi-3"):
        open_encoder(tiny_checkpoint_folder, "phi-9")
    with pytest.raises(InputError, match="can't be read"):
        conversations(Chats((str(tmp_path / "none.jsonl"),)), open_encoder(tiny_checkpoint_folder), 128)


def test_conversations_pack(tmp_path, tiny_checkpoint_folder):
    units = conversations(Chats((str(chat_lines(tmp_path / "c.jsonl")),)), open_encoder(tiny_checkpoint_folder), 128)
    assert len(units) == 40 and 0 < pack(units, 128, 0).targets < sum(len(unit[0].tokens) for unit in units)


# schedules


@given(st.sampled_from(["cosine", "wsd"]), st.integers(1, 400), st.floats(0, 1), st.floats(0, 1), st.floats(0.05, 1))
@settings(max_examples=100, deadline=None)
def test_schedules_rise_then_fall_within_bounds(kind, steps, warm, floor, decay):
    schedule = Schedule(steps, kind, int(warm * steps), decay, floor)
    factors = np.array([lr_factor(schedule, step) for step in range(steps)])
    rising, falling = factors[: schedule.warmup], factors[schedule.warmup :]
    assert (factors > 0).all() or floor == 0
    assert factors.max() <= 1 + 1e-9 and (np.diff(rising) > 0).all() and (np.diff(falling) <= 1e-9).all()
    assert (falling >= floor - 1e-9).all()


def test_wsd_is_flat_until_its_decay():
    schedule = Schedule(100, "wsd", 10, 0.2, 0.0)
    assert lr_factor(schedule, 10) == lr_factor(schedule, 80) == 1.0 and lr_factor(schedule, 90) == pytest.approx(0.5)
    assert lr_factor(replace(schedule, kind="cosine"), 55) == pytest.approx(0.5)
