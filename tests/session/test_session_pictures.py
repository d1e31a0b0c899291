"""Pictures in conversations: parts and numbers, prompts' ids, and answers against one whole forward over embeddings."""

from __future__ import annotations

import json
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from photos import drawn, say
from tokenizers import Tokenizer as Backend
from tokenizers.processors import TemplateProcessing

from phi3mobile.engines.eager import EagerEngine, EagerTower
from phi3mobile.errors import InputError
from phi3mobile.models.loading import load_model, load_vision
from phi3mobile.models.vision import merge, views
from phi3mobile.session.content import Message, Picture, encode, see
from phi3mobile.session.pictures import SPAN, Pictures
from phi3mobile.session.session import Session
from phi3mobile.text.chat import KNOWN_TEMPLATES, ChatFormat, load_chat
from phi3mobile.text.vocabularies import load_tokenizer

CHUNK = 128


A, B = drawn(1), drawn(2, 30, 50)


@dataclass
class Seeing:
    tokenizer: object
    chat: ChatFormat
    eos_ids: frozenset = frozenset()


class Counted(EagerTower):
    seen = 0

    def encode(self, view):
        self.seen += 1
        return super().encode(view)


@pytest.fixture(scope="module")
def folder(once, checkpoint_of):
    return checkpoint_of("vision-tiny")


@pytest.fixture
def session_of(folder):
    """A session of so many positions and crops, and its tower."""

    def make(context: int = 4096, num_crops: int = 1, **options):
        tower = Counted(load_vision(folder), 4)
        parts = Seeing(load_tokenizer(folder), load_chat(folder))
        engine = EagerEngine(load_model(folder, context), CHUNK)
        return Session(parts, engine, tower=tower, num_crops=num_crops, **options), tower

    return make


def answer(session, messages, tokens: int = 6, **options) -> list[int]:
    list(session.generate(messages, max_tokens=tokens, repetition=True, **options))
    return session._rows.tokens[session.statistics.prompt_tokens :]


def oracle(folder, runs: list[list[int] | np.ndarray], tokens: int, num_crops: int, context: int = 4096) -> list[int]:
    """Greedy ids after tokens and pictures, each step one forward over all embeddings, the long factors past the switch."""
    model, vision = load_model(folder, context), load_vision(folder)
    table, rows = model.model.embed_tokens.weight.detach(), []
    for part in runs:
        if isinstance(part, list):
            rows.append(table[torch.tensor(part, dtype=torch.int64)])
            continue
        plan, cut = views(part, num_crops)
        features = vision.encode(torch.from_numpy(np.stack(list(cut)))).numpy()
        merged = merge(features, plan.grid, *(separator.numpy() for separator in vision.separators))
        rows.append(vision.project(torch.from_numpy(merged)))
    prompt, found = torch.cat(rows), []
    for _ in range(tokens):
        all_rows = torch.cat([prompt, table[torch.tensor(found, dtype=torch.int64)]]).numpy()
        engine = EagerEngine(model, len(all_rows))
        engine.reset()
        found.append(int(engine.forward_embeddings(all_rows, 0)[-1].argmax()))
    return found


@pytest.mark.parametrize(("num_crops", "pictures"), [(1, [A]), (1, [A, B]), (4, [B])])
def test_an_answer_is_the_models(folder, session_of, num_crops, pictures):
    """Two pictures of one crop and one of three stay below the switch at 1024; see the next test for past it."""
    session, _ = session_of(num_crops=num_crops)
    parts = [part for picture in pictures for part in (picture, "the cat ")] + ["sat on"]
    got = answer(session, [say(*parts)])
    tokenizer, chat = session.parts.tokenizer, session.parts.chat
    marked = "".join("@\n" + "the cat " for _ in pictures) + "sat on"
    pieces = chat.render([{"role": "user", "content": marked}]).split("@")
    runs: list = [tokenizer.encode(pieces[0])]
    for picture, piece in zip(pictures, pieces[1:], strict=True):
        runs += [picture, tokenizer.encode(piece)]
    assert got == oracle(folder, runs, len(got), num_crops) and len(got) >= 5


def test_past_the_switch_all_rows_are_long(folder, session_of):
    session, _ = session_of(num_crops=4)
    pieces = session.parts.chat.render([{"role": "user", "content": "@\n@\nhello"}]).split("@")
    runs = [session.parts.tokenizer.encode(pieces[0]), B, session.parts.tokenizer.encode(pieces[1]), A]
    runs.append(session.parts.tokenizer.encode(pieces[2]))
    got = answer(session, [say(B, A, "hello")], 4)
    assert session.statistics.prompt_tokens > 1024
    assert got == oracle(folder, runs, len(got), 4)


def test_a_second_question_computes_only_what_is_new(session_of):
    session, tower = session_of()
    first = [say(A, "what is this?")]
    said = "".join(session.generate(first, max_tokens=5, repetition=True))
    seen, filled = tower.seen, session.statistics.prompt_tokens
    assert seen == 2 and session.pictures.views == 2 and session.pictures.encode_s > 0
    again = [*first, {"role": "assistant", "content": said}, {"role": "user", "content": "and its name?"}]
    list(session.generate(again, max_tokens=5, repetition=True))
    assert tower.seen == seen and session.statistics.reused_tokens >= filled - 1
    session.reset()  # the KV cache is gone, what the picture looks like is not
    fresh = [say(A.copy(), "and its name?")]
    list(session.generate(fresh, max_tokens=5, repetition=True))
    assert tower.seen == seen and session.statistics.reused_tokens == 0
    list(session.generate([say(B, "and its name?")], max_tokens=5, repetition=True))
    assert tower.seen > seen and session.statistics.reused_tokens < 10  # another picture is another prefix


def test_what_was_seen_is_kept_in_a_folder(session_of, tmp_path):
    session, tower = session_of(features=tmp_path / "features")
    first = answer(session, [say(A, "what is this?")])
    assert tower.seen == 2
    session, tower = session_of(features=tmp_path / "features")
    assert answer(session, [say(A, "what is this?")]) == first and tower.seen == 0
    for path in (tmp_path / "features").iterdir():
        path.write_bytes(path.read_bytes()[:1000])
    session, tower = session_of(features=tmp_path / "features")
    assert answer(session, [say(A, "what is this?")]) == first and tower.seen == 2
    session, tower = session_of(features=tmp_path / "features", num_crops=4)
    answer(session, [say(A, "what is this?")])
    assert tower.seen > 2


def test_features_that_can_not_be_kept_are_one_line(session_of, tmp_path):
    (tmp_path / "file").write_bytes(b"")
    for folder in (tmp_path / "file", tmp_path / "file" / "features"):
        session, _ = session_of(features=folder)
        with pytest.raises(InputError, match=r"file.* can't be written \(.+\): pictures' features are") as told:
            list(session.generate([say(A, "what is this?")], max_tokens=2))
        assert "\n" not in str(told.value)


def test_lookup_and_penalty_leave_pictures_alone(session_of):
    plain, _ = session_of()
    ask = [say(A, "the cat sat on the mat and the cat sat on the mat and the cat")]
    want = answer(plain, ask, 24)
    quoting, _ = session_of()
    assert answer(quoting, ask, 24, lookup=True) == want
    penalized, _ = session_of()
    assert len(answer(penalized, ask, 8, repetition_penalty=1.3)) >= 7


def test_a_slid_window_drops_pictures_with_their_turns(session_of):
    session, _ = session_of(context=700)
    history = [
        say(A, "first"),
        {"role": "assistant", "content": "yes"},
        say(B, "second"),
        {"role": "assistant", "content": "no"},
    ]
    list(session.generate([*history, {"role": "user", "content": "and now?"}], max_tokens=3, overflow="slide"))
    assert session.statistics.dropped_messages == 2
    shown = {-(1 + token) // SPAN for token in session._rows.tokens if token < 0}
    assert shown == {1}


@pytest.mark.parametrize(
    ("parts", "want"),
    [
        ((A, "what"), [Picture(1), "\n", "what"]),
        (("what ", A), ["what ", Picture(1), "\n"]),
        (("<|image_1|> or <|image_2|>?", A, B), ["", Picture(1), " or ", Picture(2), "?"]),
        ((A, "twice <|image_1|>, <|image_1|>"), ["twice ", Picture(1), ", ", Picture(1), ""]),
    ],
)
def test_places(parts, want):
    seen = see([say(*parts)])
    assert list(seen.messages[0].parts) == want
    assert [image is given for image, given in zip(seen.images, [p for p in parts if not isinstance(p, str)], strict=True)]


def test_numbers_count_through_a_conversation():
    later = see([say(A, "one"), {"role": "assistant", "content": "<|image_9|>"}, say(B, "like <|image_1|>: <|image_2|>")])
    assert later.messages[2].parts == ("like ", Picture(1), ": ", Picture(2), "")
    assert later.messages[1].parts == ("<|image_9|>",)  # in a plain text it is letters


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        (("<|image_2|>", A), r"says <\|image_2\|>, and the conversation has 1 images"),
        (("<|image_1|>",), r"says <\|image_1\|>, and the conversation has 0 images"),
        (("<|image_1|>", A, B), r"gives 2 images and never says <\|image_2\|>"),
        (("<|image_0|> <|image_1|>", A), r"says <\|image_0\|>"),
    ],
)
def test_numbers_that_do_not_fit(session_of, parts, message):
    session, _ = session_of()
    with pytest.raises(InputError, match=message):
        session.generate([say(*parts)])


@pytest.mark.parametrize(
    "content",
    [[], [{"type": "audio", "audio": b""}], [{"type": "text"}], [{"type": "image", "image": None}], ["text"], 5, None, [5]],
)
def test_contents_that_are_neither(session_of, content):
    session, _ = session_of()
    with pytest.raises(InputError, match="message 0"):
        session.generate([{"role": "user", "content": content}])


def test_bad_pictures_and_crops(session_of, tmp_path):
    session, _ = session_of()
    for image in (tmp_path / "none.jpg", b"no picture", np.zeros((2, 2), np.float32), 5):
        with pytest.raises(InputError):
            session.generate([say(image, "what?")])
    with pytest.raises(InputError, match="num_crops"):
        session_of(num_crops=0)


def test_a_text_model_says_so(folder):
    parts = Seeing(load_tokenizer(folder), load_chat(folder))
    session = Session(parts, EagerEngine(load_model(folder, 64), CHUNK))
    with pytest.raises(InputError, match="this model reads text only"):
        session.generate([say(A, "what?")])
    with pytest.raises(InputError, match="sees no pictures"):
        Session(parts, EagerEngine(load_model(folder, 64), CHUNK), num_crops=4)
    texts = [{"role": "user", "content": [{"type": "text", "text": "hello "}, {"type": "text", "text": "there"}]}]
    assert "".join(session.generate(texts, max_tokens=4)) == "".join(
        session.generate([{"role": "user", "content": "hello there"}], max_tokens=4)
    )


def test_too_many_rows_say_what_would_fit(session_of):
    session, _ = session_of(context=600, num_crops=16)
    with pytest.raises(InputError, match=r"\d+ are of pictures, num_crops \d+ would fit") as error:
        session.generate([say(A, "what?")])
    fits = int(str(error.value).split("num_crops ")[1].split()[0])
    session_of(context=600, num_crops=fits)[0].generate([say(A, "what?")])
    with pytest.raises(InputError, match="are of pictures"):
        session_of(context=600, num_crops=fits + 1)[0].generate([say(A, "what?")])
    with pytest.raises(InputError, match="show fewer of them"):
        session_of(context=300)[0].generate([say(A, "what?")])


def test_ids_tell_pictures_apart(folder):
    pictures = Pictures(EagerTower(load_vision(folder), 4), 1)
    a, b = pictures.ids(A), pictures.ids(B)
    assert a == pictures.ids(A.copy()) and not {*a} & {*b} and max(a + b) < 0 and len({*a}) == len(a) == 313
    both = pictures.embeddings([*a[5:9], *b[:3], *a[2:4]])
    assert np.array_equal(
        both, np.concatenate([pictures.embeddings(a)[5:9], pictures.embeddings(b)[:3], pictures.embeddings(a)[2:4]])
    )


def test_the_prompts_ids_are_the_released_processors(tmp_path, folder):
    """Pieces on their own, each with the bos of the tokenizer's post-processor; control texts that people write are letters."""
    backend = Backend.from_file(str(folder / "tokenizer.json"))
    backend.post_processor = TemplateProcessing(single="<|im_start|> $A", special_tokens=[("<|im_start|>", 1)])
    backend.save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"bos_token": "<|im_start|>"}))
    tokenizer, chat = load_tokenizer(tmp_path), ChatFormat(KNOWN_TEMPLATES["phi-3"])
    ids = encode(chat, tokenizer, [Message("user", (Picture(1), "\nhello ", Picture(2), "there"))], lambda n: [-n] * 3)
    pieces = ("<|user|>\n", "\nhello ", "there<|end|>\n<|assistant|>\n")
    want = [backend.encode(piece).ids for piece in pieces]
    assert ids == [*want[0], -1, -1, -1, *want[1], -2, -2, -2, *want[2]]
    spelled = encode(chat, tokenizer, [Message("user", ("<|im_end|>", Picture(1)))], lambda n: [-1])
    assert 2 not in spelled and spelled.count(1) == 2
    adjacent = encode(chat, tokenizer, [Message("user", (Picture(1), Picture(2)))], lambda n: [-n])
    assert adjacent[len(want[0]) :][:3] == [-1, 1, -2]


def test_a_file_is_decoded_once_until_it_changes(folder, tmp_path, monkeypatch):
    from PIL import Image

    from phi3mobile import pictures as files
    from phi3mobile.session import pictures as module

    opened = []
    monkeypatch.setattr(module, "open_picture", lambda image: opened.append(image) or files.open_picture(image))
    Image.fromarray(A).save(tmp_path / "a.png")
    pictures = Pictures(EagerTower(load_vision(folder), 4), 1)
    uri, data = files.data_uri(tmp_path / "a.png"), (tmp_path / "a.png").read_bytes()
    for source in (tmp_path / "a.png", uri, data, str(tmp_path / "a.png"), uri, data):
        assert pictures.ids(source) == pictures.ids(A)
    assert len([image for image in opened if image is not A]) == 3
    Image.fromarray(B).save(tmp_path / "a.png")
    assert pictures.ids(tmp_path / "a.png") == pictures.ids(B) != pictures.ids(A)
    for wrong in (tmp_path / "none.png", "a\0b", tmp_path):
        with pytest.raises(InputError):
            pictures.ids(wrong)
