"""Texts to tell two tokenizers apart by."""

from __future__ import annotations

from hypothesis import strategies as st

CONTROLS = ["<|endoftext|>", "<|user|>", "<|assistant|>", "<|system|>", "<|end|>", "<|im_start|>", "<|im_end|>", "</s>", "<s>"]
PARTS = [
    *CONTROLS, "<|us", "er|>", "|>", "<think>", "tool call", "<｜ü｜>", " ", "  ", "    ", "\n", "\n\n", "\r\n", "\t", "\u3000",
    "\x1c", "\x85", "\xa0", "\u2028", "\u200b", "\0", "a", "the", "The", "THE", " the", "'s", "'S", "'ſ", "'ll", "'LL", "don't",
    "12", "1234567", "٣٤", "½", "Ⅷ", "²", "é", "e\u0301", "ﬁ", "Å", "ǅ", "ß", "İ", "ı", "Σ", "ς", "▁", "▁▁", "_",
    "中文", "שלום", "हिन्दी", "한국", "🙂", "👨‍👩‍👧", "\U0010ffff", "\ufffd", "\ufeff",
    "!", "...", "://", "#include", "{}", "=", "-", "/", "<0x0A>", "<", ">",
]  # fmt: skip
# Characters that this Python knows: newer ones may be letters to a compiled library only.
known = st.characters(exclude_categories=("Cs", "Cn"))
texts = st.text(known, max_size=40) | st.lists(st.sampled_from(PARTS), max_size=16).map("".join)
awkward = [
    "",
    " ",
    "\n",
    "a" * 3000,
    " " * 700,
    "\n" * 99 + "x",
    "🙂" * 300,
    "é" * 400,
    "'" * 99,
    "1" * 500,
    "\0" * 9,
    "▁" * 80,
]
