"""Markdown as chat models write it -> blocks and spans; everything that is not understood stays plain text."""

from __future__ import annotations

import re
from dataclasses import dataclass

PARAGRAPH, HEADING, BULLET, CODE = "paragraph", "heading", "bullet", "code"
_FENCE = re.compile(r"^\s*(```+|~~~+)\s*([\w+#.-]*)\s*$")
_HEADING = re.compile(r"^(#{1,6})\s+(.*?)\s*#*$")
_BULLET = re.compile(r"^(\s*)([-*+•]|\d{1,3}[.)])\s+(.*)$")
_SPANS = re.compile(
    r"(?P<tick>`+)(?P<code>.+?)(?P=tick)(?!`)"
    r"|(?P<star>\*\*|__)(?=\S)(?P<bold>.+?)(?<=\S)(?P=star)"
    r"|(?<![\w*])\*(?=[^\s*])(?P<italic>[^*\n]+?)(?<=\S)\*(?![\w*])",
    re.DOTALL,
)


@dataclass(frozen=True)
class Block:
    kind: str
    text: str
    level: int = 0  # of a heading 1..6; of a bullet's indentation 0..
    mark: str = ""  # a bullet's "•" or "3."


def blocks(text: str) -> list[Block]:
    """`text` cut into blocks; an open code fence runs to the end, as while an answer streams."""
    found: list[Block] = []
    lines: list[str] = []
    fence, code = "", []

    def flush() -> None:
        if lines:
            found.append(Block(PARAGRAPH, "\n".join(lines)))
            lines.clear()

    for line in text.split("\n"):
        if fence:
            if line.strip().startswith(fence) and not line.strip().strip(fence[0]):
                found.append(Block(CODE, "\n".join(code)))
                fence, code = "", []
            else:
                code.append(line)
        elif match := _FENCE.match(line):
            flush()
            fence = match[1]
        elif not line.strip():
            flush()
        elif match := _HEADING.match(line):
            flush()
            found.append(Block(HEADING, match[2], len(match[1])))
        elif match := _BULLET.match(line):
            flush()
            mark = match[2] if match[2][0].isdigit() else "•"
            found.append(Block(BULLET, match[3], min(len(match[1].expandtabs(4)) // 2, 4), mark))
        elif found and not lines and found[-1].kind == BULLET and line.startswith((" ", "\t")):
            last = found.pop()
            found.append(Block(BULLET, f"{last.text}\n{line.strip()}", last.level, last.mark))
        else:
            lines.append(line.rstrip())
    flush()
    if fence:
        found.append(Block(CODE, "\n".join(code)))
    return found


def spans(text: str) -> list[tuple[str, str]]:
    """(style, text) with style "", "bold", "italic" or "code"."""
    parts, end = [], 0
    for match in _SPANS.finditer(text):
        if match.start() > end:
            parts.append(("", text[end : match.start()]))
        style = next(style for style in ("code", "bold", "italic") if match[style] is not None)
        parts.append((style, match[style]))
        end = match.end()
    if end < len(text):
        parts.append(("", text[end:]))
    return parts
