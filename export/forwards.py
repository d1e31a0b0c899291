"""The forwards that `verify` compares: of one prompt its prefill, decode steps, a draft, and what LongRoPE's switch adds."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from phi3mobile.info import EngineInfo

STEPS = 8  # decode steps after a prompt

# Given the list of the answers so far, which grows as it goes: tokens, position, whether the long factors are asked for.
Forwards = Callable[[list[int]], Iterator[tuple[list[int], int, bool]]]


def stages(info: EngineInfo, prompt: list[int], crosses: bool = True) -> Iterator[tuple[str, Forwards]]:
    """What is run of one prompt. crosses: a sequence as long as the original context too, in models with a switch."""
    original = info.original_context
    prompt = prompt[: max(1, info.max_context - STEPS)]
    end = len(prompt)

    def prefill(following, long=False):
        for start in range(0, end, info.max_chunk):
            yield prompt[start : start + info.max_chunk], start, long

    def decode(following, long=False):
        token = prompt[-1]
        for step in range(min(STEPS, info.max_context - end)):
            yield [token], end + step, long
            token = following[-1]

    def several(following):  # verifying drafts, and going back
        back = max(0, end - 3)
        yield prompt[back : back + 3], back, False

    def crossing(following, original):  # a sequence with short rows grows past the switch
        text = (prompt * (original // end + 1))[: original + 1]
        for start in range(0, original - 1, info.max_chunk):
            yield text[start : min(start + info.max_chunk, original - 1)], start, False
        yield text[original - 1 : original], original - 1, False
        yield text[original:], original, False

    needs_long = original is not None and end + STEPS > original
    yield "prefill", lambda following: prefill(following, needs_long)
    yield "decode", lambda following: decode(following, needs_long)
    if not needs_long:
        yield "draft", several
    if original is not None:
        yield "long factors", lambda following: prefill(following, True)
        yield "long decode", lambda following: decode(following, True)
        if original < info.max_context and crosses:
            yield "crossing", lambda following: crossing(following, original)
