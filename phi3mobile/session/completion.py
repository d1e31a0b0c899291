"""A tokenizer's vocabulary as llguidance wants it, and the search for tokens that complete a guided answer."""

from __future__ import annotations

import json
import string
from dataclasses import dataclass, replace
from heapq import heappop, heappush
from typing import Any

import numpy as np

from phi3mobile.errors import InputError

STEPS = 400  # states each search for an ending looks at, about 0.1 ms each; STEPS_AT_START before the first token
STEPS_AT_START = 4000
_FEW = 64  # so many allowed tokens are all tried; of more, those of one byte, of closing signs or a's only
_CLOSING = b'"}]'
# First bytes in the order they are tried, where a letter may follow and where none may (JSON's structure, numbers, ...).
_IN_TEXT, _BETWEEN = b'"a@.0-_/,:', b'}]",:0'
_STEP_COST = 0.05  # of a token, where the n-th byte to start with costs n / 10
_SAME_START = 0.5  # of a token that starts as a better one does
_RESTS = 8  # so many of the first tokens of a known ending may have become superfluous
_LOOPS = {False: 0, True: 100}  # most tokens in a row that change nothing, such as one more letter; straight: 100


@dataclass(frozen=True)
class _State:
    matcher: Any
    path: list[int]  # tokens that led here
    seen: set[bytes]  # masks of its followers
    mark: bytes  # its own mask; while it waits, its parent's
    loops: int = 0  # tokens in a row that changed nothing, such as one more letter


class Words:
    """A tokenizer's vocabulary for llguidance, and endings spelled with it."""

    def __init__(self, tokenizer: Any) -> None:
        from llguidance import LLTokenizer, TokenizerWrapper

        control = set(tokenizer.special_ids.values())
        self._tokenizer = tokenizer
        self.tokens = [b"" if i in control else tokenizer.token_bytes(i) for i in range(tokenizer.vocab_size)]
        # llguidance wants one eos id: one more than the vocabulary has, so that the model's own stay ours.
        self.eos_token_id, self.bos_token_id = len(self.tokens), None
        self._ids = {data: i for i, data in reversed(list(enumerate(self.tokens))) if data}
        run = max((data for data in self._ids if not data.strip(b"a")), key=len, default=b"")
        tried = [
            i
            for i, data in enumerate(self.tokens)
            if len(data) == 1 or (data and not data.strip(_CLOSING)) or (run and data == run)
        ]
        self._tried = np.array(tried, dtype=np.int64)
        self._ranks = (_ranks(self.tokens, _BETWEEN), _ranks(self.tokens, _IN_TEXT))
        self._letters = [i for i, data in enumerate(self.tokens) if data == b"a"]
        self.tokens.append(b"")
        self._native = LLTokenizer(TokenizerWrapper(self))
        self.tokens.pop()

    def __call__(self, text: bytes) -> list[int]:
        """The ids that spell `text` exactly, as the tokenizer would in the middle of an answer."""
        if not isinstance(text, bytes):
            raise TypeError("bytes are wanted")
        for before in ("", "\n"):  # a sentencepiece tokenizer puts a space before what it takes for a beginning
            try:
                ids = self._tokenizer.encode(before + text.decode(), special=False)
                ids = ids[len(self._tokenizer.encode(before, special=False)) :]
            except (InputError, UnicodeDecodeError):  # it reads as a control token; half a character
                continue
            if b"".join(self.tokens[i] for i in ids) == text:
                return ids
        ids, longest = [], max(map(len, self._ids))
        while text:
            length = next((n for n in range(min(longest, len(text)), 0, -1) if text[:n] in self._ids), None)
            if length is None:
                return []  # the vocabulary has no such byte
            ids.append(self._ids[text[:length]])
            text = text[length:]
        return ids

    def matcher(self, grammar: str, drops_space: bool) -> Any:
        """llguidance's matcher of an answer; is_error() if it can't be used. drops_space: its first one is not shown."""
        from llguidance import LLMatcher

        if drops_space:
            inner = json.loads(grammar)
            inner["grammars"][0]["name"] = "answer"
            inner["grammars"].insert(0, {"name": "shown", "lark_grammar": 'start: " " @answer\n'})
            grammar = json.dumps(inner)
        return LLMatcher(self._native, grammar, log_level=0)

    def allowed(self, matcher: Any) -> np.ndarray:
        """bool [vocab]: what may follow. All False if `matcher` failed."""
        if matcher.is_error():
            return np.zeros(len(self.tokens), dtype=bool)
        bits = np.frombuffer(matcher.compute_bitmask(), dtype=np.uint8)
        return np.unpackbits(bits, count=len(self.tokens), bitorder="little").view(bool)

    def ending(self, matcher: Any, room: int, known: list[int] | None = None, steps: int = STEPS) -> list[int] | None:
        """Tokens that complete the answer from `matcher` on, at most `room`; None if `steps` states don't lead to any.

        Near the shortest, not always the shortest. `known` completed an earlier state: the ending may end with it.
        """
        searches = (self._search(matcher, room, known or [], steps, straight) for straight in (False, True))
        return next((found for found in searches if found is not None), None)

    def _search(self, matcher: Any, room: int, known: list[int], steps: int, straight: bool) -> list[int] | None:
        """Best first: the fewest deviations from the preferred tokens.

        Every token has a cost too, which leads out of a recursion; or, `straight`, none has, which finds long endings.
        """
        rests = [[], *(known[start:] for start in range(min(len(known), _RESTS)))]
        count, queue = 0, [(0.0, 0, _State(matcher, [], set(), b""), -1)]
        for _ in range(steps):
            if not queue:
                return None
            cost, _, state, token = heappop(queue)
            siblings: set[bytes] = set()
            if token >= 0:
                after = state.matcher.deep_copy()
                if not after.consume_token(token):
                    continue
                siblings = state.seen
                state = _State(after, [*state.path, token], set(), state.mark, state.loops)
            for rest in rests:
                if len(state.path) + len(rest) <= room and completes(state.matcher, rest):
                    ids = [*state.path, *rest]
                    shorter = self(b"".join(self.tokens[i] for i in ids))
                    return shorter if len(shorter) < len(ids) and completes(matcher, shorter) else ids
            if len(state.path) >= room:
                continue
            allowed = self.allowed(state.matcher)
            mark = allowed.tobytes()
            if mark in siblings:  # such as one more letter: a sibling has the same followers
                continue
            siblings.add(mark)
            loops = state.loops + 1 if mark == state.mark else 0
            if loops > _LOOPS[straight]:
                continue
            cost += 0.0 if straight else _STEP_COST
            state = replace(state, mark=mark, loops=loops)
            for choice, following in self._preferred(allowed):
                count += 1
                heappush(queue, (cost + choice, -count, state, following))
        return None

    def _preferred(self, allowed: np.ndarray) -> list[tuple[float, int]]:
        """Costs and ids of the tokens of `allowed` bool [vocab] worth a try; what ends something soon is cheapest."""
        ids = np.flatnonzero(allowed)
        if len(ids) > _FEW and allowed[self._tried].any():
            ids = self._tried[allowed[self._tried]]
        in_text = any(allowed[i] for i in self._letters)
        costs: dict[int, float] = {}
        choices = []
        for token in ids[self._ranks[in_text][ids].argsort()].tolist():
            byte = self.tokens[token][0]
            choices.append((costs[byte] + _SAME_START if byte in costs else costs.setdefault(byte, 0.1 * len(costs)), token))
        return choices

    def drops_space(self) -> bool:
        """Whether a text that starts with the vocabulary's space is shown without it, as sentencepiece's are."""
        spaced = next((i for i, data in enumerate(self.tokens) if data.startswith(b" ")), None)
        return spaced is not None and not self._tokenizer.decode([spaced]).startswith(" ")


def _ranks(tokens: list[bytes], first: bytes) -> np.ndarray:
    """int64 [vocab]: place of each token in the order of preference; `first` are the best bytes to start with."""
    plain, visible = string.ascii_letters.encode() + string.digits.encode(), bytes(range(33, 127))
    order = dict.fromkeys(first + plain + visible + bytes(range(256)))
    place = {byte: i for i, byte in enumerate(order)}
    pleasant = plain + _CLOSING + b",:"

    def key(token: int) -> tuple[int, bool, bool, int]:
        data = tokens[token]
        # Of those that start alike, what only closes; then the longest of the plain ones: often a whole name.
        return (place[data[0]] if data else 256, bool(data.strip(_CLOSING)), bool(data.strip(pleasant)), -len(data))

    ranks = np.empty(len(tokens), dtype=np.int64)
    ranks[sorted(range(len(tokens)), key=key)] = np.arange(len(tokens))
    return ranks


def completes(matcher: Any, tokens: list[int]) -> bool:
    """Whether the answer is complete with `tokens` from `matcher`'s state on."""
    if not tokens:
        return matcher.is_accepting()
    after = matcher.deep_copy()
    return after.validate_tokens(tokens) == len(tokens) and after.consume_tokens(tokens) and after.is_accepting()
