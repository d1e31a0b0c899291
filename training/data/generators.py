"""What is asked of a teacher and how its answer is read: passages, exercises, instructions, chats, and judgements.

A generator is two functions: `prompt(task) -> messages` and `read(answer, task) -> record`, which raises Unusable. Records have
`kind`, `topic`, and `text` (for pretraining) or `messages` (for SFT).
"""

from __future__ import annotations

import json
import random
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

Kind = Literal["passage", "exercise", "instruction", "chat"]
KINDS: tuple[Kind, ...] = ("passage", "exercise", "instruction", "chat")

# Variety comes from the prompt (arXiv 2306.11644, 2305.07759): who reads it, how it is told, what it must touch on.
AUDIENCES = ("a curious ten-year-old", "a high-school student", "an undergraduate", "a working engineer", "a careful beginner")
STYLES = (
    "plain and exact",
    "with one everyday example",
    "as reasoning step by step",
    "with a common mistake and its cure",
    "as question and answer",
    "from a concrete case to the rule",
)
LEVELS = ("easy", "medium", "hard")
_ANSWER = re.compile(r"answer\s*(?:is|:|=)\s*(.+)", re.IGNORECASE)


class Unusable(Exception):
    """The teacher's answer is not what was asked for; the reason, in two or three words."""


@dataclass(frozen=True)
class Task:
    """One thing to write. `seed` chooses audience, style and level, and the teacher's own dice."""

    kind: Kind
    topic: str
    seed: int

    def pick(self, choices: tuple[str, ...]) -> str:
        return random.Random(f"{self.kind} {self.topic} {self.seed} {choices[0]}").choice(choices)


def prompt(task: Task) -> list[dict[str, str]]:
    """The messages that ask for `task`."""
    return [{"role": "user", "content": _PROMPTS[task.kind](task)}]


def read(answer: str, task: Task) -> dict[str, Any]:
    """The record in a teacher's answer. Raises Unusable."""
    record = _READERS[task.kind](answer)
    return {"kind": task.kind, "topic": task.topic, **record}


def _ask_passage(task: Task) -> str:
    return (
        f"Write a self-contained textbook section on {task.topic} for {task.pick(AUDIENCES)}, {task.pick(STYLES)}. "
        "Explain why, not only what. Write the section only, without a greeting or a remark about the task."
    )


def _ask_exercise(task: Task) -> str:
    return (
        f"Write one {task.pick(LEVELS)} exercise on {task.topic} that has a single, checkable answer, and work it out, "
        f"{task.pick(STYLES)}. Reply with JSON only: "
        '{"question": "...", "solution": "steps ...", "answer": "short final answer"}'
    )


def _ask_instruction(task: Task) -> str:
    return (
        f"Write an instruction that {task.pick(AUDIENCES)} could give an assistant about {task.topic}, and the best reply, "
        f'{task.pick(STYLES)}. Reply with JSON only: {{"instruction": "...", "response": "..."}}'
    )


def _ask_chat(task: Task) -> str:
    turns = 2 + task.seed % 3
    return (
        f"Write a conversation in which {task.pick(AUDIENCES)} asks an assistant about {task.topic}: {turns} questions, each "
        "building on the answer before, and correct, helpful answers. Reply with JSON only: "
        '{"messages": [{"role": "user", "content": "..."}, {"role": "assistant", "content": "..."}, ...]}'
    )


def _read_passage(answer: str) -> dict[str, Any]:
    if not answer.strip():
        raise Unusable("empty")
    return {"text": answer.strip()}


def _read_exercise(answer: str) -> dict[str, Any]:
    question, solution, final = _texts(_json(answer), "question", "solution", "answer")
    reply = f"{solution}\n\nAnswer: {final}"
    return {"text": f"{question}\n\n{reply}", "messages": _pair(question, reply), "question": question, "answer": final}


def _read_instruction(answer: str) -> dict[str, Any]:
    return {"messages": _pair(*_texts(_json(answer), "instruction", "response"))}


def _read_chat(answer: str) -> dict[str, Any]:
    messages = _json(answer).get("messages")
    if not isinstance(messages, list) or len(messages) < 4 or len(messages) % 2:
        raise Unusable("too few turns")
    clean = []
    for index, message in enumerate(messages):
        role = ("user", "assistant")[index % 2]
        if not isinstance(message, dict) or message.get("role") != role:
            raise Unusable("roles out of turn")
        clean.append({"role": role, "content": _texts(message, "content")[0]})
    return {"messages": clean}


def text_of(record: dict[str, Any]) -> str:
    """All that a record says, for the gates."""
    return record.get("text") or "\n".join(message["content"] for message in record["messages"])


def solve_prompt(question: str) -> list[dict[str, str]]:
    """The exercise alone, for self-consistency."""
    return [{"role": "user", "content": f'{question}\n\nThink step by step and end with a line "Answer: ...".'}]


def final_answer(text: str) -> str:
    """What follows the last `Answer:`, else the last line; normalised for comparing."""
    found = _ANSWER.findall(text)
    lines = [line for line in text.strip().splitlines() if line.strip()]
    return normal(found[-1] if found else lines[-1] if lines else "")


def normal(text: str) -> str:
    """Lower case, single spaces, no markup or punctuation at the ends; numbers in one spelling."""
    text = " ".join(re.sub(r"[*`$]|\\boxed", "", text).lower().split()).strip(" .,:;!?\"'(){}[]")
    try:
        return f"{float(text.replace(',', '')):g}"
    except ValueError:
        return text


def judge_prompt(text: str) -> list[dict[str, str]]:
    """Asks for a score from 1 to 5."""
    return [
        {
            "role": "user",
            "content": (
                "Rate this text as training material for a small language model: is it correct, clear, complete and worth "
                f'learning from? Reply with JSON only: {{"score": 1 to 5}}\n\n"""\n{text}\n"""'
            ),
        }
    ]


def education_prompt(text: str) -> list[dict[str, str]]:
    """Asks for the educational value from 0 to 5, a point for each thing that holds (the additive scale of FineWeb-Edu)."""
    return [
        {
            "role": "user",
            "content": (
                "Score the educational value of this web text from 0 to 5. One point for each that holds: it has some"
                " basic information on a subject of study; it deals with the subject, if mixed with other matter; it "
                "fits teaching and is coherent; it is clear and consistent like a section of a textbook; it is "
                "outstanding, with detailed reasoning "
                f'that is easy to follow. Reply with JSON only: {{"score": 0 to 5}}\n\n"""\n{text[:4000]}\n"""'
            ),
        }
    ]


def read_score(answer: str, low: float, high: float) -> float:
    """The number in a judgement. Raises Unusable if there is none in [low, high]."""
    try:
        score = float(_json(answer).get("score"))
    except (TypeError, ValueError):
        raise Unusable("no score") from None
    if not low <= score <= high:
        raise Unusable("score out of range")
    return score


def _json(answer: str) -> dict[str, Any]:
    """The first JSON object in an answer: models like to wrap it in a fence or a sentence."""
    start = answer.find("{")
    try:
        found = json.JSONDecoder(strict=False).raw_decode(answer[start:])[0] if start >= 0 else None
    except ValueError:
        found = None
    if not isinstance(found, dict):
        raise Unusable("not JSON")
    return found


def _texts(entry: dict[str, Any], *keys: str) -> list[str]:
    values = [str(v) if isinstance(v := entry.get(key), str | int | float) else "" for key in keys]
    if not all(value.strip() for value in values):
        raise Unusable("a field is missing")
    return [value.strip() for value in values]


def _pair(question: str, reply: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": question}, {"role": "assistant", "content": reply}]


_PROMPTS: dict[str, Callable[[Task], str]] = {
    "passage": _ask_passage,
    "exercise": _ask_exercise,
    "instruction": _ask_instruction,
    "chat": _ask_chat,
}
_READERS: dict[str, Callable[[str], dict[str, Any]]] = {
    "passage": _read_passage,
    "exercise": _read_exercise,
    "instruction": _read_instruction,
    "chat": _read_chat,
}
