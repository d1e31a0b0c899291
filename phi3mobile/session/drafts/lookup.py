"""Lookup decoding: drafts the next tokens by finding the last n-gram earlier in prompt and answer (prompt lookup)."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import takewhile

SHORTEST, HASHED, LONGEST = 2, 4, 8  # tokens that must match; n-grams kept; a longer match says no more
LENGTHS = 3, 7, 15  # of a draft
FIRST_REST, LONGEST_REST = 4, 64  # tokens without a draft after one that did not pay


class Draft:
    """Drafts for one sequence. `push` every token, `propose` before a forward, `feedback` after it was verified.

    A draft token costs a fraction of a forward and saves one when accepted. The longer the text before it matches, the
    surer the quote: the draft is 3, 7 or 15 tokens, which with the one before fill the 4, 8 or 16 rows of the CPU's
    matrix kernels. After a draft that did not pay, drafts of its length rest, ever longer.
    """

    def __init__(self, tokens: Iterable[int] = (), longest_draft: int = 15) -> None:
        self._tokens: list[int] = []
        self._after: dict[tuple[int, ...], int] = {}  # n-gram -> index of the token that last followed it
        self._longest = longest_draft
        self._rests = dict.fromkeys(LENGTHS, (0, FIRST_REST))  # resting until so many tokens; next rest
        self._proposed = LENGTHS[0]
        for token in tokens:
            self.push(token)

    def push(self, token: int) -> None:
        """Append one token of the sequence; O(1)."""
        end = len(self._tokens)
        # The n-grams before `token` are entered only now: each entry has a token to propose and is no match of itself.
        for n in range(SHORTEST, min(HASHED, end) + 1):
            self._after[tuple(self._tokens[end - n :])] = end
        self._tokens.append(token)

    def propose(self, limit: int) -> list[int]:
        """At most `limit` tokens that may come next; [] when nothing matches or while resting."""
        start, matched = self._match()
        length = LENGTHS[(matched >= HASHED) + (matched >= LONGEST)]
        end = len(self._tokens)
        if matched == 0 or end < self._rests[length][0]:
            return []
        self._proposed = length
        length = min(limit, length, self._longest)
        draft: list[int] = []
        for index in range(start, start + length):  # past the end the draft quotes itself: a period goes on
            draft.append(self._tokens[index] if index < end else draft[index - end])
        return list(takewhile(lambda token: token >= 0, draft))  # a picture is no text to quote

    def _match(self) -> tuple[int, int]:
        """Index of the token that followed the longest n-gram known, and how many tokens before it match; 0: none."""
        tokens, end = self._tokens, len(self._tokens)
        for n in range(min(HASHED, end), SHORTEST - 1, -1):
            start = self._after.get(tuple(tokens[end - n :]))
            if start is not None:
                while n < min(LONGEST, start) and tokens[start - 1 - n] == tokens[end - 1 - n]:
                    n += 1
                return start, n
        return 0, 0

    def feedback(self, drafted: int, accepted: int) -> None:
        """Say how many of the `drafted` tokens were right."""
        if drafted == 0:
            return
        _, rest = self._rests[self._proposed]
        if 4 * accepted < drafted:
            self._rests[self._proposed] = len(self._tokens) + rest, min(2 * rest, LONGEST_REST)
        else:
            self._rests[self._proposed] = 0, max(FIRST_REST, rest // 2)
