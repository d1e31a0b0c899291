"""Quality gates of synthetic records: length, near-duplicates, evaluation text, self-consistency, judge. Cheap ones first."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from phi3mobile.errors import InputError
from phi3mobile.training.data.generators import Unusable, final_answer, judge_prompt, normal, read_score, solve_prompt, text_of
from phi3mobile.training.data.jsonl import read_texts
from phi3mobile.training.data.teacher import Ask


@dataclass(frozen=True)
class Gates:
    """What a record must pass. `votes`: solutions of an exercise, of which `agree` must end in its answer; 0: not asked.
    `judge`: least score of 1 to 5; 0: not asked. `decontaminate`: jsonl evaluation sets that no record may quote."""

    min_words: int = 20
    max_words: int = 1500
    votes: int = 3
    agree: float = 0.5  # more than this share
    judge: float = 3.0
    decontaminate: tuple[Path, ...] = ()
    n_grams: int = 12

    def __post_init__(self) -> None:
        if not 0 <= self.min_words <= self.max_words or self.votes < 0 or not 0 <= self.judge <= 5 or not 0 <= self.agree < 1:
            raise InputError("gates: give 0 <= min_words <= max_words, votes >= 0, judge 0 to 5, agree 0 to below 1")


class NearDuplicates:
    """MinHash buckets in memory, as datatrove's four stages do it on disk: 5-grams, 14 x 8."""

    def __init__(self) -> None:
        from datatrove.pipeline.dedup.minhash import MinhashDedupSignature

        self._sign = MinhashDedupSignature(".")  # the folder is written to by run() alone
        self._seen: set[tuple[int, tuple]] = set()

    def add(self, text: str) -> bool:
        """Whether `text` is much like one before; if not, it is remembered."""
        shingles = self._sign.get_shingles(text)
        keys: set[tuple[int, tuple]] = {(-1, (normal(text),))}
        if len(shingles):  # it has the words of one n-gram
            keys |= set(enumerate(map(tuple, self._sign.get_signature(shingles))))
        if keys & self._seen:
            return True
        self._seen |= keys
        return False


class Overlap:
    """Words in a row that evaluation sets have."""

    def __init__(self, files: Iterable[Path], n: int) -> None:
        self._n, self._grams = n, set()
        for file in files:
            for question in read_texts(file, "question", "answer"):
                words = _words(f"{question['question']} {question['answer']}")
                size = min(n, len(_words(question["question"])))  # short questions count as a whole
                self._grams.update(tuple(words[i : i + size]) for i in range(max(1, len(words) - size + 1)) if size)
        self._sizes = {len(gram) for gram in self._grams if len(gram) >= 4}

    def __call__(self, text: str) -> bool:
        words = _words(text)
        return any(tuple(words[i : i + n]) in self._grams for n in self._sizes for i in range(len(words) - n + 1))


class Sieve:
    """The gates in order; `removed` counts what each kept out."""

    def __init__(self, gates: Gates, ask: Ask) -> None:
        self._gates, self._ask = gates, ask
        self._duplicates, self._overlap = NearDuplicates(), Overlap(gates.decontaminate, gates.n_grams)
        self.removed: Counter[str] = Counter()

    def cheap(self, record: dict[str, Any]) -> str | None:
        """Why the record is kept out, by what needs no teacher; None if it passes. Records must come in a fixed order."""
        text, gates = text_of(record), self._gates
        words = len(text.split())
        if words < gates.min_words:
            return "too short"
        if words > gates.max_words:
            return "too long"
        if self._overlap(text):
            return "evaluation text"
        return "near-duplicate" if self._duplicates.add(text) else None

    def costly(self, record: dict[str, Any]) -> str | None:
        """Why the teacher's own second look keeps the record out; None if it passes. Adds `agreement` and `judge`."""
        gates = self._gates
        if record["kind"] == "exercise" and gates.votes:
            answers = [final_answer(self._ask(solve_prompt(record["question"]), seed)) for seed in range(gates.votes)]
            record["agreement"] = answers.count(normal(record["answer"])) / gates.votes
            if record["agreement"] <= gates.agree:
                return "not self-consistent"
        if gates.judge:
            try:
                record["judge"] = read_score(self._ask(judge_prompt(text_of(record)), 0), 1, 5)
            except Unusable as error:
                return f"judge: {error}"
            if record["judge"] < gates.judge:
                return "judged too low"
        return None


def _words(text: str) -> list[str]:
    return "".join(c if c.isalnum() else " " for c in text.lower()).split()
