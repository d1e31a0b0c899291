"""The token loop over an Engine: prefill with prefix reuse, decode, LongRoPE switch, verified drafts. Knows no text."""

from __future__ import annotations

from collections.abc import Callable, Collection, Generator
from dataclasses import dataclass, field
from itertools import groupby
from time import perf_counter

import numpy as np

from phi3mobile.engines import Engine
from phi3mobile.session.drafts.lookup import Draft
from phi3mobile.session.guidance import Guide, GuideError
from phi3mobile.session.repetition import Repetition
from phi3mobile.session.sampling import Sampling, sample


@dataclass
class Rows:
    """What the engine's KV cache holds: row i was computed from tokens[i]. True also after a failed or stopped run.

    Negative tokens are rows of pictures, of which `embeddings` gives float32 [T, hidden].
    """

    engine: Engine
    embeddings: Callable[[list[int]], np.ndarray] | None = None
    tokens: list[int] = field(default_factory=list)
    long: bool = False  # computed with LongRoPE's long factors
    farthest: int = 0  # end of the farthest row written since row 0 was

    def forward(self, tokens: list[int], position: int, long: bool) -> np.ndarray:
        """Engine.forward, recorded; logits float32 [T, V]."""
        logits = self._run(tokens, position, long, self.engine.forward, "forward_embeddings")
        return logits[0] if len(logits) == 1 else np.concatenate(logits)

    def prefill(self, tokens: list[int], position: int, long: bool) -> np.ndarray:
        """As forward, but logits float32 [1, V] of the last token alone."""
        if not hasattr(self.engine, "prefill"):  # an app's own engine
            return self.forward(tokens, position, long)[-1:]
        return self._run(tokens, position, long, self.engine.prefill, "prefill_embeddings")[-1][None]

    def _run(
        self, tokens: list[int], position: int, long: bool, of_text: Callable[..., np.ndarray], of_pictures: str
    ) -> list[np.ndarray]:
        """What the engine makes of text and pictures one after the other: it takes either."""
        del self.tokens[position:]  # before the calls: if one fails, these rows are unknown
        self.long = long
        self.farthest = max(self.farthest if position else 0, position + len(tokens))
        made = []
        for is_picture, run in groupby(tokens, lambda token: token < 0):
            part = list(run)
            if is_picture:
                assert self.embeddings is not None
                made.append(getattr(self.engine, of_pictures)(self.embeddings(part), position, long=long))
            else:
                made.append(of_text(np.asarray(part, dtype=np.int64), position, long=long))
            position += len(part)
        self.tokens += tokens
        return made

    def common(self, tokens: list[int]) -> int:
        """Length of the prefix that `tokens` shares with the cache."""
        pairs = enumerate(zip(self.tokens, tokens, strict=False))
        return next((i for i, (a, b) in pairs if a != b), min(len(self.tokens), len(tokens)))

    def reaches(self, position: int) -> bool:
        """Whether a forward may go back to `position`: an evicting KV cache keeps only so much behind the farthest row."""
        back = self.engine.info.back
        return position == 0 or back is None or self.farthest - position <= back


@dataclass
class Decoder:
    """One answer. `run` yields its token ids; afterwards, or when closed early, the fields hold what happened."""

    rows: Rows
    tokens: list[int]  # the prompt; grows by the answer
    eos_ids: Collection[int]
    sampling: Sampling
    max_tokens: int | None = None
    lookup: bool = False
    cancelled: Callable[[], bool] = lambda: False
    # Given the answer so far, a shorter prompt + that answer, or None: there is none. Called when the context is full.
    slide: Callable[[list[int]], list[int] | None] = lambda answer: None
    on_event: Callable[[str], None] = lambda event: None
    guide: Guide | None = None  # started; it never knows more than what was yielded
    repetition: Repetition | None = None  # new; ends an answer that repeats itself
    started: float = field(default_factory=perf_counter)

    finish_reason: str = "cancelled"  # what it stays if the consumer closes `run`
    prompt_tokens: int = 0
    reused_tokens: int | None = None
    prefilled_tokens: int = 0
    generated_tokens: int = 0
    forwards: int = 0
    drafted: int = 0
    accepted: int = 0
    long_switch: bool = False
    prefill_s: float = 0.0
    times: list[float] = field(default_factory=list)  # seconds of work up to each token; the first is TTFT
    refill_s: float = 0.0  # the part of prefill_s that came after the first token

    def run(self) -> Generator[int]:
        """Yield the answer's token ids (never an eos id) and set finish_reason.

        Raises GuideError if a limit ends the answer before the guide calls it complete.
        """
        info = self.rows.engine.info
        rng = np.random.default_rng(self.sampling.seed)
        self.prompt_tokens = len(self.tokens)
        draft = Draft(self.tokens) if self.lookup else None
        proposed: list[int] = []
        logits = self._prefill()
        resumed = self.started
        while logits is not None:
            # logits[i] follow the last token and i draft tokens: they count as long as the draft was what we sample.
            matched = 0
            for row in logits:
                if self.guide:
                    row = self.guide.mask(row, self.eos_ids)
                sampled = sample(row, self.sampling, self._counted(), rng)
                token: int | None = sampled
                if self.guide and sampled not in self.eos_ids:
                    token = self._guided(self.guide, sampled)
                if token is None or token in self.eos_ids:
                    self._end()
                    return
                right = matched < len(proposed) and token == proposed[matched]
                matched += right
                self.accepted += right
                self.tokens.append(token)
                self.generated_tokens += 1
                if draft:
                    draft.push(token)
                # The consumer's time between two tokens is not ours.
                self.times.append(perf_counter() - resumed)
                yield token
                resumed = perf_counter()
                if self.cancelled():
                    return
                if self.guide and self.guide.finished:
                    self._end()
                    return
                if self.repetition and self.repetition.push(token):
                    self.on_event(f"the answer repeats itself and is ended after {self.generated_tokens} tokens")
                    self.finish_reason = "repetition"
                    return
                if not right:
                    break
            if self.generated_tokens == self.max_tokens:
                self._cut("length")
                return
            if draft:
                draft.feedback(len(proposed), matched)
            proposed = []
            if len(self.tokens) >= info.max_context:
                window = self.slide(self.tokens[len(self.tokens) - self.generated_tokens :])
                if window is None:
                    self._cut("context_full")
                    return
                self.tokens = window  # the draft still knows, and may quote, what was dropped
                logits = self._prefill()
            elif self._long() != self.rows.long:
                logits = self._prefill()
            else:
                proposed = self._propose(draft) if draft else []
                self.forwards += 1
                self.drafted += len(proposed)
                logits = self.rows.forward([self.tokens[-1], *proposed], len(self.tokens) - 1, self.rows.long)

    def _guided(self, guide: Guide, sampled: int) -> int | None:
        """The token that the guide takes for the sampled one; None: it ends the answer."""
        was_closing = guide.closing
        token = guide.push(sampled)
        if guide.closing and not was_closing:
            self.on_event(f"the answer is closed after {self.generated_tokens} tokens: no more would fit the limit")
        return token

    def _counted(self) -> list[int]:
        """The tokens that the repetition penalty counts."""
        if self.sampling.repetition_penalty == 1:
            return []
        if self.sampling.penalize_prompt:
            return [token for token in self.tokens if token >= 0] if self.rows.embeddings else self.tokens
        return self.tokens[len(self.tokens) - self.generated_tokens :]

    def _end(self) -> None:
        """The answer is whole; where the guide had to close it, the limit ended it."""
        self.finish_reason = "length" if self.guide and self.guide.closing else "stop"

    def _cut(self, reason: str) -> None:
        if self.guide and not self.guide.complete:
            raise GuideError(
                f"the answer did not fit {self.generated_tokens} tokens and is incomplete; "
                "raise max_tokens (--max-tokens), shorten the prompt or use a larger context"
            )
        self.finish_reason = reason

    def _propose(self, draft: Draft) -> list[int]:
        """A draft for the next forward: what the guide forces, else what the lookup finds, as far as the guide allows."""
        limit = self._draft_limit()
        forced = self.guide.forced()[: max(0, limit)] if self.guide else []
        proposed = forced or draft.propose(limit)
        return proposed[: self.guide.accepts(proposed)] if self.guide else proposed

    def _long(self) -> bool:
        limit = self.rows.engine.info.original_context
        return limit is not None and len(self.tokens) > limit

    def _draft_limit(self) -> int:
        """Most draft tokens: all rows of a forward have one LongRoPE regime, and no token is sampled past a limit."""
        info, length = self.rows.engine.info, len(self.tokens)
        limits = [info.max_chunk - 1, info.max_context - length - 1]
        if info.back is not None:
            limits.append(info.back)  # all of them may be rejected
        if self.max_tokens is not None:
            limits.append(self.max_tokens - self.generated_tokens - 1)
        if info.original_context is not None and not self.rows.long:
            limits.append(info.original_context - length)
        return min(limits)

    def _prefill(self) -> np.ndarray | None:
        """Fill the KV cache with the sequence; logits [1, V] after its last token. None if cancelled between chunks."""
        rows, long, chunk = self.rows, self._long(), self.rows.engine.info.max_chunk
        start = min(rows.common(self.tokens), len(self.tokens) - 1)  # the last token runs again: its logits are needed
        if start and rows.long != long:
            # A row's keys carry its rope factors, so rows of both kinds in one sequence would not be the model's.
            self.long_switch = True
            kind, limit = ("long", "past") if long else ("short", "within")
            self.on_event(
                f"LongRoPE: the sequence is {limit} {rows.engine.info.original_context} tokens; "
                f"all {len(self.tokens)} are prefilled again with the {kind} factors"
            )
        elif not rows.reaches(start):
            self.on_event(
                f"the KV cache keeps {rows.engine.info.back} tokens to go back by; all {len(self.tokens)} are prefilled again"
            )
        if rows.long != long or not rows.reaches(start):
            start = 0
        if self.reused_tokens is None:
            self.reused_tokens = start
        logits = None
        for position in range(start, len(self.tokens), chunk):
            if self.cancelled():
                return None
            began = perf_counter()
            part = self.tokens[position : position + chunk]
            logits = rows.prefill(part, position, long)
            seconds = perf_counter() - began
            self.prefilled_tokens += len(part)
            self.prefill_s += seconds
            self.refill_s += seconds if self.times else 0.0
        return logits
