"""Lookup decoding: drafts the next tokens by finding the last n-gram earlier in prompt and answer (prompt lookup)."""

from __future__ import annotations

from collections.abc import Iterable

LONGEST, SHORTEST = 4, 2  # n-grams tried, in this order
FIRST_REST, LONGEST_REST = 4, 64  # tokens without a draft after one that did not pay


class Draft:
    """Drafts for one sequence. `push` every token, `propose` before a forward, `feedback` after it was verified.

    A draft token costs a fraction of a forward (about a quarter on CPUs) and saves one when accepted. So the draft
    doubles while all of it is accepted, shrinks to what was accepted, and rests, ever longer, when it does not pay.
    """

    def __init__(self, tokens: Iterable[int] = (), longest_draft: int = 16) -> None:
        self._tokens: list[int] = []
        self._after: dict[tuple[int, ...], int] = {}  # n-gram -> index of the token that last followed it
        self._longest = longest_draft
        self._length = min(4, longest_draft)
        self._rest = 0
        self._next_rest = FIRST_REST
        for token in tokens:
            self.push(token)

    def push(self, token: int) -> None:
        """Append one token of the sequence; O(1)."""
        end = len(self._tokens)
        # The n-grams before `token` are entered only now: each entry has a token to propose and is no match of itself.
        for n in range(SHORTEST, min(LONGEST, end) + 1):
            self._after[tuple(self._tokens[end - n :])] = end
        self._tokens.append(token)
        self._rest = max(0, self._rest - 1)

    def propose(self, limit: int) -> list[int]:
        """At most `limit` tokens that may come next; [] when nothing matches or while resting."""
        length = min(limit, self._length)
        if length <= 0 or self._rest:
            return []
        end = len(self._tokens)
        for n in range(min(LONGEST, end), SHORTEST - 1, -1):
            start = self._after.get(tuple(self._tokens[end - n :]))
            if start is not None:
                draft: list[int] = []
                for index in range(start, start + length):  # past the end the draft quotes itself: a period goes on
                    draft.append(self._tokens[index] if index < end else draft[index - end])
                return draft
        return []

    def feedback(self, drafted: int, accepted: int) -> None:
        """Say how many of the `drafted` tokens were right."""
        if drafted == 0:
            return
        if 4 * accepted < drafted:
            self._length = max(1, self._length // 2)
            self._rest, self._next_rest = self._next_rest, min(2 * self._next_rest, LONGEST_REST)
            return
        self._length = min(2 * self._length, self._longest) if accepted == drafted else accepted
        self._next_rest = max(FIRST_REST, self._next_rest // 2)
