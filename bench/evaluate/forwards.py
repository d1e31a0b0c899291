"""Forwards that evaluation needs, each sequence reusing the KV cache rows it shares with the one before."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field

import numpy as np

from phi3mobile.engines import Engine
from phi3mobile.errors import InputError
from phi3mobile.session.decoding import Decoder, Rows
from phi3mobile.session.sampling import Sampling
from phi3mobile.session.session import StopGate
from phi3mobile.text.tokenizer import Tokenizer


@dataclass(frozen=True)
class Scores:
    """Of the tokens after `tokens[first]`: log probabilities (natural) and whether each was the likeliest."""

    following: list[float]  # of tokens[first + 1:]
    greedy: list[bool]
    last: dict[int, tuple[float, bool]]  # of every candidate after the last token


@dataclass
class Reader:
    """An engine with what its cache holds. Ask in sorted order of tokens: then every shared prefix is run once."""

    engine: Engine
    rows: Rows = field(init=False)
    run_tokens: int = 0
    reused_tokens: int = 0

    def __post_init__(self) -> None:
        self.rows = Rows(self.engine)

    def score(self, tokens: list[int], first: int, candidates: Collection[int]) -> Scores:
        """Scores of tokens[first + 1:] and of each candidate after tokens[-1]; 0 <= first < len(tokens) <= max_context.

        InputError if the engine's logits have NaN or infinity: no score is to come of that.
        """
        following, greedy, last = [], [], {}
        for start, logits in self._run(tokens, first):
            rows = np.arange(max(first - start, 0), len(logits))
            logits = logits[rows].astype(np.float64)
            peak = logits.max(-1, keepdims=True)  # NaN if one is
            if not np.isfinite(peak).all():
                raise InputError(f"the model's logits after {start + len(logits)} tokens are not finite (NaN or infinity)")
            logits -= peak + np.log(np.exp(logits - peak).sum(-1, keepdims=True))
            likeliest = logits.argmax(-1)
            for row, log_probabilities, best in zip(rows + start, logits, likeliest, strict=True):
                if row + 1 < len(tokens):
                    following.append(float(log_probabilities[tokens[row + 1]]))
                    greedy.append(bool(best == tokens[row + 1]))
                else:
                    last = {token: (float(log_probabilities[token]), bool(best == token)) for token in candidates}
        return Scores(following, greedy, last)

    def generate(
        self,
        prompt: list[int],
        tokenizer: Tokenizer,
        eos_ids: Collection[int],
        sampling: Sampling,
        max_tokens: int,
        stop: Sequence[str] = (),
        at_start: bool = True,
    ) -> str:
        """The text after `prompt`, up to an eos id, a stop string (left out), max_tokens or the end of the context.

        at_start: as a text of its own (see Tokenizer.stream), which is how lm-eval decodes; else as the prompt's continuation.
        """
        decoder = Decoder(self.rows, list(prompt), eos_ids, sampling, max_tokens)
        text, gate, parts = tokenizer.stream(at_start=at_start), StopGate(tuple(stop)), []
        tokens = decoder.run()
        try:
            for token in tokens:
                parts.append(gate.push(text.push(token)))
                if gate.hit:
                    break
        finally:
            tokens.close()
        self.reused_tokens += decoder.reused_tokens or 0
        self.run_tokens += decoder.prefilled_tokens + decoder.forwards
        return "".join([*parts, gate.push(text.finish()), gate.finish()])

    def _run(self, tokens: list[int], first: int):
        """(position, logits) of the chunks that hold row `first` or a later one."""
        info = self.engine.info
        long = info.original_context is not None and len(tokens) > info.original_context
        start = min(self.rows.common(tokens), first)
        if self.rows.long != long or not self.rows.reaches(start):
            start = 0
        self.reused_tokens += start
        self.run_tokens += len(tokens) - start
        for at in range(start, len(tokens), info.max_chunk):
            part = tokens[at : at + info.max_chunk]
            logits = self.rows.forward(part, at, long)
            if at + len(part) > first:
                yield at, logits
