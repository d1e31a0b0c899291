"""One answer in numbers."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from phi3mobile.session.decoding import Decoder


@dataclass(frozen=True)
class Statistics:
    """Times count this side's work, not the consumer's time between two pieces of text."""

    # stop (an eos id), tool_calls, stop_string, length (max_tokens), context_full, repetition, cancelled, error (raised)
    finish_reason: str
    prompt_tokens: int  # of the first prompt, if the window slid
    reused_tokens: int  # of these, found in the KV cache
    prefilled_tokens: int  # run as prefill, again after a LongRoPE switch or a slide
    generated_tokens: int  # without the eos id
    ttft_s: float  # from the call to the first token; 0 if there was none
    prefill_s: float
    decode_s: float  # from the first to the last token, without prefills in between
    prefill_tokens_per_s: float  # 0 if nothing was run
    decode_tokens_per_s: float  # 0 with fewer than two tokens
    interval_p50_ms: float  # between two tokens; 0 with fewer than two
    interval_p95_ms: float
    long_switch: bool  # rows with the other LongRoPE factors were thrown away and prefilled again
    forwards: int  # decode forwards
    drafted: int  # lookup tokens proposed, and how many were right
    accepted: int
    dropped_messages: int  # by overflow="slide"


def statistics_of(d: Decoder, dropped: int) -> Statistics:
    """Of an answer that ended; dropped: messages that the sliding window left out."""
    gaps = d.times[1:]
    decode_s = max(0.0, sum(gaps) - d.refill_s)
    p50, p95 = np.percentile(gaps, [50, 95]) * 1000 if gaps else (0.0, 0.0)
    return Statistics(
        d.finish_reason,
        d.prompt_tokens,
        d.reused_tokens or 0,
        d.prefilled_tokens,
        d.generated_tokens,
        ttft_s=d.times[0] if d.times else 0.0,
        prefill_s=d.prefill_s,
        decode_s=decode_s,
        prefill_tokens_per_s=d.prefilled_tokens / d.prefill_s if d.prefill_s else 0.0,
        decode_tokens_per_s=len(gaps) / decode_s if decode_s else 0.0,
        interval_p50_ms=float(p50),
        interval_p95_ms=float(p95),
        long_switch=d.long_switch,
        forwards=d.forwards,
        drafted=d.drafted,
        accepted=d.accepted,
        dropped_messages=dropped,
    )
