"""Constrained output in the core against Python's: the same texts, tokens, ends and refusals."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import jsonschema
import pytest
from guided import guided_scenario
from hypothesis import given, settings
from library import CoreError, core_session, has_guidance
from scenarios import VOCAB, ChainEngine, write_bundle
from test_session_core import PythonPlayer, compare

from phi3mobile.engines.native import native_library
from phi3mobile.errors import InputError
from tests.session.test_schema import CLOSED, HEALTH, LACKING, RIGHT, WHOLE, WRONG

pytestmark = pytest.mark.skipif(not has_guidance(), reason="no native library, or one without constrained output: make native")
CITY = {"type": "object", "properties": {"city": {"type": "string"}, "size": {"type": "integer"}}, "required": ["city"]}


class Pair:
    """Python's session and the core's on two engines that are the same."""

    def __init__(self, folder: Path) -> None:
        self.engines = [ChainEngine(VOCAB, max_context=300, max_chunk=300) for _ in range(2)]
        self.folder = write_bundle(folder / "pair", self.engines[0])
        self.python = PythonPlayer(self.folder, self.engines[0])

    def __enter__(self) -> Pair:
        self._opened = core_session(self.folder, self.engines[1])
        self.core = self._opened.__enter__()
        return self

    def __exit__(self, *error: object) -> None:
        self._opened.__exit__(None, None, None)

    def answers(self, **request: object) -> str:
        """The one answer, or refusal, that both give."""
        request = {"prompt": "the end", "max_tokens": 60} | request
        found = []
        for player, refusal in ((self.python, InputError), (self.core, CoreError)):
            try:
                answer = player.answer(dict(request), None)
                statistics = {name: answer.statistics[name] for name in ("finish_reason", "generated_tokens", "forwards")}
                found.append(("".join(answer.pieces), answer.notes, statistics))
            except refusal as error:
                found.append((str(error), None, None))
        assert found[0] == found[1], request
        assert self.engines[0].calls[-1:] == self.engines[1].calls[-1:]
        return found[0][0]


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    with Pair(tmp_path_factory.mktemp("pair")) as made:
        yield made


def test_guided_scenarios_give_the_same(tmp_path):
    seen = compare(range(120), tmp_path, guided_scenario)
    for what in ("stop", "length", "stop_string", "cancelled", "refused", "the", "accepted"):
        assert seen.get(what, 0) > 0, (what, seen)


@pytest.mark.slow
def test_a_thousand_guided_scenarios_give_the_same(tmp_path):
    compare(range(120, 1120), tmp_path, guided_scenario)


@pytest.mark.parametrize("additional", [True, False])
def test_the_schemas_of_pythons_suite_are_answered_or_refused_alike(pair, additional):
    for schema in [entry[0] for kind in (WRONG, RIGHT, CLOSED) for entry in kind.values()]:
        if "\\ud800" in json.dumps(schema):
            continue  # the request itself is no text
        if json.dumps(schema).count("{") > 190:
            continue  # nested deeper than the core reads JSON: both refuse, in their words
        text = pair.answers(schema=schema, additional_properties=additional)
        if schema in [entry[0] for entry in RIGHT.values()] and additional:
            assert not text.startswith("the JSON schema")


@pytest.mark.parametrize("keyword", LACKING)
def test_what_is_lacking_is_refused_by_name(pair, keyword):
    assert f"{keyword} is not supported" in pair.answers(schema={keyword: LACKING[keyword]})


def check(pair, schema, seed, additional):
    draw = {"temperature": 1.0, "seed": seed}
    pair.answers(schema=schema, additional_properties=additional, **draw)
    pair.answers(schema=json.dumps(schema), additional_properties=additional, lookup=True, max_tokens=12, **draw)


@settings(max_examples=100, deadline=None, suppress_health_check=HEALTH)
@given(WHOLE)
def test_a_random_schema_allows_the_same_texts(pair, schema):
    for seed in range(2):
        check(pair, schema, seed, bool(seed))


@pytest.mark.slow
@settings(max_examples=1000, deadline=None, suppress_health_check=HEALTH)
@given(WHOLE)
def test_many_random_schemas_allow_the_same_texts(pair, schema):
    for seed in range(4):
        check(pair, schema, seed, bool(seed % 2))


def test_an_answer_is_valid(pair):
    for seed in range(5):
        jsonschema.validate(json.loads(pair.answers(schema=CITY, temperature=1.0, seed=seed)), CITY)


@pytest.mark.parametrize(
    ("request_", "says"),
    [
        ({"schema": "{"}, "the JSON schema is not JSON"),
        ({"schema": [1]}, 'the JSON schema is a list; it must be an object such as {"type": "object"}'),
        ({"schema": 5}, "the JSON schema is a int"),
        ({"schema": {"type": "strin"}}, "type is 'strin'; it must be one of null"),
        ({"regex": 5}, "the regex is 5; it must be a text that is not empty"),
        ({"regex": ""}, "the regex is ''"),
        ({"regex": "(?=a)b"}, "look-around"),
        ({"regex": "(a{1000}){1000}"}, "asks for 1000000 characters"),
        ({"grammar": " \n"}, "the grammar is ' \\n'"),
        ({"regex": "a", "grammar": "start: x"}, "schema, regex and grammar each say what the answer may be"),
        ({"additional_properties": True}, "additional_properties was given without a schema"),
        ({"schema": {}, "additional_properties": 1}, "additional_properties is 1; it must be true or false"),
        ({"schema": CITY, "max_tokens": 2}, "2 tokens are left for the answer"),
    ],
)
def test_wrong_guides_are_one_line(pair, request_, says):
    with pytest.raises(CoreError) as refused:
        pair.core.answer({"prompt": "the end"} | request_)
    assert says in str(refused.value) and "\n" not in str(refused.value)


def test_a_guide_and_tools_exclude_each_other(pair):
    with pytest.raises(CoreError, match="tools and a guide both say"):
        pair.core.answer({"messages": [{"role": "user", "content": "a"}], "tools": [{"name": "now"}], "regex": "a"})


def test_p3m_takes_them(bundle_of, tmp_path):
    bundle = bundle_of("tiny-gqa", "host")
    (tmp_path / "city.json").write_text(json.dumps(CITY))
    (tmp_path / "ab.lark").write_text('start: "a" "b"')
    p3m = Path(native_library() or "").with_name("p3m")

    def run(*flags: str | Path) -> tuple[int, str, str]:
        done = subprocess.run([p3m, "run", bundle, "A city?", "--max-tokens", "30", *flags], capture_output=True, text=True)
        return done.returncode, done.stdout.removesuffix("\n"), done.stderr

    with core_session(bundle) as session:
        messages = [{"role": "user", "content": "A city?"}]
        expected = session.answer({"messages": messages, "schema": CITY, "max_tokens": 30}).text
    assert run("--json-schema", tmp_path / "city.json")[:2] == run("--schema", tmp_path / "city.json")[:2] == (0, expected)
    assert run("--regex", "(yes|no)")[1] in ("yes", "no") and run("--grammar", tmp_path / "ab.lark")[1] == "ab"
    for flags, says in (
        (("--json-schema", tmp_path / "none"), "none"),
        (("--regex", "a("), "the regex can't be used"),
        (("--regex", "a", "--grammar", tmp_path / "ab.lark"), "give one of them"),
        (("--additional-properties",), "without a schema"),
    ):
        code, text, error = run(*flags)
        assert code == 2 and text == "" and error.startswith("p3m: ") and says in error and error.count("\n") == 1


def test_without_the_library_it_is_refused_by_name(tmp_path):
    """In a process of its own: what was found once stays."""
    program = (
        "import sys; sys.path[:0] = sys.argv[2:]\n"
        "from pathlib import Path\nfrom library import asked, core, core_session, CoreError\n"
        "from scenarios import ChainEngine, VOCAB, write_bundle\n"
        "engine = ChainEngine(VOCAB)\n"
        "with core_session(write_bundle(Path(sys.argv[1]) / 'b', engine), engine) as session:\n"
        "    for path in (b'/none/libllguidance.so', b''):\n"
        "        try: asked(core().p3m_guidance, path)\n"
        "        except CoreError as error: print(error)\n"
        "    try: session.answer({'prompt': 'the', 'regex': 'a'})\n"
        "    except CoreError as error: print(error)\n"
        "    print(session.answer({'prompt': 'the', 'max_tokens': 2}).statistics['generated_tokens'])\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, tmp_path, Path(__file__).parent], capture_output=True, text=True, check=True
    )
    lines = done.stdout.splitlines()
    assert len(lines) == 4 and lines[3] == "2"
    assert all(line.startswith("this build has no constrained output: ") for line in lines[:3])
    assert "/none/libllguidance.so" in lines[0] and "turned off" in lines[1] and "leave out schema" in lines[2]
