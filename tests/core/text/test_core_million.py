"""A million texts on each big vocabulary: the core's ids are Python's. Minutes each."""

import random
import unicodedata

import pytest
from texts import PARTS

COUNT = 1_000_000
CODES = (*range(0xD800), *range(0xE000, 0x32000), *range(0xE0000, 0xE0200))
KNOWN = [char for char in map(chr, CODES) if unicodedata.category(char) != "Cn"]
SENTENCE = (
    """The quick brown foxes' tails aren't what they've been, in 1984 or 2026: 3,141.59 (about) "half" -- so-called e.g."""
)
ENGLISH = SENTENCE.split()


def text_of(draw: random.Random) -> str:
    """Awkward parts, any characters, Latin bytes, or words, some of each or one kind."""
    kind = draw.random()
    if kind < 0.4:
        return "".join(draw.choices(PARTS, k=draw.randint(0, 12)))
    if kind < 0.6:
        return "".join(draw.choice(KNOWN) if draw.random() < 0.7 else draw.choice(PARTS) for _ in range(draw.randint(0, 16)))
    if kind < 0.75:
        return "".join(map(chr, draw.choices(range(1, 0x250), k=draw.randint(0, 24))))
    return draw.choice(["", " ", "\n", "\t"]).join(
        word + draw.choice(["", " ", ".", "\n\n", "  "]) for word in draw.choices(ENGLISH, k=draw.randint(0, 12))
    )


def differing(ours, theirs, count: int, seed: int) -> list[str]:
    """Texts of which the two have different ids, a few of them also as what people wrote between control tokens."""
    draw, found = random.Random(seed), []
    for number in range(count):
        text = text_of(draw)
        same = ours.encode(text) == theirs.encode(text)
        if number % 8 == 0:
            spans = [("<|user|>\n", True), (text, False), ("<|end|>\n", True)]
            same = same and ours.encode_spans(spans) == theirs.encode_spans(spans)
        if not same:
            found.append(text)
    return found


@pytest.mark.slow
@pytest.mark.parametrize("name", ["phi-3", "smollm2", "cl100k"])
def test_a_million_texts(pair_of, name):
    assert differing(*pair_of(name), COUNT, seed=19) == []


@pytest.mark.parametrize("name", ["phi-3", "smollm2", "cl100k"])
def test_thousands_of_texts(pair_of, name):
    assert differing(*pair_of(name), 3000, seed=20) == []
