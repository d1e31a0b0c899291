"""Question sets answered by a model: right or wrong by category, kept as jsonl."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

from phi3mobile.training.data.generators import final_answer, normal
from phi3mobile.training.data.jsonl import read_jsonl, write_jsonl
from phi3mobile.training.data.teacher import Ask

Report = Callable[[str, int, int], None]


def evaluate(
    ask: Ask, questions: list[dict[str, Any]], out: Path, report: Report = lambda stage, done, total: None
) -> dict[str, Any]:
    """Ask every question once; write {question, answer, category, reply, right} lines to `out`; return the scores.

    A reply is right if its final answer is the answer, or its first line has the answer as whole words.
    """
    lines = []
    for done, entry in enumerate(questions):
        report("evaluate", done, len(questions))
        reply = ask([{"role": "user", "content": entry["question"]}], 0)
        lines.append({**entry, "category": category_of(entry), "reply": reply, "right": is_right(reply, entry["answer"])})
    write_jsonl(out, lines)
    return scores(out)


def scores(file: Path) -> dict[str, Any]:
    """{"all": share right, "categories": {name: share right}} of an `evaluate` file."""
    right = defaultdict(list)
    for entry in read_jsonl(file):
        right[entry["category"]].append(entry["right"])
    every = [value for values in right.values() for value in values]
    return {"all": sum(every) / len(every), "categories": {name: sum(v) / len(v) for name, v in sorted(right.items())}}


def category_of(entry: dict[str, Any]) -> str:
    return str(entry.get("category") or "general")


def is_right(reply: str, answer: str) -> bool:
    """Compared without case, markup and punctuation; numbers by value."""
    wanted = normal(answer)
    first = next((line for line in reply.splitlines() if line.strip()), "")
    words = [normal(word) for word in first.split()]
    size = len(wanted.split())
    inside = any(" ".join(words[i : i + size]) == wanted for i in range(len(words) - size + 1))
    return final_answer(reply) == wanted or inside
