"""The alphabet of byte-level BPE, which every kind of tokenizer here shares."""

from __future__ import annotations


def byte_level_alphabet() -> dict[str, int]:
    """Byte-level BPE's stand-in for each byte: printable Latin-1 stands for itself, the rest start at U+0100."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(256 + i): byte for i, byte in enumerate(others)}
