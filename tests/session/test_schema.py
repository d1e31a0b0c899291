"""JSON schemas: refused in one line at the start, or every answer that llguidance then allows is valid."""

from __future__ import annotations

import json
import random
import re

import jsonschema
import pytest
from hypothesis import HealthCheck, assume, example, given, settings
from hypothesis import strategies as st
from llguidance import LLMatcher, LLTokenizer

from phi3mobile.errors import InputError
from phi3mobile.session.guidance import Guide, GuideError, json_grammar, regex_grammar
from phi3mobile.session.schema.pattern import least, translated
from tests.session.test_guidance import TOKENIZER, RandomEngine, answer

BYTES = LLTokenizer("byte")
ASCII = bytes(range(32, 127))
INTEGER, STRING = {"type": "integer"}, {"type": "string"}


def opened(schema, additional_properties: bool = True) -> LLMatcher:
    matcher = LLMatcher(BYTES, json_grammar(schema, additional_properties), log_level=0)
    assert not matcher.is_error(), matcher.get_error()
    return matcher


def walk(matcher: LLMatcher, rng: random.Random, steps: int = 150) -> str | None:
    """An answer of random allowed bytes, structure preferred; None: it did not end. Never stuck."""
    matcher, text = matcher.deep_copy(), b""
    for step in range(4 * steps):
        mask = matcher.compute_bitmask()
        allowed = [byte for byte in range(256) if mask[byte // 8] >> byte % 8 & 1]
        if matcher.is_accepting() and (not allowed or rng.random() < 0.3 or step > steps):
            return text.decode()
        assert allowed and not matcher.is_error(), f"stuck after {text!r}: {matcher.get_error()[:80]}"
        choices = [byte for byte in allowed if byte in b'"}],:{['] if rng.random() < 0.3 else []
        choices = choices or [byte for byte in allowed if byte in ASCII] or allowed
        if step > steps:  # now to an end
            choices = [byte for byte in b'"}]:,0aefiklnorstu123456789bcd-.' if byte in allowed][:2] or choices
        byte = rng.choice(choices)
        assert matcher.consume_token(byte)
        text += bytes([byte])
    return None


def accepted(matcher: LLMatcher, text: str) -> bool:
    matcher, ids = matcher.deep_copy(), list(text.encode())
    return matcher.validate_tokens(ids) == len(ids) and matcher.consume_tokens(ids) and matcher.is_accepting()


def check(schema, seed: int = 0, walks: int = 3, additional_properties: bool = True) -> int:
    """The number of answers that were looked at; 0: refused."""
    try:
        matcher = opened(schema, additional_properties)
    except InputError as error:
        assert "\n" not in str(error) and len(str(error)) < 600 and "<state>" not in str(error)
        return 0
    validator = jsonschema.validators.validator_for(schema, jsonschema.Draft202012Validator)(schema)
    texts = [text for i in range(walks) if (text := walk(matcher, random.Random(100 * seed + i))) is not None]
    for text in texts:
        value = json.loads(text)
        if not re.search(r"\d[eE]\+?\d{3}", text):  # Python's floats end at 1e308
            assert validator.is_valid(value), (text, next(validator.iter_errors(value)).message)
    return len(texts)


# Refused: (schema, what the line says)
WRONG = {
    "pattern over a declared name": (
        {"type": "object", "properties": {"score": INTEGER}, "patternProperties": {"^score$": INTEGER}},
        "score",
    ),
    "pattern over a declared name, in a property": (
        {"properties": {"a": {"properties": {"score": INTEGER}, "patternProperties": {"^s": INTEGER}}}},
        r"score.*at /a",
    ),
    "pattern over a name declared beside": (
        {"allOf": [{"properties": {"score": INTEGER}}, {"patternProperties": {"sco": INTEGER}}]},
        "score",
    ),
    "pattern over a name declared behind a reference": (
        {"$ref": "#/$defs/p", "properties": {"score": INTEGER}, "$defs": {"p": {"patternProperties": {"^score$": INTEGER}}}},
        "score",
    ),
    "pattern over a name declared in a choice": (
        {"patternProperties": {"^score$": INTEGER}, "anyOf": [{"properties": {"score": INTEGER}}, {"required": ["b"]}]},
        "score",
    ),
    "pattern for one name, which is required": (
        {"patternProperties": {"^score$": INTEGER}, "required": ["score"], "additionalProperties": False, "type": "object"},
        "no further name",
    ),
    "patterns that forbid all names": ({"type": "object", "patternProperties": {".*": False}}, "no further name"),
    "patterns that overlap": ({"patternProperties": {"^a": INTEGER, "b$": STRING}}, "disjoint"),
    "names counted twice": ({"type": "object", "minProperties": 2}, "minProperties"),
    "endless list": ({"type": "array", "minItems": 1, "items": {"$ref": "#"}}, "without an end"),
    "endless object": (
        {
            "type": "object",
            "properties": {"n": {"$ref": "#/$defs/n"}},
            "$defs": {"n": {"required": ["n"], "type": "object", "properties": {"n": {"$ref": "#/$defs/n"}}}},
        },
        "without an end",
    ),
    "reference to itself": ({"$ref": "#/$defs/a", "$defs": {"a": {"$ref": "#/$defs/b"}, "b": {"$ref": "#/$defs/a"}}}, "itself"),
    "reference out": ({"$ref": "https://example.com/schema.json"}, "example.com"),
    "reference to nothing": ({"$ref": "#/$defs/none", "$defs": {}}, "none"),
    "unknown anchor": ({"$ref": "#none"}, "none"),
    "references too deep": (
        {"$ref": "#/$defs/0", "$defs": {str(i): {"items": {"$ref": f"#/$defs/{i + 1}"}} for i in range(5000)} | {"5000": True}},
        "levels deep",
    ),  # llguidance's stack ends: the process is gone
    "bounds that cross": ({"type": "integer", "minimum": 5, "maximum": 2}, "minimum"),
    "bounds without a multiple": ({"type": "integer", "minimum": 5, "maximum": 7, "multipleOf": 4}, "multiple"),
    "multiples that are none": ({"type": "integer", "multipleOf": 2, "enum": [5, 7]}, "."),
    "multiples that are not spelled": (
        {"type": "number", "exclusiveMinimum": 0.25, "maximum": 0.5, "multipleOf": 0.25},
        "all that",
    ),
    "open end of a short range": ({"type": "number", "exclusiveMinimum": 0, "maximum": 0.5}, "open end"),
    "open end below 0": ({"type": "number", "minimum": -1.5, "exclusiveMaximum": -1}, "open end"),
    "number that ends the process": ({"const": -(2**63)}, "2.53"),
    "number that is rounded": ({"enum": [2**53 + 1]}, "2.53"),
    "lower bound that is rounded": ({"type": "integer", "minimum": 1e19}, "2.53"),
    "required without a place": ({"type": "object", "required": ["a"], "additionalProperties": False}, "'a'"),
    "too few items": ({"type": "array", "prefixItems": [INTEGER], "items": False, "minItems": 2}, "item"),
    "lengths that cross": ({"type": "string", "minLength": 3, "maxLength": 2}, "minLength"),
    "length without a pattern": ({"type": "string", "pattern": "^a{3}$", "minLength": 4}, "."),
    "type without a constant": ({"type": "string", "const": 1}, "."),
    "false": ({"type": "array", "minItems": 1, "items": False}, "."),
    "control characters": ({"const": "a\x01"}, "control"),
    "half a character": ({"properties": {"\ud800": INTEGER}}, "Unicode"),
    "seconds of a's": ({"type": "string", "pattern": "^(a{1000}){1000}$"}, "1000000 characters"),
    "seconds of letters": ({"type": "string", "minLength": 100_000}, "minLength"),
    "seconds of items": ({"type": "array", "minItems": 1_000_000}, "minItems"),
    "oneOf of numbers": ({"oneOf": [INTEGER, {"type": "number"}]}, "choices 1 and 2"),
    "oneOf of names": ({"oneOf": [{"required": ["a"]}, {"required": ["b"]}]}, "choices 1 and 2"),
    "oneOf of references": ({"oneOf": [STRING, {"$ref": "#/$defs/s"}], "$defs": {"s": {"enum": ["a"]}}}, "choices 1 and 2"),
    "settings of llguidance": ({"x-guidance": {"lenient": True}, "not": INTEGER}, "x-guidance|not"),
    "unknown draft": ({"$schema": "https://example.com/mine"}, "draft"),
    "unknown format": ({"type": "string", "format": "colour"}, "colour"),
    "unknown type": ({"type": "any"}, "any"),
    "no schema": ({"items": 5}, "5"),
    "no schemas": ({"anyOf": []}, "anyOf"),
    "no list of schemas": ({"allOf": 3}, "allOf is a list of schemas"),
    "no values": ({"enum": []}, "enum"),
    "no number": ({"type": "string", "minimum": "3"}, "minimum"),
    "no count": ({"maxItems": -1}, "maxItems"),
    "no names": ({"required": "a"}, "required"),
    "names of more than a line": ({"properties": {"a\nb" * 100: {"type": "any"}}}, "any"),
    "reference from a constant": ({"$ref": "#/enum/0", "enum": [{"$ref": "#/none"}]}, "none"),
    "deep": (json.loads('{"items":' * 500 + "{}" + "}" * 500), "deep|recursion"),
}


@pytest.mark.parametrize(("schema", "says"), WRONG.values(), ids=WRONG)
def test_what_would_die_or_be_ignored_is_refused_in_one_line(schema, says):
    with pytest.raises(InputError, match=says) as error:
        Guide.json_schema(schema, TOKENIZER, additional_properties=True)
    assert "\n" not in str(error.value) and len(str(error.value)) < 600 and not isinstance(error.value, GuideError)


DRAFTS = [None, *(f"http://json-schema.org/draft-0{n}/schema#" for n in (4, 6, 7))]
DRAFTS += [f"https://json-schema.org/draft/{n}/schema" for n in ("2019-09", "2020-12")]
LACKING = {
    "not": INTEGER, "if": INTEGER, "then": INTEGER, "else": INTEGER, "dependentRequired": {"a": ["b"]},
    "dependentSchemas": {"a": False}, "dependencies": {"a": ["b"]}, "propertyNames": {"maxLength": 3}, "uniqueItems": True,
    "contains": INTEGER, "minContains": 2, "maxContains": 2, "unevaluatedProperties": False, "unevaluatedItems": False,
    "$dynamicRef": "#a", "$recursiveRef": "#", "divisibleBy": 2, "disallow": "null", "extends": INTEGER,
}  # fmt: skip


@pytest.mark.parametrize("keyword", LACKING)
def test_no_assertion_is_ignored_by_any_draft(keyword):
    for draft in DRAFTS:
        schema = {keyword: LACKING[keyword], **({"$schema": draft} if draft else {})}
        for whole in (schema, {"type": "array", "items": schema}, {"$ref": "#/$defs/a", "$defs": {"a": schema}}):
            with pytest.raises(InputError, match=re.escape(keyword)):
                json_grammar(whole, additional_properties=True)


# Taken: (schema, answers that are allowed, answers that are not)
PETS = {
    "cat": {"type": "object", "properties": {"kind": {"const": "cat"}, "lives": INTEGER}, "required": ["kind"]},
    "dog": {"type": "object", "properties": {"kind": {"enum": ["dog", "wolf"]}}, "required": ["kind"]},
}
RIGHT = {
    "oneOf of a type and a reference": (
        {"oneOf": [INTEGER, {"$ref": "#/$defs/a"}], "$defs": {"a": {"type": "array", "items": INTEGER}}}, ["5", "[5]"], ['"a"'],
    ),
    "oneOf of references by a constant": (
        {"oneOf": [{"$ref": "#/$defs/cat"}, {"$ref": "#/$defs/dog"}], "$defs": PETS},
        ['{"kind":"cat","lives":9}', '{"kind":"wolf"}'], ['{"kind":"cow"}', '{"kind":"cat","lives":"x"}'],
    ),
    "oneOf of null and itself": (
        {"type": "object", "properties": {"next": {"oneOf": [{"type": "null"}, {"$ref": "#"}]}}, "required": ["next"],
         "additionalProperties": False}, ['{"next":{"next":null}}'], ['{"next":{}}'],
    ),
    "oneOf through references and choices": (
        {"oneOf": [{"type": "null"}, {"$ref": "#/definitions/a"}],
         "definitions": {"a": {"anyOf": [STRING, {"$ref": "#/definitions/b"}]}, "b": {"type": "boolean"}}},
        ["null", '"a"', "true"], ["1"],
    ),
    "oneOf of ranges": ({"type": "integer", "oneOf": [{"maximum": 2}, {"minimum": 3}]}, ["2", "3"], ["2.5"]),
    "oneOf beside what tells the choices apart": (
        {"type": "object", "required": ["t"], "oneOf": [{"properties": {"t": {"const": n}}} for n in (1, 2)]},
        ['{"t":1}', '{"t":2}'], ['{"t":3}', "{}"],
    ),
    "a pattern over a name in another choice": (
        {"type": "object", "anyOf": [{"properties": {"s": INTEGER}}, {"patternProperties": {"^s$": STRING}}]},
        ['{"s":"x"}'], [],
    ),
    "a pattern beside declared names": (
        {"type": "object", "properties": {"a": INTEGER}, "patternProperties": {"^x-": STRING}, "additionalProperties": False},
        ['{"a":1,"x-b":"c"}', "{}"], ['{"x-b":1}', '{"b":1}'],
    ),
    "a required name that a pattern matches": (
        {"type": "object", "patternProperties": {"^x-": INTEGER}, "required": ["x-a"]}, ['{"x-a":1}'], ['{"x-a":"b"}'],
    ),
    "no escape of a declared name": (
        {"type": "object", "properties": {"a": INTEGER, 'q"': INTEGER}}, ['{"a":1}', '{"q\\"":2}', '{"b":"x"}'],
        ['{"\\u0061":"x"}', '{"a":1,"\\u0061":"x"}', '{"q\\u0022":"x"}'],
    ),
    "a class without the quote": ({"type": "string", "pattern": '^[^"]*$'}, ['"ab\\\\"', '"\\n"'], ['"\\""', '"a\\"b"']),
    "a class of control characters": ({"type": "string", "pattern": r"^[\x00-\x1f]$"}, ['"\\n"'], ['"\\""', '"\\\\"']),
    "a class that is a set of sets for Rust": ({"type": "string", "pattern": "^[a&&b[]+$"}, ['"a&["'], ['"c"']),
    "draft 4's open bounds": (
        {"$schema": "http://json-schema.org/draft-04/schema#", "minimum": 3, "exclusiveMinimum": True, "type": "integer"},
        ["4"], ["3"],
    ),
    "draft 7's tuples": (
        {"$schema": "http://json-schema.org/draft-07/schema#", "items": [INTEGER, STRING], "additionalItems": False},
        ["[1]", '[1,"a"]', "{}"], ['["a"]', '[1,"a",2]'],
    ),
    "bounds of 64 bits": (
        {"type": "integer", "minimum": -(2**63), "maximum": 2**63 - 1}, ["0", "9007199254740992"], ["18446744073709551616"],
    ),
    "a range up to 1": ({"type": "number", "exclusiveMinimum": 0, "maximum": 1}, ["0.5", "1"], ["0", "1.1"]),
    "anchor": ({"$ref": "#here", "$defs": {"a": {"$anchor": "here", "type": "integer"}}}, ["1"], ['"a"']),
    "draft 7's anchor": (
        {"$schema": "http://json-schema.org/draft-07/schema#", "items": {"$ref": "#a"},
         "definitions": {"x": {"$id": "#a", "type": "null"}}}, ["[null]"], ["[1]"],
    ),
    "addresses": (
        {"$id": "https://example.com/a.json", "items": {"$ref": "b.json#/$defs/c"},
         "properties": {"p": {"$ref": "a.json#/$defs/d"}},
         "$defs": {"x": {"$id": "b.json", "$defs": {"c": INTEGER}}, "d": STRING}},
        ["[1]", '{"p":"q"}'], ['["a"]', '{"p":1}'],
    ),
    "escapes of a pointer": ({"$ref": "#/$defs/a~1b%25", "$defs": {"a/b%": INTEGER}}, ["1"], ["true"]),
    "a reference to no definition": (
        {"properties": {"a": INTEGER, "b": {"$ref": "#/properties/a"}}}, ['{"b":1}'], ['{"b":"x"}'],
    ),
    "constants with parts": (
        {"enum": [[1, {"a": None}], {"b": []}, 5]}, ['[1,{"a":null}]', '{"b":[]}', "5"], ["[1]", "{}", '{"b":[1]}'],
    ),
    "constants beside what they must be": (
        {"enum": [[1], [2], ["a"]], "items": {"multipleOf": 2}}, ["[2]", '["a"]'], ["[1]"],
    ),
    "what changes nothing": ({"type": "array", "uniqueItems": False, "deprecated": True, "x-mine": 1}, ["[1,1]"], ["1"]),
    "a place that may stay empty": ({"properties": {"a": False}, "type": "object"}, ["{}", '{"b":1}'], ['{"a":1}']),
    "1.0 is 1": ({"oneOf": [{"const": 1.0}, {"const": True}, {"const": "1"}]}, ["1", "true", '"1"'], ["2"]),
}  # fmt: skip


@pytest.mark.parametrize(("schema", "good", "bad"), RIGHT.values(), ids=RIGHT)
def test_what_is_taken_is_followed(schema, good, bad):
    matcher = opened(schema)
    assert [text for text in good if not accepted(matcher, text)] == []
    assert [text for text in bad if accepted(matcher, text)] == []


BOTH = {"properties": {"a": INTEGER}, "required": ["a"]}
TREE = {"type": "object", "properties": {"of": {"type": "array", "items": {"$ref": "#"}}, "a": INTEGER}}
CLOSED = {
    "declared names": ({"type": "object", **BOTH}, ['{"a":1}'], ['{"a":1,"z":2}']),
    "a value of a property": ({"properties": {"o": BOTH}}, ['{"o":{"a":1}}'], ['{"o":{"a":1,"z":2}}']),
    "no names": ({"type": "object"}, ['{"z":1}'], []),
    "names that are said to be free": ({**BOTH, "additionalProperties": True}, ['{"a":1,"z":2}'], []),
    "a required name that is not declared": ({**BOTH, "required": ["b"]}, ['{"a":1,"b":2}'], ['{"b":2,"z":1}']),
    "patterns": ({"patternProperties": {"^x": INTEGER}}, ['{"x1":1}'], ['{"z":1}']),
    "a choice": (
        {"anyOf": [{"$ref": "#/$defs/o"}, {"type": "null"}], "$defs": {"o": {"type": "object", **BOTH}}},
        ['{"a":1}', "null"],
        ['{"a":1,"z":2}'],
    ),
    "one of two, with a title": (
        {"title": "t", "oneOf": [{"type": "object", **BOTH}, {"type": "array", "items": BOTH}]},
        ['{"a":1}', '[{"a":1}]'],
        ['{"a":1,"z":2}', '[{"a":1,"z":2}]'],
    ),
    "a base and what is added": (
        {"allOf": [{"$ref": "#/$defs/base"}], "properties": {"b": STRING}, "$defs": {"base": BOTH}},
        ['{"a":1,"b":""}'],
        ['{"a":1,"z":2}', '{"b":""}', '{"a":"","b":""}'],
    ),
    "a base alone, and in another": (
        {
            "properties": {"one": {"$ref": "#/$defs/base"}, "two": {"$ref": "#/$defs/base", "properties": {"b": STRING}}},
            "$defs": {"base": BOTH},
        },
        ['{"one":{"a":1},"two":{"a":1,"b":""}}'],
        ['{"one":{"a":1,"b":""}}', '{"two":{"a":1,"z":""}}'],
    ),
    "names of choices beside others": (
        {"properties": {"k": INTEGER}, "anyOf": [{"properties": {"a": INTEGER}}, {"properties": {"b": STRING}}]},
        ['{"k":1,"a":1}', '{"k":1,"b":""}'],
        ['{"k":1,"z":1}'],
    ),
    "more names than are declared": ({**BOTH, "type": "object", "minProperties": 2}, ['{"a":1,"z":2}'], ['{"a":1}']),
    "a tree": (TREE, ['{"of":[{"a":1},{"of":[]}]}'], ['{"of":[{"z":1}]}']),
}  # fmt: skip


@pytest.mark.parametrize(("schema", "good", "bad"), CLOSED.values(), ids=CLOSED)
def test_names_that_are_not_declared_are_not_allowed_unless_asked_for(schema, good, bad):
    matcher = opened(schema, additional_properties=False)
    assert [text for text in good if not accepted(matcher, text)] == []
    assert [text for text in bad if accepted(matcher, text)] == []
    assert check(schema, additional_properties=False)


def test_json_schemas_own_default_can_be_asked_for():
    schema = {"type": "object", **BOTH}
    assert accepted(opened(schema), '{"a":1,"z":2}')
    text = '{"a":1,"z":2}'
    for asked, allowed in ((False, False), (True, True)):
        guide = Guide.json_schema(schema, TOKENIZER, additional_properties=asked)
        ids = TOKENIZER.encode(text)
        assert (guide.accepts(ids) == len(ids)) == allowed


def test_a_oneof_is_answered_by_a_session():
    guide = Guide.json_schema(RIGHT["oneOf of a type and a reference"][0], TOKENIZER)
    seen = set()
    for seed in range(12):
        text, _ = answer(guide, 40, RandomEngine(seed, wishes={b"[": 2}))
        seen.add(type(json.loads(text)))
    assert seen == {int, list}


def test_the_engines_state_is_not_shown():
    """What no check finds ends with a line too: here a grammar whose only way on is a terminal that matches nothing."""
    guide = Guide.grammar('start: "a" X\nX: /b/ & /c/', TOKENIZER)
    with pytest.raises(GuideError) as error:
        for _ in range(3):
            guide.push(TOKENIZER.encode("a")[0]) if not guide.complete else None
            guide.mask(RandomEngine().wish)
    assert "\n" not in str(error.value) and "state" not in str(error.value) and len(str(error.value)) < 200


@pytest.mark.slow
def test_what_is_too_large_for_the_vocabulary_is_refused_at_the_start():
    names = {f"p{i}": STRING for i in range(5000)}
    with pytest.raises(InputError, match="guided"):
        Guide.json_schema({"type": "object", "properties": names, "additionalProperties": False}, TOKENIZER)


def test_a_regex_of_seconds_is_refused():
    with pytest.raises(InputError, match="1000000 characters"):
        regex_grammar("(a{1000}){1000}")


@pytest.mark.parametrize(
    ("pattern", "characters"),
    [("^a{3}b?$", 3), (r"(?:ab|c){2}", 6), (r"\d{4}-\d{2}", 7), ("[a-z]{2,9}", 2), ("(a{10}){10}", 100), ("a*", 0), ("", 0),
     (r"\x41{2}[\]x]{3}", 5), ("(x+y*)?", 0), ("(((", 0)],
)  # fmt: skip
def test_least(pattern, characters):
    assert least(pattern) == characters


@example("[^-a]")
@example(r"[w\00]")
@example(r"\\x{x")
@given(st.text(alphabet='ab]\\[^"-&{}()0dwx1', max_size=12))
def test_a_translation_matches_the_same(pattern):
    """Python's dialect is ECMA's here, where it is a pattern at all and has no empty class; NUL is in no text."""
    assume(not re.search(r"\[\^?\]", pattern))
    for text in ("", "a", "b", '"', "\\", "[", "]", "-", "&", "&&", "ab", "x", "0", "{", "^"):
        try:
            before = re.search(pattern, text)
        except (re.error, OverflowError):
            return
        assert bool(before) == bool(re.search(translated(pattern), text)), (pattern, text)


# Random schemas -------------------------------------------------------------------------------------------------------------

NAMES = st.sampled_from(["a", "b", "ab", "x-1", "é", 'q"'])
NUMBERS = st.sampled_from([-3, -1, 0, 1, 2, 5, 10, 0.5, 2.5, -0.25, 100])
COUNTS = st.integers(0, 3)
PATTERNS = st.sampled_from(["^a", "^x-", "b$", "^ab?$", ".", "^[a-c]+$", "a.b", '^[^"]$', "^[^a]*$"])
VALUES = st.recursive(
    st.none() | st.booleans() | NUMBERS | st.sampled_from(["a", "b", "", "12", 'q"', "é"]),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(NAMES, inner, max_size=2),
    max_leaves=4,
)
TYPES = st.sampled_from(["null", "boolean", "integer", "number", "string", "array", "object"])


def parts(inner: st.SearchStrategy) -> st.SearchStrategy:
    """Keywords in any order and mixture; half of the time with a type."""
    some = st.lists(inner, min_size=1, max_size=3)
    keywords = {
        "minimum": NUMBERS, "maximum": NUMBERS, "exclusiveMinimum": NUMBERS, "exclusiveMaximum": NUMBERS,
        "multipleOf": st.sampled_from([1, 2, 3, 0.5, 0.25]), "minLength": COUNTS, "maxLength": COUNTS, "pattern": PATTERNS,
        "format": st.sampled_from(["date", "time", "ipv4", "uuid", "email"]), "const": VALUES,
        "enum": st.lists(VALUES, min_size=1, max_size=3), "properties": st.dictionaries(NAMES, inner, max_size=3),
        "patternProperties": st.dictionaries(PATTERNS, inner, min_size=1, max_size=2),
        "additionalProperties": inner | st.just(False), "required": st.lists(NAMES, max_size=2), "minProperties": COUNTS,
        "maxProperties": COUNTS, "items": inner, "prefixItems": some, "minItems": COUNTS, "maxItems": COUNTS, "allOf": some,
        "anyOf": some, "oneOf": some, "$ref": st.sampled_from(["#", "#/$defs/a", "#/$defs/b"]),
    }  # fmt: skip
    chosen = st.lists(st.sampled_from(sorted(keywords)), max_size=4, unique=True)
    made = chosen.flatmap(lambda names: st.fixed_dictionaries({name: keywords[name] for name in names}))
    kind = st.one_of(TYPES, st.lists(TYPES, min_size=1, max_size=2, unique=True))
    return st.one_of(made, st.builds(lambda one, kind: {"type": kind, **one}, made, kind))


SCHEMAS = st.recursive(st.one_of(st.booleans(), TYPES.map(lambda name: {"type": name})), parts, max_leaves=8)
WHOLE = st.builds(lambda root, a, b: {**root, "$defs": {"a": a, "b": b}}, parts(SCHEMAS), SCHEMAS, SCHEMAS)
HEALTH = [HealthCheck.too_slow, HealthCheck.filter_too_much, HealthCheck.data_too_large]


@settings(max_examples=150, deadline=None, suppress_health_check=HEALTH)
@given(WHOLE, st.integers(0, 10**6), st.booleans())
def test_a_random_schema_is_refused_or_followed(schema, seed, additional_properties):
    check(schema, seed, additional_properties=additional_properties)


@pytest.mark.slow
@settings(max_examples=5_000, deadline=None, suppress_health_check=HEALTH)
@given(WHOLE, st.integers(0, 10**6), st.booleans())
def test_many_random_schemas_are_refused_or_followed(schema, seed, additional_properties):
    check(schema, seed, additional_properties=additional_properties)


@pytest.mark.parametrize("schema", [schema for schema, _, _ in RIGHT.values()], ids=RIGHT)
def test_random_answers_of_what_is_taken_are_valid(schema):
    assert check(schema, walks=10) >= 5
