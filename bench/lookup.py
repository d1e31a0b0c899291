"""What lookup decoding is worth: decode speed with and without it, on prompts that ask for quotes and on others."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

from phi3mobile.bench.measure import median
from phi3mobile.bundle import Bundle
from phi3mobile.session import Session

PROMPTS = Path(__file__).parent / "text" / "quoting.json"


def measure_lookup(
    bundle: Bundle,
    rounds: int = 3,
    max_tokens: int = 96,
    progress: Callable[[str, int, int], None] = lambda stage, done, total: None,
) -> dict[str, object]:
    """Per kind of prompt: decode speed with lookup over that without, greedy, interleaved; forwards saved; same text?

    A ratio compares tokens per second of the same answer in the same round; medians over rounds, per prompt.
    """
    kinds = json.loads(PROMPTS.read_text())
    result: dict[str, object] = {}
    with Session(bundle) as session:
        for kind, prompts in kinds.items():
            ratios, saved, same = [], [], 0
            for number, prompt in enumerate(prompts):
                progress(kind, number, len(prompts))
                pairs = [(_answer(session, prompt, max_tokens, False), _answer(session, prompt, max_tokens, True))
                         for _ in range(rounds)]  # fmt: skip
                ratios.append(round(median([quick[1] / plain[1] for plain, quick in pairs]), 2))
                (plain_text, _, plain_forwards), (quick_text, _, quick_forwards) = pairs[0]
                saved.append(round(1 - quick_forwards / plain_forwards, 2))
                same += plain_text == quick_text
            result[kind] = {
                "speedup": median(ratios), "each": ratios, "forwards_saved": saved, "same_text": f"{same}/{len(prompts)}",
            }  # fmt: skip
    return result


def _answer(session: Session, prompt: str, max_tokens: int, lookup: bool) -> tuple[str, float, int]:
    """Text, tokens per second and decode forwards of one answer from an empty cache."""
    session.reset()
    messages = [{"role": "user", "content": prompt}]
    text = "".join(session.generate(messages, max_tokens=max_tokens, lookup=lookup))
    figures = session.statistics
    return text, max(figures.generated_tokens, 1) / max(figures.decode_s, 1e-9), max(figures.forwards, 1)
