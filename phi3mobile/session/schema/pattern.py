"""Regular expressions of JSON Schema (ECMA 262's) in the syntax and within the limits of llguidance (Rust's)."""

from __future__ import annotations

import re

LONGEST = 1 << 13  # characters or items that an answer can be made to have at least: llguidance follows them for seconds
_ESCAPE = r"\\(?:x[0-9a-fA-F]{2}|u[0-9a-fA-F]{4}|u\{[0-9a-fA-F]+\}|0[0-7]{0,2}|.)"
_TOKEN = re.compile(
    rf"(?P<class>\[\^?(?:{_ESCAPE}|[^\]\\])*\])|(?P<open>\((?:\?[^)]*?[:>=!])?)|(?P<close>\))"
    rf"|(?P<count>\{{(\d+)(?:,\d*)?\}})|(?P<maybe>[*?])|(?P<empty>[$^|+])|(?P<letter>{_ESCAPE}|.)",
    re.DOTALL,
)
_MEMBER = re.compile(f"{_ESCAPE}|.", re.DOTALL)
_UNSPELLED = re.compile(r"[\x00-\x07\x0b\x0e-\x1f\x7f\ud800-\udfff]")


def translated(pattern: str) -> str:
    """The same pattern as llguidance needs it."""
    return "".join(_class(token[0]) if token.lastgroup == "class" else _octal(token[0]) for token in _TOKEN.finditer(pattern))


def least(pattern: str) -> int:
    """Characters that a match has at least; of alternatives the sum."""
    open_, last = [0], 0  # those of each open group so far, and of the last part
    for token in _TOKEN.finditer(pattern):
        kind = token.lastgroup
        if kind == "open":
            open_.append(0)
            last = 0
        elif kind == "close" and len(open_) > 1:
            last = open_.pop()
            open_[-1] += last
        elif kind == "count":
            times = int(re.findall(r"\d+", token[0])[0])
            open_[-1] += last * (times - 1)
            last *= times
        elif kind == "maybe":
            open_[-1] -= last
            last = 0
        elif kind != "empty":
            last = 1
            open_[-1] += last
    return sum(open_)


def _class(text: str) -> str:
    """A character class: ECMA's members are literal, where Rust reads sets in sets; and never all control characters.

    llguidance lets an escaped quote into a class of all of them, into [^"] for one: so NUL, which no answer has, is left out.
    """
    start = 2 if text.startswith("[^") else 1
    members = ["\\x00" if member == r"\u0000" else _octal(member) for member in _MEMBER.findall(text[start:-1])]
    for i, member in enumerate(members):
        twin = i > 0 and members[i - 1].removeprefix("\\") == member
        if member == "[" or (member == "-" and not i) or (member in ("&", "~", "-") and twin):
            members[i] = f"\\{member}"
        elif member == r"\x00" and members[i + 1 : i + 2] == ["-"]:
            members[i] = r"\x01"
    return f"{text[:start]}{chr(92) + 'x00' if start == 2 else ''}{''.join(members)}]"


def _octal(escape: str) -> str:
    """A character by its octal number, which Rust has not, by its hexadecimal one."""
    return f"\\x{int(escape[1:], 8):02x}" if escape.startswith(r"\0") else escape


def spelled(text: str) -> bool:
    """Whether an answer can have `text` in a string: it has no half characters nor control characters without a letter."""
    return _UNSPELLED.search(text) is None
