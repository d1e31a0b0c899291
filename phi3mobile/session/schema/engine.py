"""What is asked of llguidance about a schema before it answers."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

# Between JSON's tokens: nothing, a space, or a new line with its indentation; unbounded, it could fill an answer. Without `u`
# after a backslash no answer has control characters that have no letter of their own. With it llguidance lets a further key
# be spelled "\u0061", which is the declared "a" with a value that is not a's.
OPTIONS: Any = {"whitespace_pattern": r"( |\n {0,16})?", "json_allowed_escapes": 'nrbtf\\"'}
_TIGHT: Any = {"whitespace_pattern": None, "whitespace_flexible": False}


def refusal(schema: dict[str, Any]) -> str:
    """What llguidance has against a schema; "" if it takes it."""
    from llguidance import LLMatcher

    wrong, messages = LLMatcher.validate_grammar_with_warnings(LLMatcher.grammar_from_json_schema(schema, overrides=OPTIONS))
    return messages[0] if wrong else ""


@lru_cache(maxsize=4096)
def matches(pattern: str, name: str) -> bool:
    """Whether llguidance finds `pattern` in `name`."""
    return not refusal({"type": "string", "pattern": pattern, "const": name})


def stuck(schema: dict[str, Any], after: bytes = b"") -> bool:
    """Whether llguidance takes `schema` and yet knows no byte that may follow `after`, the beginning of an answer."""
    from llguidance import LLMatcher

    grammar = LLMatcher.grammar_from_json_schema(schema, overrides=OPTIONS | _TIGHT)
    matcher = LLMatcher(_bytes(), grammar, log_level=0)
    if matcher.is_error():
        return False
    return not (matcher.consume_tokens(list(after)) and any(matcher.compute_bitmask()[:32]))


@lru_cache(maxsize=1)
def _bytes() -> Any:
    """llguidance's vocabulary of the 256 bytes and a few control tokens."""
    from llguidance import LLTokenizer

    return LLTokenizer("byte")
