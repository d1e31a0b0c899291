r"""Regular expressions of tokenizers for Python's re: \p{L}, \p{N}, ... become ranges, \s Unicode's White_Space."""

from __future__ import annotations

import re
import unicodedata
from functools import cache

from phi3mobile.errors import InputError

# Unicode White_Space; str.isspace and re's \s add \x1c-\x1f.
SPACE = "\t\n\v\f\r \x85\xa0\u1680\u2028\u2029\u202f\u205f\u3000" + "".join(map(chr, range(0x2000, 0x200B)))
_SPACES = r"\t-\r \x85\xa0\u1680\u2000-\u200a\u2028\u2029\u202f\u205f\u3000"
_TOKEN = re.compile(r"\\[pP]\{\^?\w+\}|\\.|\[\^?|\]|\}\+|.", re.DOTALL)


def compile_pattern(pattern: str) -> re.Pattern[str]:
    """A pattern in Oniguruma's syntax, as far as tokenizers use it. Raises InputError for what re can't express."""
    out, depth = "", 0
    for token in _TOKEN.findall(pattern):
        inside = depth > 0
        depth += token.startswith("[") - (token == "]")
        if token[:2] in (r"\p", r"\P") and len(token) > 2:
            negated = (token[1] == "P") != (token[3] == "^")
            out += _class(_ranges(token[3:-1].lstrip("^")), negated, inside)
        elif token in (r"\s", r"\S"):
            out += _class(_SPACES, token == r"\S", inside)
        elif token in (r"\d", r"\D"):
            out += _class(_ranges("Nd"), token == r"\D", inside)
        elif token == "}+" and not inside:  # Oniguruma: repeated, re: possessive
            raise InputError(f"the pattern {pattern!r:.80} of the tokenizer needs the package `tokenizers`; install it")
        else:
            out += token
    try:
        return re.compile(out)
    except re.error as error:
        raise InputError(f"the pattern {pattern!r:.80} of the tokenizer is not understood ({error})") from None


def _class(ranges: str, negated: bool, inside: bool) -> str:
    if inside and negated:
        raise InputError("the tokenizer's pattern has a negated class within a class; install the package `tokenizers`")
    return ranges if inside else f"[{'^' * negated}{ranges}]"


@cache
def _ranges(name: str) -> str:
    r"""The characters of a general category (L, Lu, N, ...) as what stands between [ and ]."""
    ranges: list[list[int]] = []
    for code in (*range(0x40000), *range(0xE0000, 0xE0200)):  # the planes between and after hold no letters and numbers
        if unicodedata.category(chr(code)).startswith(name):
            if ranges and ranges[-1][1] == code - 1:
                ranges[-1][1] = code
            else:
                ranges.append([code, code])
    if not ranges:
        raise InputError(f"the tokenizer's pattern names the unknown character class {name!r}")
    return "".join(f"\\U{low:08x}" + (f"-\\U{high:08x}" if high > low else "") for low, high in ranges)
