"""Constrained output: an answer that a JSON schema, a regex or a grammar allows, whole within its token limit.

Which tokens may follow is llguidance's to say. What is ours: the text is exactly what the session shows, and a complete
ending is known at every step, so that a limit never cuts the answer in the middle.
"""

from __future__ import annotations

import json
from collections.abc import Collection
from dataclasses import dataclass
from heapq import heappop, heappush
from typing import Any

import numpy as np

from phi3mobile.errors import InputError

# Between JSON's tokens: nothing, a space, or a new line with its indentation. Without a bound a model can fill its answer with it.
_SPACE = r"( |\n {0,16})?"
_STEPS = 400  # states one search for an ending looks at, about 0.1 ms each
_AMPLE = 256  # with so many tokens left, a token after which no ending was found is still taken
_LONGEST = 1 << 13  # tokens of the longest first ending looked for
_RETRY = 8  # without a known ending, look for one every so many tokens
_FEW = 64  # so many allowed tokens are all tried; of more, those of one byte and those of closing signs only
_CLOSING = b"\"'}])>"
_PREFERRED = _CLOSING + b"0a1A@.-_/:,;"  # then other characters, what opens something, space, what is not ASCII
_OPENING, _BLANK = b"([{<\\", b" \t\r\n"


class GuideError(InputError):
    """The guided answer could not be completed: it is not what the schema, regex or grammar asks for."""


def json_grammar(schema: dict[str, Any] | str) -> str:
    """llguidance's grammar of a JSON schema. InputError: no JSON object, a keyword it lacks, nothing satisfies it."""
    if isinstance(schema, str):
        try:
            schema = json.loads(schema)
        except (ValueError, RecursionError) as error:
            raise InputError(f"the JSON schema is not JSON: {error}; correct it") from None
    if not isinstance(schema, dict):
        raise InputError(f'the JSON schema is a {type(schema).__name__}; it must be an object such as {{"type": "object"}}')
    from llguidance import LLMatcher

    try:
        grammar = LLMatcher.grammar_from_json_schema(schema, overrides={"whitespace_pattern": _SPACE})
    except (TypeError, ValueError, RecursionError) as error:
        raise InputError(f"the JSON schema can't be written as JSON: {error}; correct it") from None
    return _checked(grammar, "JSON schema")


def regex_grammar(pattern: str) -> str:
    """The grammar of texts that match `pattern` as a whole (Rust's regex syntax, no lookaround). Raises InputError."""
    from llguidance import LLMatcher

    return _checked(LLMatcher.grammar_from_regex(_text(pattern, "regex")), "regex")


def lark_grammar(text: str) -> str:
    """llguidance's form of a Lark grammar whose first rule is `start`. Raises InputError."""
    from llguidance import LLMatcher

    return _checked(LLMatcher.grammar_from_lark(_text(text, "grammar")), "grammar")


class Guide:
    """Follows one answer at a time; `start` begins the next one.

    `tokenizer` needs vocab_size, special_ids, token_bytes, encode and decode (phi3mobile.tokenizer). Control tokens and
    ids without text are never allowed; eos ids are allowed where the answer is complete.
    """

    def __init__(self, grammar: str, tokenizer: Any) -> None:
        """grammar: of json_grammar, regex_grammar or lark_grammar."""
        self._words = _Words(tokenizer)
        self._new = self._words.matcher(grammar)
        self.start()

    @classmethod
    def json_schema(cls, schema: dict[str, Any] | str, tokenizer: Any) -> Guide:
        """A JSON text that is valid under `schema` (an object or its JSON text). Raises InputError."""
        return cls(json_grammar(schema), tokenizer)

    @classmethod
    def regex(cls, pattern: str, tokenizer: Any) -> Guide:
        """A text that matches `pattern` as a whole. Raises InputError."""
        return cls(regex_grammar(pattern), tokenizer)

    @classmethod
    def grammar(cls, text: str, tokenizer: Any) -> Guide:
        """A text of a Lark grammar's rule `start`. Raises InputError."""
        return cls(lark_grammar(text), tokenizer)

    def start(self, room: int | None = None) -> None:
        """Begin an answer of at most `room` tokens, eos not counted. Raises InputError if none is known to be so short."""
        self._matcher, self._room = self._new.deep_copy(), room
        self.closing = False  # the room is running out: only the shortest ending found is allowed
        self._ending: list[int] | None = None  # tokens that complete the answer, as far as known; at most `room`
        if room is None:
            return
        ending = self._words.ending(self._matcher, _LONGEST)
        if ending is not None and len(ending) > room:
            shorter = self._words.ending(self._matcher, room)
            if shorter is None:
                raise InputError(
                    f"{room} tokens are left for the answer; the shortest one found that is allowed has {len(ending)}: "
                    "raise max_tokens (--max-tokens), shorten the prompt or use a larger context"
                )
            ending = shorter
        self._ending = ending

    @property
    def complete(self) -> bool:
        """The answer so far is allowed as a whole."""
        return self._matcher.is_accepting()

    @property
    def finished(self) -> bool:
        """It is complete and nothing may follow."""
        return self.complete and (self._matcher.is_stopped() or self.closing)

    def mask(self, logits: np.ndarray, eos_ids: Collection[int] = ()) -> np.ndarray:
        """`logits` float32 [V] with -inf for what may not follow. Raises GuideError if nothing may."""
        allowed = np.zeros(len(logits), dtype=bool)
        if self.closing:
            allowed[self._ending[:1]] = True
        else:
            bits = self._words.allowed(self._matcher)[: len(logits)]
            allowed[: len(bits)] = bits
        allowed[list(eos_ids)] = self.complete
        if not allowed.any():
            reason = _line(self._matcher.get_error()) or "no token of the vocabulary may follow"
            raise GuideError(f"the answer can't be continued as asked ({reason}); simplify the schema, regex or grammar")
        return np.where(allowed, logits, np.float32(-np.inf))

    def push(self, token: int) -> int:
        """Append `token`, which mask allowed. Returns the token that was appended in truth.

        That is the next one of the shortest ending found, if after `token` no ending would fit the room; from then on
        the answer is closed with it. Raises GuideError if llguidance gives up.
        """
        if not self.closing:
            after = self._matcher.deep_copy()
            if after.consume_token(token):
                ending = self._ending_after(after, token)
                lost = ending is None and self._ending is not None and self._room <= _AMPLE
            else:
                ending, lost = None, self._ending is not None
                if not lost:
                    raise GuideError(f"the answer can't be continued as asked ({_line(after.get_error())}); simplify it")
            if not lost:
                self._matcher, self._ending = after, ending
                self._room = None if self._room is None else self._room - 1
                return token
            self.closing = True
        token, *self._ending = self._ending
        self._matcher.consume_token(token)
        return token

    def accepts(self, tokens: list[int]) -> int:
        """How many of the next `tokens`, a draft, may follow."""
        return self._matcher.deep_copy().validate_tokens(tokens) if tokens else 0

    def forced(self) -> list[int]:
        """The next tokens as far as there is no choice."""
        return list(self._ending) if self.closing else self._matcher.deep_copy().compute_ff_tokens()

    def _ending_after(self, after: Any, token: int) -> list[int] | None:
        """An ending from `after`, which `token` led to, that fits the room; None: unknown."""
        known = self._ending
        if self._room is None or (known is None and self._room % _RETRY):
            return None
        room = self._room - 1
        if known is None:
            return self._words.ending(after, room)
        if known[:1] == [token]:
            return known[1:]
        # Mostly what ended the answer before still does: a letter more in a string needs no search.
        if len(known) <= room and _completes(after, known):
            return known
        return self._words.ending(after, room, known)


@dataclass(frozen=True)
class _State:
    matcher: Any
    path: list[int]  # tokens that led here
    seen: set[bytes]  # masks of its followers


class _Words:
    """A tokenizer's vocabulary for llguidance, and endings spelled with it."""

    def __init__(self, tokenizer: Any) -> None:
        from llguidance import LLTokenizer, TokenizerWrapper

        control = set(tokenizer.special_ids.values())
        self._tokenizer = tokenizer
        self.tokens = [b"" if i in control else tokenizer.token_bytes(i) for i in range(tokenizer.vocab_size)]
        # llguidance wants one eos id: one more than the vocabulary has, so that the model's own stay ours.
        self.eos_token_id, self.bos_token_id = len(self.tokens), None
        self._ids = {data: i for i, data in reversed(list(enumerate(self.tokens))) if data}
        tried = [i for i, data in enumerate(self.tokens) if data and (len(data) == 1 or not data.strip(_CLOSING))]
        self._tried = np.array(tried, dtype=np.int64)
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
            except InputError:  # text that reads as a control token
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

    def matcher(self, grammar: str) -> Any:
        """llguidance's matcher at the start of an answer. Raises InputError."""
        from llguidance import LLMatcher

        if self._drops_space():
            # The session does not show the space that such an answer starts with: the rest must be the answer.
            inner = json.loads(grammar)
            inner["grammars"][0]["name"] = "answer"
            inner["grammars"].insert(0, {"name": "shown", "lark_grammar": 'start: " " @answer\n'})
            grammar = json.dumps(inner)
        matcher = LLMatcher(self._native, grammar, log_level=0)
        if matcher.is_error():
            raise InputError(f"no answer can be guided so: {_line(matcher.get_error())}; simplify it")
        return matcher

    def allowed(self, matcher: Any) -> np.ndarray:
        """bool [vocab]: what may follow. All False if `matcher` failed."""
        if matcher.is_error():
            return np.zeros(len(self.tokens), dtype=bool)
        bits = np.frombuffer(matcher.compute_bitmask(), dtype=np.uint8)
        return np.unpackbits(bits, count=len(self.tokens), bitorder="little").view(bool)

    def ending(self, matcher: Any, room: int, known: list[int] | None = None) -> list[int] | None:
        """Tokens that complete the answer from `matcher` on, at most `room`; None if _STEPS states don't lead to any.

        Best first: the least deviation from the preferred tokens, then the shortest path. `known` completed an earlier
        state: the ending may end with it. Near the shortest, not always the shortest.
        """
        count, queue = 0, [(0.0, 0, _State(matcher, [], set()), None)]
        for _ in range(_STEPS):
            if not queue:
                return None
            cost, _, state, token = heappop(queue)
            if token is not None:
                matcher = state.matcher.deep_copy()
                if not matcher.consume_token(token):
                    continue
                parent, state = state, _State(matcher, [*state.path, token], set())
            for rest in ([], known or []):
                whole = [*state.path, *rest]
                if len(whole) <= room and _completes(matcher, rest):
                    return self._respelled(queue_start=None, ids=whole)
            if len(state.path) >= room:
                continue
            allowed = self.allowed(matcher)
            if token is not None:
                mark = allowed.tobytes()
                if mark in parent.seen:  # a letter as good as any other
                    continue
                parent.seen.add(mark)
            for rank, following in enumerate(self._preferred(allowed)):
                count += 1
                heappush(queue, (cost + 0.1 * rank + 0.02, -count, state, following))
        return None
