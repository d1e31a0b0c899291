"""MT-bench (Zheng et al. 2023, arXiv 2306.05685): two questions in a row, each answer rated 1 to 10 by a judge.

Files have FastChat's formats: question.jsonl, its reference answers, judge_prompts.jsonl. The judge prompts that ship are this
project's own words for the same protocol: scores compare with published ones only with FastChat's prompts and judge.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from phi3mobile.bench.evaluate.answers import Answers
from phi3mobile.bench.evaluate.forwards import Reader
from phi3mobile.bench.evaluate.model import Model
from phi3mobile.errors import InputError
from phi3mobile.session.sampling import Sampling
from phi3mobile.training.data.jsonl import read_jsonl
from phi3mobile.training.data.teacher import Desk, Teacher, open_teacher

JUDGE_PROMPTS = Path(__file__).with_name("judge_prompts.jsonl")
# The protocol's sampling temperatures by category; others: 0.7. Answers have 1024 tokens, judgments 2048.
TEMPERATURES = {
    "writing": 0.7,
    "roleplay": 0.7,
    "extraction": 0.0,
    "math": 0.0,
    "coding": 0.0,
    "reasoning": 0.0,
    "stem": 0.1,
    "humanities": 0.1,
}
WITH_REFERENCE = ("math", "reasoning", "coding")
ANSWER_TOKENS, JUDGMENT_TOKENS = 1024, 2048
_RATING = re.compile(r"\[\[(\d+\.?\d*)\]\]")
_LOOSE_RATING = re.compile(r"\[(\d+\.?\d*)\]")


@dataclass(frozen=True)
class Question:
    id: Any
    category: str
    turns: tuple[str, str]
    reference: tuple[str, str] | None = None


@dataclass(frozen=True)
class Judgment:
    question: Any
    category: str
    turn: int  # 1 or 2
    rating: float | None  # None: the judge gave none
    text: str


def read_questions(path: Path, references: Path | None = None) -> list[Question]:
    """Questions with their reference answers: from `references`, else from a `reference` in the line itself.

    Raises InputError: unreadable, not two turns, the same id twice, or no reference where the category needs one.
    """
    known = {} if references is None else _references(references)
    questions: dict[Any, Question] = {}
    for number, line in enumerate(read_jsonl(path), 1):
        turns, name, category = line.get("turns"), line.get("question_id"), line.get("category")
        if name is None or not isinstance(category, str) or not _is_pair(turns):
            raise InputError(f"{path}, object {number}: give question_id, category and turns, a list of two texts")
        if name in questions:
            raise InputError(f"{path}, object {number}: question_id {name} is there twice")
        reference = known.get(name, line.get("reference"))
        if category in WITH_REFERENCE and not _is_pair(reference):
            raise InputError(f"{path}: question {name} ({category}) has no reference answer; give --references FILE")
        questions[name] = Question(name, category, tuple(turns), tuple(reference) if _is_pair(reference) else None)
    return list(questions.values())


def _references(path: Path) -> dict[Any, list[str]]:
    found = {}
    for number, line in enumerate(read_jsonl(path), 1):
        try:
            found[line["question_id"]] = line["choices"][0]["turns"]
        except (KeyError, IndexError, TypeError):
            raise InputError(f"{path}, object {number}: give question_id and choices[0].turns") from None
    return found


def _is_pair(value: Any) -> bool:
    return isinstance(value, list) and len(value) == 2 and all(isinstance(text, str) and text.strip() for text in value)


def read_prompts(path: Path = JUDGE_PROMPTS) -> dict[str, dict[str, str]]:
    """Judge prompts by name; the four for single answers must be there."""
    prompts = {line.get("name"): line for line in read_jsonl(path)}
    for base in ("single-v1", "single-math-v1"):
        for name in (base, f"{base}-multi-turn"):
            one = prompts.get(name, {})
            if not all(isinstance(one.get(key), str) for key in ("system_prompt", "prompt_template")):
                raise InputError(f"{path} lacks the judge prompt {name} with system_prompt and prompt_template")
    return prompts


def judge_messages(prompts: dict[str, dict[str, str]], one: Question, answers: tuple[str, str], turn: int) -> list[dict]:
    """What the judge is asked about `turn` (1 or 2): of turn 1 it sees nothing of turn 2."""
    with_reference = one.category in WITH_REFERENCE
    prompt = prompts[f"single{'-math' if with_reference else ''}-v1{'-multi-turn' if turn == 2 else ''}"]
    values = {"question": one.turns[0], "answer": answers[0]}
    if turn == 2:
        values = {"question_1": one.turns[0], "question_2": one.turns[1], "answer_1": answers[0], "answer_2": answers[1]}
    if with_reference:
        values |= {"ref_answer_1": one.reference[0]} | ({"ref_answer_2": one.reference[1]} if turn == 2 else {})
    try:
        text = prompt["prompt_template"].format(**values)
    except (KeyError, IndexError, ValueError) as error:
        raise InputError(f"the judge prompt {prompt['name']} can't be filled ({type(error).__name__}: {error})") from None
    return [{"role": "system", "content": prompt["system_prompt"]}, {"role": "user", "content": text}]


def read_rating(judgment: str) -> float | None:
    """The first [[number]] (else [number]) if it is from 1 to 10."""
    found = _RATING.search(judgment) or _LOOSE_RATING.search(judgment)
    rating = float(found[1]) if found else 0.0
    return rating if 1 <= rating <= 10 else None


def answer_turns(model: Model, reader: Reader, answers: Answers, one: Question, seed: int) -> tuple[str, str]:
    """The model's two answers; it sees its own first one in the second turn."""
    sampling = Sampling(temperature=TEMPERATURES.get(one.category, 0.7), seed=seed)
    messages: list[dict[str, str]] = []
    for turn in one.turns:
        messages.append({"role": "user", "content": turn})
        tokens = model.chat.encode(model.tokenizer, messages)
        room = model.engine.info.max_context - len(tokens)
        if room < 1:
            raise InputError(
                f"question {one.id} has {len(tokens)} tokens with its first answer, the context has "
                f"{model.engine.info.max_context}: export with a larger --context"
            )
        most = min(ANSWER_TOKENS, room)
        key = ["turn", tokens, sampling.temperature, seed, most]
        answer = answers.get(key)
        if answer is None:
            answer = reader.generate(tokens, model.tokenizer, model.eos_ids, sampling, most).strip()
            answers.put(key, answer)
        messages.append({"role": "assistant", "content": answer})
    return messages[1]["content"], messages[3]["content"]


def open_judge(memory: Path, **where: str) -> Desk:
    """A judge at `url` with `model` (an OpenAI-compatible API), or a bundle at `path`; judgments are kept in `memory`."""
    return open_teacher(Teacher(**where, temperature=0.0, max_tokens=JUDGMENT_TOKENS), memory)


def measure_conversations(
    model: Model,
    answers: Answers,
    judge: Desk,
    questions: list[Question],
    *,
    limit: int | None = None,
    seed: int = 0,
    prompts: dict[str, dict[str, str]] | None = None,
    progress: Callable[[str, int, int], None] = lambda *_: None,
) -> dict[str, Any]:
    """Mean rating of all judgments, of each turn and of each category; `unrated`: judgments without a number, left out."""
    if model.chat is None:
        raise InputError(f"{model.about['name']} has no chat template, and MT-bench is a conversation")
    prompts, questions, reader = prompts or read_prompts(), questions[:limit], Reader(model.engine)
    conversations = []
    for number, one in enumerate(questions):
        progress("answers", number, len(questions))
        conversations.append((one, answer_turns(model, reader, answers, one, seed)))
    asked = [(one, replies, turn) for one, replies in conversations for turn in (1, 2)]

    def judged(case: tuple[Question, tuple[str, str], int]) -> Judgment:
        one, replies, turn = case
        text = judge(judge_messages(prompts, one, replies, turn), 0)
        return Judgment(one.id, one.category, turn, read_rating(text), text)

    judgments = []
    for judgment in judge.map(judged, asked):
        judgments.append(judgment)
        progress("judge", len(judgments), len(asked))
    return summarize_judgments(judgments)


def summarize_judgments(judgments: list[Judgment]) -> dict[str, Any]:
    """Means by turn and category, as `phi3mobile report` reads them. InputError if the judge rated nothing."""
    groups: dict[str, list[float]] = defaultdict(list)
    for one in judgments:
        if one.rating is not None:
            for group in ("score", f"turn {one.turn}", one.category):
                groups[group].append(one.rating)
    if not groups:
        raise InputError("the judge gave no rating in [[double brackets]] at all; take another judge")
    means = {name: round(fmean(ratings), 4) for name, ratings in groups.items()}
    ratings = groups["score"]
    error = stdev(ratings) / len(ratings) ** 0.5 if len(ratings) > 1 else None
    return {
        "metric": "score",
        "score": means["score"],
        "stderr": error,
        "metrics": means,
        "shots": 0,
        "n": len(ratings),
        "unrated": sum(one.rating is None for one in judgments),
    }
