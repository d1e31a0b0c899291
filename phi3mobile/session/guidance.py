"""Constrained output: an answer that a JSON schema, a regex or a grammar allows, whole within its token limit.

Which tokens may follow is llguidance's to say. What is ours: the text is exactly what the session shows, and a complete
ending is known at every step, so that a limit never cuts the answer in the middle.
"""

from __future__ import annotations

import json
from collections.abc import Collection
from typing import Any

import numpy as np

from phi3mobile.errors import InputError
from phi3mobile.session.completion import STEPS_AT_START, Words, completes
from phi3mobile.session.schema import OPTIONS, followed
from phi3mobile.session.schema.pattern import LONGEST, least

_AMPLE = 128  # with so many tokens more than the ending needs, one after which no ending was found is still taken
_LONGEST = 1 << 13  # tokens of the longest first ending looked for
_RETRY = 8  # without a known ending, look for one every so many tokens


class GuideError(InputError):
    """The guided answer could not be completed: it is not what the schema, regex or grammar asks for."""


def json_grammar(schema: dict[str, Any] | str, additional_properties: bool = False) -> str:
    """llguidance's grammar of a JSON schema. InputError: no JSON object, what it lacks or gets wrong, nothing satisfies it.

    additional_properties: whether objects may have names beside those that their schema declares, where it does not say.
    """
    from llguidance import LLMatcher

    return LLMatcher.grammar_from_json_schema(followed(schema, additional_properties), overrides=OPTIONS)


def regex_grammar(pattern: str) -> str:
    """The grammar of texts that match `pattern` as a whole (Rust's regex syntax, no lookaround). Raises InputError."""
    from llguidance import LLMatcher

    grammar = LLMatcher.grammar_from_regex(_text(pattern, "regex"))
    if least(pattern) > LONGEST:
        raise InputError(f"the regex asks for {least(pattern)} characters; {LONGEST} can be asked for: ask for fewer")
    return _checked(grammar, "regex")


def lark_grammar(text: str) -> str:
    """llguidance's form of a Lark grammar (its dialect) with a rule `start`. Raises InputError."""
    return _checked(json.dumps({"grammars": [{"lark_grammar": _text(text, "grammar")}]}), "grammar")


class Guide:
    """Follows one answer at a time; `start` begins the next one.

    `tokenizer` needs vocab_size, special_ids, token_bytes, encode and decode (phi3mobile.text.tokenizer). Control tokens and
    ids without text are never allowed; eos ids are allowed where the answer is complete.
    """

    def __init__(self, grammar: str, tokenizer: Any) -> None:
        """grammar: of json_grammar, regex_grammar or lark_grammar."""
        self._words = Words(tokenizer)
        spaces = {True: self._words.drops_space(), False: False}
        matchers = {drops: self._words.matcher(grammar, drops) for drops in set(spaces.values())}
        self._new = {at_start: matchers[drops] for at_start, drops in spaces.items()}
        for matcher in matchers.values():
            first = matcher.deep_copy()
            if matcher.is_error() or not (first.is_accepting() or self._words.allowed(first).any()):
                raise InputError(f"no answer can be guided so: {_line(first.get_error())}; simplify it")
        self.start()

    @classmethod
    def json_schema(cls, schema: dict[str, Any] | str, tokenizer: Any, *, additional_properties: bool = False) -> Guide:
        """A JSON text that is valid under `schema` (an object or its JSON text). Raises InputError.

        additional_properties: JSON Schema's own default, True, lets an object that declares names have any others, where the
        schema does not say; models invent them without end.
        """
        return cls(json_grammar(schema, additional_properties), tokenizer)

    @classmethod
    def regex(cls, pattern: str, tokenizer: Any) -> Guide:
        """A text that matches `pattern` as a whole. Raises InputError."""
        return cls(regex_grammar(pattern), tokenizer)

    @classmethod
    def grammar(cls, text: str, tokenizer: Any) -> Guide:
        """A text of a Lark grammar's rule `start`. Raises InputError."""
        return cls(lark_grammar(text), tokenizer)

    def start(self, room: int | None = None, at_start: bool = True) -> None:
        """Begin an answer of at most `room` tokens, eos not counted. Raises InputError if none is known to be so short.

        at_start: the answer is a text of its own, whose first space a sentencepiece vocabulary drops (Tokenizer.stream);
        else it continues one, every space of which counts.
        """
        self._matcher, self._room = self._new[at_start].deep_copy(), room
        self.closing = False  # the room is running out: only the shortest ending found is allowed
        self._ending: list[int] | None = None  # tokens that complete the answer, as far as known; at most `room`
        if room is None:
            return
        ending = self._words.ending(self._matcher, _LONGEST, steps=STEPS_AT_START)
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
            allowed[(self._ending or [])[:1]] = True
        else:
            bits = self._words.allowed(self._matcher)[: len(logits)]
            allowed[: len(bits)] = bits
        allowed[list(eos_ids)] = self.complete
        if not allowed.any():
            raise _stuck(_line(self._matcher.get_error()))
        return np.where(allowed, logits, np.float32(-np.inf))

    def push(self, token: int) -> int | None:
        """Append `token`, which mask allowed. Returns the token that was appended in truth; None: the answer ends.

        That is the next one of the shortest ending found, if after `token` no ending would fit the room; from then on
        the answer is closed with it. Raises GuideError if llguidance gives up.
        """
        if not self.closing:
            after = self._matcher.deep_copy()
            taken = after.consume_token(token)
            ending = self._ending_after(after, token) if taken else None
            ample = self._room is not None and self._ending is not None and self._room - len(self._ending) > _AMPLE
            if taken and (ending is not None or self._ending is None or ample):
                self._matcher, self._ending = after, ending
                self._room = None if self._room is None else self._room - 1
                return token
            if self._ending is None:
                raise _stuck(_line(after.get_error()))
            self.closing = True
        if not self._ending:
            return None
        token, *self._ending = self._ending
        self._matcher.consume_token(token)
        return token

    def accepts(self, tokens: list[int]) -> int:
        """How many of the next `tokens`, a draft, may follow."""
        return self._matcher.deep_copy().validate_tokens(tokens) if tokens else 0

    def forced(self) -> list[int]:
        """The next tokens as far as there is no choice."""
        return list(self._ending or []) if self.closing else self._matcher.deep_copy().compute_ff_tokens()

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
        # Mostly what ended the answer before, or its rest, still does: a letter more in a string needs no search.
        for start in range(max(0, len(known) - room), len(known)):
            if completes(after, known[start:]):
                return known[start:]
        return self._words.ending(after, room, known)


def _stuck(reason: str) -> GuideError:
    return GuideError(f"the answer can't be continued as asked ({reason}); simplify the schema, regex or grammar")


def _checked(grammar: str, what: str) -> str:
    from llguidance import LLMatcher

    wrong, messages = LLMatcher.validate_grammar_with_warnings(grammar)
    if wrong:
        raise InputError(f"the {what} can't be used: {_line(messages[0])}; correct or simplify it")
    return grammar


def _text(text: str, what: str) -> str:
    if not isinstance(text, str) or not text.strip():
        raise InputError(f"the {what} is {text!r:.80}; it must be a text that is not empty")
    try:
        text.encode()
    except UnicodeEncodeError:
        raise InputError(f"the {what} is not valid Unicode: {text!r:.80}; retype it") from None
    return text


def _line(message: str) -> str:
    """What llguidance says, without its state."""
    said = " ".join(message.partition("<state>")[0].split())[:200]
    return said if said and not said.startswith("NoExtension") else "no token of the vocabulary may follow"
