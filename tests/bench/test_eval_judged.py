"""MT-bench: what the model and the judge are shown in each turn, and how ratings become scores."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from fake_teacher import serve
from hypothesis import given
from hypothesis import strategies as st

from phi3mobile.bench.evaluate.mt_bench import (
    Judgment,
    judge_messages,
    read_prompts,
    read_questions,
    read_rating,
    summarize_judgments,
)
from phi3mobile.cli import main
from phi3mobile.errors import InputError

pytest.importorskip("openai", reason="needs the extra `eval`")

QUESTIONS = [
    {"question_id": 81, "category": "writing", "turns": ["Write about the SEA.", "Now SHORTER."]},
    {"question_id": 111, "category": "math", "turns": ["What is 2 + 2?", "And doubled?"], "reference": ["FOUR", "EIGHT"]},
    {"question_id": 151, "category": "humanities", "turns": ["Who was PLATO?", "And his pupil?"]},
]


def written(path: Path, lines: list[dict]) -> Path:
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def rate(body: dict) -> str:
    """A judge with an opinion on each question; it can't rate Plato's second turn."""
    text = body["messages"][1]["content"]
    second = "SHORTER" in text or "doubled" in text or "pupil" in text
    if "PLATO" in text:
        return "I can't say." if second else "Good. Rating: [[7]]"
    if "SEA" in text:
        return "Rating: [[4.5]]" if second else "Rating: [[6]]"
    return "Rating: [9]" if second else "[[10]] it is"


def test_both_turns_are_asked_and_rated_apart(tiny_bundle, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    questions = written(tmp_path / "question.jsonl", QUESTIONS)
    out = tmp_path / "results.jsonl"
    with serve(rate) as (url, asked):
        command = [
            "eval",
            str(tiny_bundle),
            "--tasks",
            "mt_bench",
            "--questions",
            str(questions),
            "--out",
            str(out),
            "--judge-url",
            url,
            "--judge-model",
            "judge",
        ]
        assert main(command) == 0
        assert len(asked) == 6 and {body["temperature"] for body in asked} == {0.0}
        assert {body["max_tokens"] for body in asked} == {2048} and {body["model"] for body in asked} == {"judge"}
        assert main(command) == 0  # everything is remembered: answers and judgments
        assert len(asked) == 6
    lines = [json.loads(line) for line in out.read_text().splitlines()]
    assert lines[0]["score"] == lines[1]["score"] == pytest.approx((7 + 6 + 4.5 + 10 + 9) / 5) and lines[1]["answered_before"]
    means = lines[0]["metrics"]
    assert means["turn 1"] == pytest.approx((7 + 6 + 10) / 3, abs=1e-3) and means["turn 2"] == pytest.approx((4.5 + 9) / 2)
    assert means["math"] == 9.5 and means["humanities"] == 7 and lines[0]["unrated"] == 1 and lines[0]["n"] == 5
    said = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert said["results"][0]["task"] == "mt_bench"


def test_the_judge_of_the_first_turn_sees_nothing_of_the_second(tmp_path):
    prompts = read_prompts()
    plain, math, _ = read_questions(written(tmp_path / "q.jsonl", QUESTIONS))
    system, first = judge_messages(prompts, plain, ("A1", "A2"), 1)
    assert system["role"] == "system" and "SEA" in first["content"] and "A1" in first["content"]
    assert "SHORTER" not in first["content"] and "A2" not in first["content"]
    second = judge_messages(prompts, plain, ("A1", "A2"), 2)[1]["content"]
    assert all(part in second for part in ("SEA", "SHORTER", "A1", "A2"))
    with_reference = [judge_messages(prompts, math, ("A1", "A2"), turn)[1]["content"] for turn in (1, 2)]
    assert "FOUR" in with_reference[0] and "EIGHT" not in with_reference[0]
    assert all(part in with_reference[1] for part in ("FOUR", "EIGHT", "A1", "A2"))


def test_the_second_answer_follows_the_first(tiny_bundle, tmp_path, monkeypatch):
    from phi3mobile.bench.evaluate import mt_bench
    from phi3mobile.bench.evaluate.answers import Answers
    from phi3mobile.bench.evaluate.forwards import Reader
    from phi3mobile.bench.evaluate.model import open_model

    monkeypatch.setattr(mt_bench, "ANSWER_TOKENS", 6)
    model = open_model(tiny_bundle)
    reader, one = Reader(model.engine), read_questions(written(tmp_path / "q.jsonl", QUESTIONS))[1]
    answers = Answers(tmp_path / "a.sqlite", model.identity)
    first, second = mt_bench.answer_turns(model, reader, answers, one, seed=0)
    shown = model.tokenizer.decode(reader.rows.tokens)
    assert one.turns[0] in shown and first in shown and one.turns[1] in shown and reader.reused_tokens > 0
    assert mt_bench.answer_turns(model, reader, answers, one, seed=0) == (first, second) and answers.fresh == 2


@given(st.text(), st.floats(1, 10).map(lambda value: round(value, 2)))
def test_ratings_are_read(before, rating):
    before = before.replace("[", "").replace("]", "")
    assert read_rating(f"{before} Rating: [[{rating}]]") == rating


def test_what_is_no_rating_is_none():
    assert read_rating("[[5]] and [[9]]") == 5 and read_rating("I give [8].") == 8
    assert [read_rating(text) for text in ("", "8", "[[eleven]]", "[[11]]", "[[0]]", "[[-3]]")] == [None] * 6
    with pytest.raises(InputError, match="another judge"):
        summarize_judgments([Judgment(1, "math", 1, None, "")])


def test_references_come_from_their_own_file_too(tmp_path):
    bare = [{key: value for key, value in one.items() if key != "reference"} for one in QUESTIONS]
    path = written(tmp_path / "q.jsonl", bare)
    with pytest.raises(InputError, match=r"question 111 .* --references"):
        read_questions(path)
    references = written(tmp_path / "r.jsonl", [{"question_id": 111, "choices": [{"turns": ["4", "8"]}]}])
    assert read_questions(path, references)[1].reference == ("4", "8")
    with pytest.raises(InputError, match="choices"):
        read_questions(path, written(tmp_path / "bad.jsonl", [{"question_id": 111}]))


@pytest.mark.parametrize(
    "line",
    [
        {"question_id": 1, "category": "writing", "turns": ["one"]},
        {"question_id": 1, "turns": ["a", "b"]},
        {"category": "writing", "turns": ["a", "b"]},
        {"question_id": 1, "category": "writing", "turns": ["a", ""]},
    ],
)
def test_bad_questions_are_refused(tmp_path, line):
    with pytest.raises(InputError, match=r"q\.jsonl, object 1: give question_id, category and turns"):
        read_questions(written(tmp_path / "q.jsonl", [line]))


def test_bad_files_and_judges_are_refused(tiny_bundle, tmp_path, capsys):
    path = written(tmp_path / "q.jsonl", [QUESTIONS[0], QUESTIONS[0]])
    with pytest.raises(InputError, match="81 is there twice"):
        read_questions(path)
    with pytest.raises(InputError, match="lacks the judge prompt single-v1"):
        read_prompts(path)
    damaged = read_prompts() | {"single-v1": {"name": "single-v1", "system_prompt": "", "prompt_template": "{nobody}"}}
    with pytest.raises(InputError, match="can't be filled"):
        judge_messages(damaged, read_questions(written(path, QUESTIONS))[0], ("a", "b"), 1)
    for arguments in ([], ["--judge-url", "http://x"], ["--judge-url", "x", "--judge-model", "m", "--judge-path", "p"]):
        assert main(["eval", str(tiny_bundle), "--tasks", "mt_bench", "--questions", str(path), *arguments]) == 2
        assert "needs a judge" in capsys.readouterr().err
