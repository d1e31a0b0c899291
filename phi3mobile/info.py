"""What whoever runs a model must know of it: the one thing that bundles and engines share."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class EngineInfo:
    """What a Session must know of the model behind an engine."""

    vocab: int  # width of the logits
    max_context: int  # positions the KV cache holds
    max_chunk: int  # most tokens one forward takes
    original_context: int | None = None  # LongRoPE: sequences longer than this use the long factors; None: no switch
    back: int | None = None  # tokens a position may go back from the farthest since position 0; None: any number
    hidden: int | None = None  # width of the embeddings that it takes in place of tokens; None: it takes none
