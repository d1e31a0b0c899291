"""What lookup decoding is worth: decode speed with and without it, on prompts that ask for quotes and on others."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

from phi3mobile.bench.measure import median
from phi3mobile.bundle import Bundle
from phi3mobile.session.session import Session

PROMPTS = Path(__file__).parent / "text" / "quoting.json"


def measure_lookup(
    bundle: Bundle,
    rounds: int = 3,
    max_tokens: int = 96,
    progress: Callable[[str, int, int], None] = lambda stage, done, total: None,
) -> dict[str, object]:
    """Per kind of prompt: decode speed with lookup over that without, greedy, interleaved; forwards saved; same text?

    A ratio compares tokens per second of the same answer in the same round; medians over rounds, per prompt. `quoted` is
    the share of the answer's 4-grams that stand in the prompt: what the model really quotes.
    """
    kinds = json.loads(PROMPTS.read_text())
    result: dict[str, object] = {}
    with Session(bundle) as session:
        for kind, prompts in kinds.items():
            ratios, saved, quotes, same = [], [], [], 0
            for number, prompt in enumerate(prompts):
                progress(kind, number, len(prompts))
                pairs = [
                    (_answer(session, prompt, max_tokens, False), _answer(session, prompt, max_tokens, True))
                    for _ in range(rounds)
                ]
                ratios.append(round(median([quick[1] / plain[1] for plain, quick in pairs]), 2))
                (plain_text, _, plain_forwards), (quick_text, _, quick_forwards) = pairs[0]
                saved.append(round(1 - quick_forwards / plain_forwards, 2))
                quotes.append(_quoted(bundle, prompt, plain_text))
                same += plain_text == quick_text
            result[kind] = {
                "speedup": median(ratios),
                "each": ratios,
                "quoted": quotes,
                "forwards_saved": saved,
                "same_text": f"{same}/{len(prompts)}",
            }
    return result


def _quoted(bundle: Bundle, prompt: str, answer: str) -> float:
    asked, said = (bundle.tokenizer.encode(text, special=False) for text in (prompt, answer))
    known = set(zip(*(asked[i:] for i in range(4)), strict=False))
    grams = list(zip(*(said[i:] for i in range(4)), strict=False))
    return round(sum(gram in known for gram in grams) / max(1, len(grams)), 2)


def _answer(session: Session, prompt: str, max_tokens: int, lookup: bool) -> tuple[str, float, int]:
    """Text, tokens per second and decode forwards of one answer from an empty cache."""
    session.reset()
    messages = [{"role": "user", "content": prompt}]
    text = "".join(session.generate(messages, max_tokens=max_tokens, lookup=lookup))
    figures = session.statistics
    return text, max(figures.generated_tokens, 1) / max(figures.decode_s, 1e-9), max(figures.forwards, 1)
