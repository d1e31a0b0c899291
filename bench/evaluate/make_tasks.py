"""Makes the tasks of bench/tasks: python -m phi3mobile.bench.evaluate.make_tasks WORDNET (a folder with data.noun, ...).

Same input, same files. They are there to be run without a network and to notice what quantization breaks, not to rank models.
"""

from __future__ import annotations

import random
import re
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from phi3mobile.bench.evaluate.tasks import SHIPPED
from phi3mobile.bench.perplexity import TEXT
from phi3mobile.training.data.jsonl import write_jsonl

Entry = dict[str, Any]
COUNT, CHOICES = 100, 4
# WordNet's lexicographer files of things one can point at.
CONCRETE = {"05": "animal", "06": "artifact", "13": "food", "17": "object", "20": "plant"}
_WORDY = re.compile(r"[A-Za-z]{2,}")


def next_sentences(text: str, count: int, seed: int = 0) -> Iterator[Entry]:
    """Two sentences of a paragraph, and four of which the right one follows; the wrong ones follow elsewhere."""
    paragraphs = [_sentences(part) for part in text.split("\n\n")]
    places = [
        (number, at)
        for number, part in enumerate(paragraphs)
        for at in range(2, len(part))
        if all(_plain(sentence) for sentence in part[at - 2 : at + 1])
    ]
    draw = random.Random(seed)
    draw.shuffle(places)
    for number, at in places[:count]:
        right = paragraphs[number][at]
        others = [paragraphs[a][b] for a, b in places if a != number]
        others.sort(key=lambda other: (abs(len(other) - len(right)), other))  # lengths alone give nothing away
        before = {"context": " ".join(paragraphs[number][at - 2 : at])}
        yield _choice(before, right, draw.sample(others[:12], CHOICES - 1), draw)


def _sentences(paragraph: str) -> list[str]:
    return re.split(r"(?<=[a-z)’][.!?]) (?=[A-Z‘(])", paragraph.strip())


def _plain(sentence: str) -> bool:
    return 30 <= len(sentence) <= 280 and len(_WORDY.findall(sentence)) >= 6


def words(folder: Path, count: int, seed: int = 1) -> Iterator[Entry]:
    """A definition of WordNet, and four words of the same kind (animals, foods, ...) of which one is meant."""
    known = common_nouns(folder)
    draw = random.Random(seed)
    chosen = draw.sample(known, count)
    for word, kind, definition in chosen:
        others = [other for other, its, _ in known if its == kind and other != word]
        yield _choice({"definition": definition, "kind": CONCRETE[kind]}, word, draw.sample(others, CHOICES - 1), draw)


def common_nouns(folder: Path, most: int = 600) -> list[tuple[str, str, str]]:
    """(word, kind, definition) of the concrete nouns that WordNet's texts use most, by their first sense, persons left out."""
    seen = {}
    for line in (folder / "cntlist.rev").read_text("utf-8").splitlines():
        sense, number, times = line.split()
        word, _, rest = sense.partition("%")
        if number == "1" and rest.startswith("1:") and rest[2:4] in CONCRETE and word.isalpha():
            seen[word] = int(times)
    glosses = {}
    for line in (folder / "data.noun").read_text("utf-8").splitlines():
        if not line.startswith(" "):
            head, _, gloss = line.partition("|")
            glosses[head.split()[0]] = head.split()[1], gloss.split(";")[0].strip()
    found = []
    for line in (folder / "index.noun").read_text("utf-8").splitlines():
        fields = line.split()
        if not line.startswith(" ") and fields[0] in seen:
            kind, definition = glosses[fields[-int(fields[2])]]
            if kind in CONCRETE and fields[0] not in definition.lower() and len(definition) >= 25:
                found.append((fields[0], kind, definition))
    return sorted(found, key=lambda one: (-seen[one[0]], one[0]))[:most]


def sums(count: int, seed: int = 2) -> Iterator[Entry]:
    """Additions below 30."""
    draw = random.Random(seed)
    for _ in range(count):
        a, b = draw.randint(1, 20), draw.randint(1, 9)
        yield {"question": f"What is {a} plus {b}?", "answer": str(a + b)}


def _choice(entry: Entry, right: str, wrong: Sequence[str], draw: random.Random) -> Entry:
    choices = [right, *wrong]
    draw.shuffle(choices)
    return entry | {"choices": choices, "answer": choices.index(right)}


def main(wordnet: Path, out: Path = SHIPPED) -> None:
    write_jsonl(out / "next_sentence.jsonl", next_sentences(TEXT.read_text("utf-8"), COUNT))
    entries = list(words(wordnet, COUNT + 5))
    write_jsonl(out / "words.examples.jsonl", entries[:5])
    write_jsonl(out / "words.jsonl", entries[5:])
    entries = list(sums(55))
    write_jsonl(out / "sums.examples.jsonl", entries[:5])
    write_jsonl(out / "sums.jsonl", entries[5:])


if __name__ == "__main__":
    main(Path(sys.argv[1]))
