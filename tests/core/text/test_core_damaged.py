"""What can be wrong with a tokenizer's folder: one line that says so, and nothing worse."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from border import CORE, CoreTokenizer, Refused, build, compiler
from test_tokenizer import llama_pieces, write_byte_level, write_llama_json, write_sentencepiece, write_tiktoken

BPE = {"model": {"type": "BPE", "vocab": {"a": 0}, "merges": []}, "decoder": {"type": "ByteLevel"}}


def split(pattern: str, behavior: str = "Isolated") -> dict:
    return {"pre_tokenizer": {"type": "Split", "pattern": {"Regex": pattern}, "behavior": behavior}}


def refusal(library, folder: Path) -> str:
    with pytest.raises(Refused) as caught:
        CoreTokenizer(library, folder)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_no_tokenizer_or_two(library, tmp_path):
    allowed = "put one of tokenizer.json, tokenizer.model, *.tiktoken there"
    assert refusal(library, tmp_path) == f"{tmp_path}: no tokenizer; {allowed}"
    assert refusal(library, tmp_path / "absent") == f"{tmp_path / 'absent'}: no tokenizer; {allowed}"
    for name in "ab":
        (tmp_path / f"{name}.tiktoken").write_bytes(b"YQ== 0\n")
    assert refusal(library, tmp_path) == f"{tmp_path}: 2 *.tiktoken files; {allowed}"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"model": {"type": "Unigram", "vocab": [], "merges": []}},
            'the tokenizer\'s model is "Unigram"; the core reads BPE only',
        ),
        ({"model": {"type": "WordPiece", "vocab": {"a": 0}}}, 'model is "WordPiece"; the core reads BPE only'),
        ({"model": {"vocab": [["a", 0.0]]}}, "the tokenizer's model is not named; the core reads BPE only"),
        ({"model": BPE["model"] | {"dropout": 0.1}}, "drops merges by chance"),
        ({"model": BPE["model"] | {"end_of_word_suffix": "</w>"}}, r"marks word parts \(end_of_word_suffix\)"),
        ({"normalizer": {"type": "Precompiled"}}, 'does not read the tokenizer\'s normalizer "Precompiled"'),
        ({"pre_tokenizer": {"type": "UnicodeScripts"}}, 'does not read the tokenizer\'s pre-tokenizer "UnicodeScripts"'),
        (split("a", "Mixed"), 'splitting with behavior "Mixed"'),
        (split(r"\p{Q}+"), "unknown character class Q"),
        (split("("), r"is not understood \(a parenthesis is not closed\)"),
        (split("a)"), "closes nothing"),
        (split("[a"), "a class is not closed"),
        (split("a**"), "repeats a repeat"),
        (split("*"), "repeats nothing"),
        (split("a{1,3}+"), r"the core reads no \+ after a number of times"),
        (split("(?<=a)b"), "the core reads no lookbehind"),
        (split(r"(a)\1"), "the core reads no such escape"),
        (split("(?:a?)*"), "repeats what may be empty"),
        (split("[a[b]]"), "sets within a class"),
        (split("(" * 99 + ")" * 99), "groups so deep"),
        (split("(?:(?:(?:ab){900}){900}){900}"), "too large"),
        ({"decoder": {"type": "WordPiece"}}, "decoder WordPiece is not supported; allowed: ByteLevel, ByteFallback, Metaspace"),
        ({"decoder": None}, "decoder none is not supported"),
    ],
)
def test_what_the_core_does_not_read_is_named(library, tmp_path, change, message):
    (tmp_path / "tokenizer.json").write_text(json.dumps(BPE | change))
    said = refusal(library, tmp_path)
    assert said.startswith(f"{tmp_path / 'tokenizer.json'}: ")
    with pytest.raises(Refused, match=message):
        raise Refused(said)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("tokenizer.json", b""),
        ("tokenizer.json", b"{"),
        ("tokenizer.json", b"[]"),
        ("tokenizer.json", b"version https://git-lfs\noid sha256:0"),
        ("tokenizer.json", b'{"model": {}}'),
        ("tokenizer.json", b'{"model": {"type": "BPE", "vocab": {}, "merges": []}}'),
        ("tokenizer.json", b'{"model": {"type": "BPE", "vocab": {"a": 0}, "merges": ["a b"]}}'),
        ("tokenizer.json", b'{"model": {"type": "BPE", "vocab": {"a": 0}, "merges": ["a"]}}'),
        ("tokenizer.json", b'{"model": {"type": "BPE", "vocab": {"a": -1}, "merges": []}}'),
        ("tokenizer.json", b'{"model": {"type": "BPE", "vocab": {"a": 99999999999}, "merges": []}}'),
        ("tokenizer.json", b'{"model": {"type": "BPE", "vocab": {"a": 0}, "merges": []}, "added_tokens": [{"id": 1}]}'),
        ("tokenizer.json", b"\xff\xfe"),
        ("a.tiktoken", b""),
        ("a.tiktoken", b"YQ== 0\n"),
        ("a.tiktoken", b"not base64 at all\n"),
        ("a.tiktoken", b"!!! 0\n"),
        ("a.tiktoken", b"YQ== -1\n"),
    ],
)
def test_a_damaged_file_is_one_line(library, tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    said = refusal(library, tmp_path)
    assert said.startswith(f"{tmp_path / name}: damaged or not a tokenizer (")
    assert said.endswith("); download or export it again")


def test_files_beside_it_are_checked(library, tmp_path):
    write_byte_level(tmp_path)
    config = tmp_path / "tokenizer_config.json"
    for content, message in (
        ("[]", "must hold a JSON object; download the folder again"),
        ("{", "can't be read"),
        ('{"eos_token": {"id": 3}}', "damaged or not a tokenizer"),
        ('{"additional_special_tokens": 3}', "damaged or not a tokenizer"),
    ):
        config.write_text(content)
        assert message in refusal(library, tmp_path) and str(config) in refusal(library, tmp_path)


def test_ranks_of_another_vocabulary_are_refused(library, tmp_path):
    write_tiktoken(tmp_path)
    path = tmp_path / "small.tiktoken"
    path.write_bytes(path.read_bytes() + b"YWJj 199997\n")
    assert refusal(library, tmp_path) == f"{path}: rank 199997; only cl100k (ranks below 100257) is supported"
    path.write_bytes(path.read_bytes() + b"YWJjZA== 3\n")
    assert "given twice" in refusal(library, tmp_path)


def test_added_token_past_a_gap_is_refused(library, tmp_path):
    path = write_llama_json(tmp_path) / "tokenizer.json"
    config = json.loads(path.read_text())
    config["added_tokens"][-1]["id"] += 5
    path.write_text(json.dumps(config))
    assert "added token <|end|> has id" in refusal(library, tmp_path)
    assert "leaves a gap" in refusal(library, tmp_path)


@pytest.mark.parametrize(
    ("before", "after", "line"),
    [
        (b"\x18\x02\x20", b"\x18\x01\x20", "the model is a unigram one; the core reads BPE"),  # of the trainer
        (b"\x18\x02\x20", b"\x18\x04\x20", "the model is no BPE one"),
        (b"identity\x18\x01\x20\x00", b"identity\x18\x01\x20\x01", "the model removes whitespace"),
        (b"identity\x18\x01\x20\x00\x28\x01", b"identity\x18\x01\x20\x00\x28\x00", "the model writes no ▁ for a space"),
        (b"identity\x18\x01\x20", b"nmt_\x12\x03abc\x20", "damaged or not a tokenizer"),
        (b"<unk>", b"<s>xx", None),  # a name, and no more
        (b"<s>", b"the", "damaged or not a tokenizer (a piece is given twice)"),
        (b"<0x41>", b"<0x4x>", "damaged or not a tokenizer (a piece for a byte is none, or has no use)"),
        (b"<0x41>", b"<0x42>", "damaged or not a tokenizer (a piece is given twice)"),
    ],
)
def test_sentencepiece_models_of_other_kinds_are_refused_by_name(library, tmp_path, before, after, line):
    path = write_sentencepiece(tmp_path, llama_pieces()) / "tokenizer.model"
    whole = path.read_bytes()
    assert before in whole
    path.write_bytes(whole.replace(before, after, 1))
    if line is None:
        CoreTokenizer(library, tmp_path)
        return
    assert refusal(library, tmp_path).startswith(f"{path}: {line}")


def test_no_sentencepiece_model_at_all(library, tmp_path):
    path = tmp_path / "tokenizer.model"
    for data in (b"", b"\0", b"\xff" * 20, b"{}", b"\x0a\xff\xff\xff\xff\x0f"):
        path.write_bytes(data)
        assert refusal(library, tmp_path).startswith(f"{path}: damaged or not a tokenizer (")


CHECK = """
import random, sys
from pathlib import Path
sys.path[:0] = sys.argv[4:]
from border import CoreTokenizer, Refused, load
library, folder, seed = load(Path(sys.argv[1])), Path(sys.argv[2]), int(sys.argv[3])
path = next(path for path in folder.iterdir() if path.name in ("tokenizer.json", "tokenizer.model", "small.tiktoken"))
whole, draw, opened = path.read_bytes(), random.Random(seed), 0
for round in range(150):
    data = bytearray(whole)
    for _ in range(draw.randint(0, 4)):
        at = draw.randrange(len(data))
        kind = draw.randrange(4)
        if kind == 0:
            data[at] = draw.choice(b'0129{}[]",:aNx-\\\\\\xff\\x00')
        elif kind == 1:
            del data[at : at + draw.randint(1, 60)]
        elif kind == 2:
            data[at:at] = data[at : at + draw.randint(1, 60)]
        else:
            del data[at:]
        if not data:
            break
    path.write_bytes(data)
    try:
        tokenizer = CoreTokenizer(library, folder)
    except Refused as error:
        assert len(str(error).splitlines()) == 1, error
        continue
    opened += 1
    for text in ("the cat <|end|> é🙂\\u2028 x", "▁▁a" * 9, " " * 40):
        for special in (True, False):
            try:
                ids = tokenizer.encode(text, special)
            except Refused:
                continue
            tokenizer.decode(ids)
            stream = tokenizer.stream()
            "".join(map(stream.push, ids)) + stream.finish()
print("opened", opened)
"""


@pytest.fixture(scope="session")
def checked_library(once) -> tuple[Path, dict[str, str]]:
    """The library under AddressSanitizer and UBSan, and the environment of a Python that can load it."""
    if compiler() is None:
        pytest.skip("no C++ compiler is here")
    flags = ("-O1", "-g", "-fsanitize=address,undefined", "-fno-sanitize-recover=all")
    # libstdc++ comes first, too: AddressSanitizer looks for its exceptions once, at the start.
    asked = ([str(compiler()), f"-print-file-name={name}"] for name in ("libasan.so", "libstdc++.so"))
    runtime = [subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip() for command in asked]
    if not all(Path(name).is_absolute() for name in runtime):
        pytest.skip("this compiler has no shared AddressSanitizer")
    folder = once("core-text-checked", lambda folder: build(folder / "libtext.so", *flags))
    return folder / "libtext.so", {"LD_PRELOAD": " ".join(runtime), "ASAN_OPTIONS": "detect_leaks=0"}


def llama_model(folder: Path) -> Path:
    return write_sentencepiece(folder, llama_pieces())


@pytest.mark.slow
@pytest.mark.parametrize("write", [write_byte_level, write_llama_json, write_tiktoken, llama_model])
@pytest.mark.parametrize("seed", range(4))
def test_damaged_files_are_safe(checked_library, tmp_path, write, seed):
    library, environment = checked_library
    write(tmp_path)
    command = [sys.executable, "-c", CHECK, str(library), str(tmp_path), str(seed), str(Path(__file__).parent)]
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | environment)
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.startswith("opened ")


def test_sources_are_ours():
    """The build above takes what lies there: no source of the tokenizer needs anything but the standard library."""
    allowed = {"base", "text"}
    for path in (CORE / "src" / "text").glob("*.[ch]*"):
        quoted = [line.split('"')[1] for line in path.read_text().splitlines() if line.startswith('#include "')]
        assert {name.partition("/")[0] for name in quoted} <= allowed | {"phi3mobile_text.h"}, path
