"""Whether an answer has begun to repeat itself: the same block of tokens again and again."""

from __future__ import annotations

import numpy as np

LONGEST = 256  # tokens of a block that is looked for
TIMES = 4  # so often it must stand there, one after the other, ...
LEAST = 64  # ... and repeat so many tokens


class Repetition:
    """Follows one answer token by token."""

    def __init__(self) -> None:
        self._equal = np.zeros(LONGEST + 1, dtype=np.int64)  # [p]: so many last tokens equal the ones p before them
        self._needed = np.maximum(LEAST, (TIMES - 1) * np.arange(LONGEST + 1))
        self._recent = np.full(LONGEST, -1, dtype=np.int64)  # the last tokens, newest first

    def push(self, token: int) -> bool:
        """Append a token; True: the answer ends in a block that stands there TIMES times."""
        same = self._recent == token
        self._equal[1:] = np.where(same, self._equal[1:] + 1, 0)
        self._recent[1:] = self._recent[:-1]
        self._recent[0] = token
        return bool((self._equal[1:] >= self._needed[1:]).any())
