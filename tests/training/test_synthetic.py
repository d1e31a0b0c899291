"""Synthetic data against a stand-in teacher: every gate removes what was planted, cut runs go on, the loop keeps what helps."""

from __future__ import annotations

import json
import random
import shutil
from collections import Counter
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import pytest
from exported import talking_checkpoint
from fake_teacher import serve
from hypothesis import given
from hypothesis import strategies as st
from training_tiny import pretrain_table, write_toml

from phi3mobile.cli import main
from phi3mobile.errors import InputError

pytest.importorskip("openai", reason="needs the extra `train`")
pytest.importorskip("datatrove", reason="needs the extra `train`")
pytest.importorskip("spacy", reason="needs the extra `train`")

from phi3mobile.training.data.curate import Curate, curate, weakest
from phi3mobile.training.data.evaluate import evaluate, is_right
from phi3mobile.training.data.gates import Gates, NearDuplicates, Overlap
from phi3mobile.training.data.generators import Task, Unusable, final_answer, normal, prompt, read, read_score
from phi3mobile.training.data.jsonl import read_jsonl, write_jsonl
from phi3mobile.training.data.synthetic import Generate, Label, generate, label
from phi3mobile.training.data.teacher import Desk, Teacher, open_teacher

WORDS = (Path(__file__).parents[2] / "bench" / "text" / "jargon.txt").read_text("utf-8").split()


def words(seed: object, count: int = 40) -> str:
    return " ".join(random.Random(seed).sample(WORDS, count)).replace('"', "'").replace("\\", "")


def teacher_reply(body: dict) -> str:
    """What a good teacher says; topics named `bad ...` make it misbehave, each in its way."""
    text, seed = body["messages"][-1]["content"], body["seed"]
    if "Rate this text" in text:
        return '{"score": 1}' if "dull" in text else 'Sure: {"score": 5}'
    if "educational value" in text:
        return "no idea" if "dull" in text else '{"score": 4}'
    if "Think step by step" in text:
        return f"Answer: {'7' if 'unsure' not in text or seed == 0 else seed}"
    text += str(seed)  # other dice, other words
    if "bad json" in text:
        return "I would rather not."
    if "bad copy" in text:
        return json.dumps({"instruction": words("1"), "response": words("2")})
    if "bad leak" in text:
        question = "what is the capital city of the red planet, " + words(text)
        return json.dumps({"instruction": question, "response": words(text + "1")})
    mark = "dull" if "bad dull" in text else "unsure" if "bad unsure" in text else ""
    if "exercise" in text:
        found = {"question": f"{mark} {words(text)} 3 + 4?", "solution": words(text + "1"), "answer": "7"}
        return f"```json\n{json.dumps(found)}\n```"
    if "conversation" in text:
        turns = [{"role": role, "content": words(f"{text}{i}")} for i, role in enumerate(["user", "assistant"] * 2)]
        return json.dumps({"messages": turns})
    if "instruction" in text:
        return json.dumps({"instruction": f"{mark} {words(text)}", "response": words(text + "1")})
    return f"{mark} {words(text, 60)}"


@pytest.fixture(scope="module")
def server():
    with serve(teacher_reply) as running:
        yield running


def config_for(server, out: Path, topics=("rivers", "sums"), **changes) -> Generate:
    given = {"teacher": Teacher(server[0], "teacher"), "topics": topics, "count": 4, "gates": Gates(votes=3, judge=3.0)}
    return Generate(out, **given | changes)


def test_all_kinds_come_out(server, tmp_path):
    result = generate(config_for(server, tmp_path / "out"))
    assert result["kept"] == result["tasks"] == 16 and result["removed"] == {}
    files = {file.stem: read_jsonl(file) for file in (tmp_path / "out").glob("*.jsonl")}
    assert {kind: len(records) for kind, records in files.items()} == dict.fromkeys(files, 4) and len(files) == 4
    assert all(record["text"] for record in files["passage"] + files["exercise"])
    for kind in ("exercise", "instruction", "chat"):
        for record in files[kind]:
            assert [m["role"] for m in record["messages"]] == ["user", "assistant"] * (len(record["messages"]) // 2)
    assert files["exercise"][0]["agreement"] == 1.0 and files["exercise"][0]["judge"] == 5.0
    assert files["exercise"][0]["messages"][1]["content"].endswith("Answer: 7")
    assert {record["topic"] for record in files["chat"]} == {"rivers", "sums"}


def test_each_gate_removes_what_was_planted(server, tmp_path):
    write_jsonl(tmp_path / "eval.jsonl", [{"question": "What is the capital city of the red planet?", "answer": "None"}])
    topics = ("rivers", "bad json", "bad copy", "bad leak", "bad dull")
    gates = Gates(decontaminate=(tmp_path / "eval.jsonl",))
    result = generate(config_for(server, tmp_path / "out", topics, kinds=("instruction",), count=10, gates=gates))
    assert result["removed"] == {"not JSON": 2, "near-duplicate": 1, "evaluation text": 2, "judged too low": 2}
    assert result["kept"] == 3
    statistics = json.loads((tmp_path / "out" / "statistics.json").read_text())
    assert statistics["samples"]["not JSON"][0] == "I would rather not."
    exercises = config_for(server, tmp_path / "votes", ("rivers", "bad unsure"), kinds=("exercise",))
    assert generate(exercises)["removed"] == {"not self-consistent": 2}
    short = config_for(server, tmp_path / "short", kinds=("passage", "chat"), gates=Gates(min_words=100, judge=0.0))
    assert generate(short)["removed"] == {"too short": 4}


def test_cut_run_goes_on_and_asks_nothing_twice(tmp_path):
    failing = Counter()

    def answer(body: dict) -> str | int:
        failing["asked"] += 1
        return 400 if failing["asked"] == 10 and not failing["over"] else teacher_reply(body)

    with serve(answer) as server:
        teacher = Teacher(server[0], "t", parallel=1)
        config = config_for(server, tmp_path / "out", kinds=("instruction", "exercise"), teacher=teacher)
        with pytest.raises(InputError, match=r"did not answer.*answers so far are kept"):
            generate(config)
        assert not (tmp_path / "out").exists() and len(read_jsonl(tmp_path / "out.answers.jsonl")) == 9
        with (tmp_path / "out.answers.jsonl").open("a") as file:
            file.write('{"key": "torn')
        failing["over"] = 1
        assert generate(config)["kept"] == 8
        again = replace(config, out=tmp_path / "whole")
        generate(again)
        for kind in ("instruction", "exercise"):
            assert (tmp_path / "out" / f"{kind}.jsonl").read_bytes() == (tmp_path / "whole" / f"{kind}.jsonl").read_bytes()
        asked = [json.dumps([r["messages"], r["seed"]]) for r in server[1]]
        assert len(asked) == 2 * len(set(asked)) + 1  # every question once a folder, and the one that failed


def test_server_errors_are_retried_and_keys_are_sent(tmp_path, monkeypatch):
    monkeypatch.setenv("TEACHER_KEY", "secret")
    codes = iter([429, 500])
    with serve(lambda body: next(codes, None) or "fine") as server:
        desk = open_teacher(Teacher(server[0], "m", key_variable="TEACHER_KEY"), tmp_path / "a.jsonl")
        assert desk([{"role": "user", "content": "x"}], 3) == "fine" == desk([{"role": "user", "content": "x"}], 3)
        assert len(server[1]) == 3 and desk.asked == 1
        request = server[1][-1]
        assert request["authorization"] == "Bearer secret" and request["path"] == "/v1/chat/completions"
        assert (request["seed"], request["temperature"], request["model"]) == (3, 0.8, "m")
    with pytest.raises(InputError, match="did not answer"):
        open_teacher(Teacher(server[0], "m", retries=0), tmp_path / "b.jsonl")([{"role": "user", "content": "x"}], 3)


def test_a_checkpoint_is_a_teacher_too(tiny_checkpoint_folder, tiny_bundle, tmp_path):
    for name, path in (("checkpoint", tiny_checkpoint_folder), ("bundle", tiny_bundle)):
        desk = open_teacher(Teacher(path=str(path), max_tokens=5), tmp_path / f"{name}.jsonl")
        messages = [{"role": "user", "content": "hello"}]
        first = desk(messages, 1)
        desk.memory = tmp_path / f"{name}-again.jsonl"
        fresh = Desk(desk.ask_fresh, tmp_path / f"{name}-fresh.jsonl")
        assert isinstance(first, str) and fresh(messages, 1) == first  # the seed makes it repeatable


def test_labels_for_the_classifier(server, tmp_path):
    write_jsonl(tmp_path / "texts.jsonl", [{"text": "a text"}, {"text": "a dull text"}, {"text": "more"}, {"text": "unread"}])
    config = Label(tmp_path / "labels.jsonl", Teacher(server[0], "t"), tmp_path / "texts.jsonl", count=3)
    assert label(config)["labels"] == 2
    assert read_jsonl(config.out) == [{"text": "a text", "score": 4.0}, {"text": "more", "score": 4.0}]


def test_nothing_usable_and_bad_input(server, tmp_path):
    with pytest.raises(InputError, match="none of 4 answers passed the gates \\(not JSON 4\\)"):
        generate(config_for(server, tmp_path / "out", ("bad json",), kinds=("chat",)))
    assert not (tmp_path / "out").exists()
    for make, match in (
        (lambda: Teacher(), "url and model, or path"),
        (lambda: Teacher(url="http://x"), "url and model"),
        (lambda: Teacher(path="x", max_tokens=0), "max_tokens"),
        (lambda: Gates(min_words=5, max_words=1), "min_words"),
        (lambda: Gates(judge=6), "judge"),
        (lambda: config_for(server, tmp_path, ()), "topics or topics_file"),
        (lambda: config_for(server, tmp_path / "y", count=0), "count"),
        (lambda: generate(config_for(server, tmp_path)), "exists"),
        (lambda: generate(config_for(server, tmp_path / "z", topics=(), topics_file=tmp_path / "no")), "one topic a line"),
        (lambda: open_teacher(Teacher(path=str(tmp_path / "none")), tmp_path / "m"), "none"),
    ):
        with pytest.raises(InputError, match=match):
            make()


def test_reading_answers():
    task = Task("exercise", "t", 0)
    good = {"question": "q", "solution": "s", "answer": 12}
    assert read(f"Here: {json.dumps(good)} enjoy", task)["answer"] == "12"
    for bad in ("", "[1]", '{"question": "q"}', '{"question": "q", "solution": " ", "answer": "1"}', "{broken"):
        with pytest.raises(Unusable):
            read(bad, task)
    turns = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    for messages in (turns, turns * 2 + turns[:1], turns[::-1] * 2, [*turns, turns[0], "x"], "x"):
        with pytest.raises(Unusable):
            read(json.dumps({"messages": messages}), Task("chat", "t", 0))
    for answer in ('{"score": 9}', '{"score": "high"}', "five", '{"score": null}', '{"score": NaN}'):
        with pytest.raises(Unusable):
            read_score(answer, 0, 5)
    assert len({prompt(Task("passage", "t", seed))[0]["content"] for seed in range(50)}) > 10
    assert prompt(Task("passage", "t", 3)) == prompt(Task("passage", "t", 3))


@given(st.text(max_size=200))
def test_any_answer_is_read_or_refused(text):
    for kind in ("passage", "exercise", "instruction", "chat"):
        with suppress(Unusable):
            assert read(text, Task(kind, "t", 0))["kind"] == kind


def test_answers_are_compared_by_value():
    assert final_answer("So 3.\nThe answer is **1,200.0**.") == normal("1200") == "1200"
    assert final_answer("blah\n42 ") == "42" and final_answer("") == ""
    assert is_right("Paris is the capital.", "Paris") and is_right("x\nAnswer: paris", "Paris")
    assert not is_right("Parisian", "Paris") and not is_right("", "Paris")
    assert is_right("It is New York, I think", "new york")


def test_near_duplicates_and_overlap(tmp_path):
    seen = NearDuplicates()
    text = words(5, 200)
    assert not seen.add(text) and seen.add(text.upper()) and seen.add(text + " and one more word")
    assert not seen.add(words(6, 200)) and not seen.add("two words") and seen.add("Two  words.")
    write_jsonl(tmp_path / "e.jsonl", [{"question": "How many legs has a spider?", "answer": "eight"}])
    overlap = Overlap((tmp_path / "e.jsonl",), 12)
    assert overlap("tell me: how many legs HAS a spider") and not overlap("How many legs has a table?")


def questions(path: Path) -> Path:
    answers = {"red": "x", "blue": "blue"}
    write_jsonl(
        path,
        (
            {"question": f"say {name} number {i}", "answer": answer, "category": name}
            for name, answer in answers.items()
            for i in range(3)
        ),
    )
    return path


def test_evaluate_by_category(tmp_path):
    found = evaluate(lambda messages, seed: "blue", read_jsonl(questions(tmp_path / "q.jsonl")), tmp_path / "r.jsonl")
    assert found == {"all": 0.5, "categories": {"blue": 1.0, "red": 0.0}}
    assert weakest({"a": 0.2, "b": 0.9, "c": 0.1, "d": 0.2}, 2, 0.5) == ["c", "a"]


def test_curation_loop_is_resumable_and_keeps_only_what_helps(server, tmp_path, monkeypatch):
    models, trained = {}, []
    for name in ("start", "better", "worse"):
        models[name] = str(tmp_path / name)

    def ask_of(model: str, temperature: float, max_tokens: int):
        skill = Path(model).name
        replies = {"start": "blue", "better": "Answer: x", "worse": "?"}
        return lambda messages, seed: "blue" if "blue" in messages[0]["content"] and skill != "worse" else replies[skill]

    class Opened(str):
        def __enter__(self):
            return self

        def __exit__(self, *error):
            pass

    monkeypatch.setattr("phi3mobile.training.data.curate.open_session", Opened)
    monkeypatch.setattr("phi3mobile.training.data.curate.session_ask", ask_of)

    def train(model: str, files: list[str], out: Path) -> str:
        trained.append((Path(model).name, [Path(file).name for file in files]))
        if len(trained) == 1:
            raise KeyboardInterrupt
        return models["worse" if len(trained) == 2 else "better"]

    config = Curate(
        tmp_path / "out",
        models["start"],
        Teacher(server[0], "t"),
        questions(tmp_path / "q.jsonl"),
        tmp_path / "unused.toml",
        topics={"red": ["red things", "warm colours"]},
        rounds=3,
        weakest=1,
        per_category=2,
        gates=Gates(votes=1),
    )
    with pytest.raises(KeyboardInterrupt):
        curate(config, train=train)
    asked = len(server[1])
    result = curate(config, train=train)
    assert asked < len(server[1])  # the second round's examples; the first round's were not asked for again
    assert result["before"] == 0.5 and result["after"] == 1.0 and result["model"] == models["better"]
    assert [entry["kept"] for entry in result["rounds"]] == [False, True]  # and no third: nothing is weak any more
    assert result["rounds"][0]["weak"] == ["red"]
    assert trained[1] == ("start", ["exercise.jsonl", "instruction.jsonl"])
    assert len(trained[2][1]) == 4  # both rounds' examples
    topics = {record["topic"] for record in read_jsonl(tmp_path / "out" / "round-1" / "data" / "exercise.jsonl")}
    assert topics == {"red things", "warm colours"}
    before = len(server[1]), len(trained)
    assert curate(config, train=train) == result and (len(server[1]), len(trained)) == before
    with pytest.raises(InputError, match="begun with another config"):
        curate(replace(config, rounds=1), train=train)
    with pytest.raises(InputError, match="topics names green"):
        curate(replace(config, out=tmp_path / "o2", topics={"green": ["x"]}), train=train)
    with pytest.raises(InputError, match="choose of exercise"):
        replace(config, kinds=("passage",))


def test_curation_trains_a_real_model(server, tmp_path):
    """The whole command on a tiny checkpoint: SFT, evaluation of what it wrote, a result."""
    start = talking_checkpoint(tmp_path / "start", "tiny-gqa", max_position_embeddings=1024)
    (tmp_path / "sft.toml").write_text(f"""
out = "ours"
[model]
folder = "{start}"
[data]
files = []
[optimizer]
lr = 1e-3
[schedule]
steps = 2
[batch]
rows = 2
length = 1024
""")
    questions(tmp_path / "q.jsonl")
    (tmp_path / "curate.toml").write_text(f"""
out = "{tmp_path / "out"}"
model = "{start}"
questions = "{tmp_path / "q.jsonl"}"
sft = "{tmp_path / "sft.toml"}"
rounds = 1
per_category = 1
max_tokens = 4
[teacher]
url = "{server[0]}"
model = "t"
[gates]
votes = 1
""")
    assert main(["data", "curate", str(tmp_path / "curate.toml")]) == 0
    result = json.loads((tmp_path / "out" / "round-1" / "result.json").read_text())
    assert result["weak"] == ["blue", "red"] and result["after"]["all"] in (0.0, *[i / 6 for i in range(1, 7)])
    assert (tmp_path / "out" / "round-1" / "sft" / "final" / "config.json").is_file()
    shutil.rmtree(tmp_path / "out")


def test_verb_generate(server, tmp_path, capsys):
    config = tmp_path / "g.toml"
    teacher = f'[teacher]\nurl = "{server[0]}"\nmodel = "t"\n'
    config.write_text(f'out = "{tmp_path / "out"}"\ntopics = ["rivers"]\ncount = 2\n{teacher}')
    assert main(["data", "generate", str(config)]) == 0
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["kept"] == 8
    assert main(["data", "generate", str(config)]) == 2
    config.write_text(config.read_text().replace("count", "cuont"))
    assert main(["data", "generate", str(config)]) == 2
    assert "did you mean count" in capsys.readouterr().err


def test_curating_a_model_that_can_not_be_trained_is_refused_before_anything_is_asked(checkpoint_of, tmp_path):
    start = checkpoint_of("small-tiny")
    table = pretrain_table(tmp_path) | {"model": {"folder": str(start)}, "data": {"files": ["chats.jsonl"]}}
    sft = write_toml(tmp_path / "sft.toml", table)
    asked = questions(tmp_path / "q.jsonl")
    config = Curate(tmp_path / "out", str(start), Teacher("http://127.0.0.1:1", "t"), asked, sft)
    with pytest.raises(InputError, match="training takes phi3, llama, mistral"):
        curate(config)
    assert not (tmp_path / "out").exists()
