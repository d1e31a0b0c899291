"""`phi3mobile data build`: planted documents meet the step that must remove them; the rest comes out as shards, exactly."""

from __future__ import annotations

import gzip
import io
import json
import os
import sys
from dataclasses import asdict, replace
from html import escape
from pathlib import Path

import numpy as np
import pytest
from exported import write_tokenizer

from phi3mobile.cli import main
from phi3mobile.errors import InputError

pytest.importorskip("datatrove", reason="needs the extra `train`")
pytest.importorskip("spacy", reason="needs the extra `train`")

from phi3mobile.text.vocabularies import load_tokenizer
from phi3mobile.training.data.build import build
from phi3mobile.training.data.config import Build, Decontaminate, Deduplicate, Executor, Extract, Input, Language, Mask
from phi3mobile.training.data.jsonl import read_jsonl, read_texts, write_jsonl
from phi3mobile.training.data.shards import ShardWriter, open_shards
from phi3mobile.training.settings import read_settings

JARGON = Path(__file__).parents[2] / "bench" / "text" / "jargon.txt"
GERMAN = "Der schnelle braune Fuchs springt über den faulen Hund, und die Katze sieht ihm dabei vom Dach aus zu. " * 5
QUESTION = {
    "question": "Who wrote the first compiler for the language with which the admiral is often credited?",
    "answer": "Grace Hopper wrote it.",
}


@pytest.fixture(scope="module")
def prose() -> list[str]:
    """Real English text in 12 documents of about 700 words."""
    documents = [""]
    for paragraph in JARGON.read_text("utf-8").split("\n\n"):
        if len(paragraph) > 150:
            documents[-1] += ("\n\n" if documents[-1] else "") + paragraph
            if len(documents[-1]) > 4000:
                documents.append("")
    return documents[:12]


@pytest.fixture(scope="module")
def raw(tmp_path_factory, prose) -> Path:
    """Raw files in the four formats: good documents, and one for each step to remove."""
    import pyarrow
    import pyarrow.parquet

    base = tmp_path_factory.mktemp("raw")
    (base / "tokenizer").mkdir()
    write_tokenizer(base / "tokenizer")
    (base / "jsonl").mkdir()
    nearly = prose[0].replace("hackers", "Hackers", 1) + " Indeed."
    planted = {
        "good-0": prose[0],
        "copy-0": nearly,
        "german": GERMAN,
        "short": "Too short to keep: " + " ".join(prose[9].split()[:40]),
        "again": "We said this line before and will say it again.\n" * 40,
        "leak": f"{prose[1]}\n\n{QUESTION['question']} {QUESTION['answer']}",
        "mail": f"{prose[2]}\n\nWrite to jane.roe@company.org or 8.8.4.4 <|endoftext|> when you can.",
    }
    write_jsonl(base / "jsonl" / "a.jsonl", ({"id": name, "text": text} for name, text in planted.items()))
    (base / "parquet").mkdir()
    table = {"body": prose[3:5], "name": ["parquet-0", "parquet-1"]}
    pyarrow.parquet.write_table(pyarrow.table(table), base / "parquet" / "b.parquet")
    (base / "text").mkdir()
    (base / "text" / "c.txt").write_text(prose[5], "utf-8")
    (base / "text" / "d.txt.gz").write_bytes(gzip.compress(prose[6].encode()))
    (base / "text" / "latin.txt").write_bytes("caf\xe9 ".encode("latin-1") * 100)
    (base / "warc").mkdir()
    write_warc(base / "warc" / "e.warc.gz", prose[7:9])
    write_jsonl(base / "evaluation.jsonl", [QUESTION])
    return base


def write_warc(path: Path, texts: list[str]) -> None:
    from warcio.statusandheaders import StatusAndHeaders
    from warcio.warcwriter import WARCWriter

    with path.open("wb") as file:
        writer = WARCWriter(file, gzip=True)
        for i, text in enumerate(texts):
            paragraphs = "".join(f"<p>{escape(part)}</p>" for part in text.split("\n\n"))
            menu = "<title>t</title></head><body><nav><a href='/'>Home</a></nav>"
            page = f"<html><head>{menu}<article>{paragraphs}</article></body></html>"
            headers = StatusAndHeaders("200 OK", [("Content-Type", "text/html; charset=utf-8")], protocol="HTTP/1.1")
            record = writer.create_warc_record(
                f"http://example.org/{i}", "response", payload=io.BytesIO(page.encode()), http_headers=headers
            )
            writer.write_record(record)


def config_for(raw: Path, out: Path, **changes) -> Build:
    config = Build(
        out,
        raw / "tokenizer",
        (Input(str(raw / "jsonl"), "jsonl"), Input(str(raw / "text"), "text")),
        shard_tokens=2000,
        language=Language(),
        gopher_repetition={},
        gopher_quality={"min_doc_words": 60},
        deduplicate=Deduplicate(),
        decontaminate=Decontaminate((raw / "evaluation.jsonl",)),
        mask=Mask(),
    )
    return replace(config, **changes)


@pytest.fixture(scope="module")
def built(raw, tmp_path_factory) -> tuple[Path, dict]:
    out = tmp_path_factory.mktemp("built") / "web"
    return out, build(config_for(raw, out))


def test_every_step_removes_what_it_should(built):
    _, statistics = built
    removed = {step["name"]: step["removed"] for step in statistics["steps"]}
    assert statistics["read"] == 9 and statistics["kept"] == statistics["documents"] == 4
    assert statistics["unreadable"] == 1  # latin.txt
    assert removed == {"language": 1, "gopher_repetition": 1, "gopher_quality": 1, "decontaminate": 1, "deduplicate": 1}
    sample = {name: [entry["id"] for entry in samples] for name, samples in statistics["samples"].items()}
    assert sample["language"] == ["german"] and sample["gopher_quality"] == ["short"]
    assert sample["gopher_repetition"] == ["again"] and sample["decontaminate"] == ["leak"]
    assert sample["deduplicate"] in (["good-0"], ["copy-0"])
    assert statistics["samples"]["gopher_quality"][0]["reason"] == "gopher_short_doc"


def test_what_comes_from_outside_is_valid_or_counted(tmp_path):
    from phi3mobile.training.data.steps import LineReader, TextReader

    lines = [
        b'\xef\xbb\xbf{"text": "first"}',
        b'{"text": "half \\ud83d, whole \\ud83d\\ude00"}',
        b"",
        b"no json",
        b"[1]",
        b'{"text": "caf\xe9"}',
    ]
    (tmp_path / "lines").mkdir()
    (tmp_path / "lines" / os.fsdecode(b"caf\xe9.jsonl")).write_bytes(b"\n".join([*lines, b'{"text": "last"}']))
    reader = LineReader(str(tmp_path / "lines"))
    got = list(reader.run())
    assert [document.text for document in got] == ["first", "half \ufffd, whole \U0001f600", "last"]
    assert got[0].id == "caf\\xe9.jsonl/0" and reader.stats.stats["unreadable"].total == 3
    (tmp_path / "texts").mkdir()
    (tmp_path / "texts" / os.fsdecode(b"caf\xe9.txt")).write_bytes("marked".encode("utf-8-sig"))
    (tmp_path / "texts" / "latin.txt").write_bytes(b"caf\xe9")
    texts = TextReader(str(tmp_path / "texts"))
    assert [(document.text, document.id) for document in texts.run()] == [("marked", "caf\\xe9.txt/0")]
    assert texts.stats.stats["unreadable"].total == 1


def test_shards_are_the_documents(built, raw, prose):
    out, _ = built
    shards, tokenizer = open_shards(out), load_tokenizer(raw / "tokenizer")
    texts = [tokenizer.decode(shards.document(i).tolist()) for i in range(shards.documents)]
    end = tokenizer.special_ids["<|endoftext|>"]
    assert all(text.endswith("<|endoftext|>") for text in texts)
    mail = next(text for text in texts if "Write to" in text)
    assert "jane.roe" not in mail and "8.8.4.4" not in mail and "@example" in mail
    index = texts.index(mail)
    assert "<|endoftext|> when" in mail and (shards.document(index) == end).sum() == 1  # people's text makes no control token
    assert {prose[5] + "<|endoftext|>", prose[6] + "<|endoftext|>"} <= set(texts)
    assert len(shards.names) > 1 and len(set(shards.keys().tolist())) == 4


def test_page_shows_counts_and_samples_and_loads_nothing(built):
    page = (built[0] / "statistics.html").read_text("utf-8")
    assert "Too short to keep" in page and "gopher_short_doc" in page and "springt über" in page
    assert "http" not in page.replace("http-equiv", "") or "src=" not in page
    assert "<script" not in page and json.loads((built[0] / "statistics.json").read_text())["read"] == 9


def test_all_formats_and_extraction(raw, tmp_path, prose):
    inputs = (
        Input(str(raw / "parquet"), "parquet", text_key="body", id_key="name"),
        Input(str(raw / "warc"), "warc", glob="*.warc.gz"),
    )
    config = Build(tmp_path / "out", raw / "tokenizer", inputs, extract=Extract())
    assert build(config)["documents"] == 4
    shards, tokenizer = open_shards(tmp_path / "out"), load_tokenizer(raw / "tokenizer")
    texts = " ".join(tokenizer.decode(shards.document(i).tolist()) for i in range(4)).split()
    assert "Home" not in texts
    for text in prose[7:9]:
        assert " ".join(text.split()[:30]) in " ".join(texts)


def test_no_filter_keeps_all(raw, tmp_path):
    result = build(Build(tmp_path / "out", raw / "tokenizer", (Input(str(raw / "jsonl"), "jsonl"),)))
    assert result["documents"] == result["read"] == 7 and result["steps"] == []


def test_killed_build_resumes_to_the_same_bytes(raw, built, tmp_path, monkeypatch):
    calls, add = [], ShardWriter.add

    def dies(self, tokens, key=0):
        if len(calls) == 3:
            raise KeyboardInterrupt
        calls.append(key)
        add(self, tokens, key)

    config = config_for(raw, tmp_path / "web")
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(ShardWriter, "add", dies)
        build(config)
    assert not (config.out / "index.json").exists() and list(config.out.glob("*.tokens"))
    seen = []
    build(config, lambda stage, done, total: seen.append(stage))
    for file in sorted(built[0].glob("*")):
        if file.suffix in (".tokens", ".ends", ".keys"):
            assert (config.out / file.name).read_bytes() == file.read_bytes()
    assert seen[0] == "evaluations" and seen[-1] == "finish"
    with pytest.raises(InputError, match="exists"):
        build(config)


def test_nothing_left_is_said_with_the_counts(raw, tmp_path):
    config = config_for(raw, tmp_path / "out", gopher_quality={"min_doc_words": 10_000}, decontaminate=None)
    with pytest.raises(InputError, match="no document is left of 9: language removed 1, gopher_repetition removed 1, gopher_q"):
        build(config)
    assert not (tmp_path / "out" / "index.json").exists()


def test_bad_input(raw, tmp_path):
    def refuse(match: str, **changes):
        with pytest.raises(InputError, match=match):
            build(config_for(raw, tmp_path / "out", **changes))

    refuse("gopher_quality: unknown key min_words; allowed: min_doc_words", gopher_quality={"min_words": 3})
    refuse("has no <|eot|>", eos="<|eot|>")
    refuse("has no files like", inputs=(Input(str(raw / "text"), "text", glob="*.none"),))
    refuse("no tokenizer", tokenizer=raw / "text")
    refuse("nothing.jsonl can't be read", decontaminate=Decontaminate((raw / "nothing.jsonl",)))
    refuse("neither q nor answer", decontaminate=Decontaminate((raw / "jsonl" / "a.jsonl",), question="q"))
    (tmp_path / "out.work").mkdir()
    (tmp_path / "out.work" / "config.json").write_text("{}")
    refuse("begun with another config")
    (tmp_path / "full").mkdir()
    with pytest.raises(InputError, match="exists"):
        build(config_for(raw, tmp_path / "full"))
    with pytest.raises(InputError, match="inputs is empty"):
        Build(tmp_path / "x", raw / "tokenizer", ())
    with pytest.raises(InputError, match="tasks and workers"):
        Executor(tasks=1, workers=0) and Build(tmp_path / "x", raw, (Input("a", "text"),), executor=Executor(tasks=0))


def toml(config: Build) -> str:
    """The few kinds of value that a Build holds, as TOML."""
    lines, tables = [], []

    def value(item) -> str:
        if isinstance(item, list | tuple):
            return "[" + ", ".join(map(value, item)) + "]"
        return json.dumps(item if isinstance(item, str | int | float | bool) else str(item))

    for key, item in asdict(config).items():
        if isinstance(item, dict):
            tables.append(f"[{key}]\n" + "\n".join(f"{k} = {value(v)}" for k, v in item.items() if not isinstance(v, dict)))
        elif key == "inputs":
            tables += ["[[inputs]]\n" + "\n".join(f"{k} = {value(v)}" for k, v in entry.items()) for entry in item]
        elif item is not None:
            lines.append(f"{key} = {value(item)}")
    return "\n".join(lines + tables)


def test_verb(raw, tmp_path, capsys):
    file = tmp_path / "build.toml"
    inputs = (Input(str(raw / "text"), "text"),)
    config = Build(tmp_path / "out", raw / "tokenizer", inputs, gopher_quality={"min_doc_words": 60})
    file.write_text(toml(config))
    assert read_settings(file, Build) == config
    assert main(["data", "build", str(file)]) == 0
    last = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert last["job"] == "build" and last["documents"] == 2 and "samples" not in last
    assert main(["data", "show", str(tmp_path / "out"), "--tokenizer", str(raw / "tokenizer")]) == 0
    shown = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert shown["tokens"] == last["tokens"] and shown["document 0"]
    assert main(["data", "build", str(file)]) == 2
    assert "exists" in capsys.readouterr().err
    file.write_text(file.read_text().replace("gopher_quality", "gopher_qualty"))
    assert main(["data", "build", str(file)]) == 2
    assert "unknown key gopher_qualty; did you mean gopher_quality" in capsys.readouterr().err


def test_jsonl(tmp_path):
    file = tmp_path / "a.jsonl"
    entries = [{"text": "line\u2028separator\x85 and\nnewline"}, {"text": "x"}]
    write_jsonl(file, entries)
    assert read_jsonl(file) == entries
    for text, match in (("", "no lines"), ("3\n", "one JSON object"), ("{", "line 1 is not JSON"), ('{"a": 1}', "lacks text")):
        file.write_text(text)
        with pytest.raises(InputError, match=match):
            read_texts(file, "text")
    with pytest.raises(InputError, match="can't be read"):
        read_jsonl(tmp_path / "none")


@pytest.mark.slow
def test_ray_writes_the_same_documents(raw, built, tmp_path):
    pytest.importorskip("ray", reason="needs the extra `cluster`")
    config = config_for(raw, tmp_path / "web", executor=Executor("ray", tasks=2, workers=2, options={"mem_per_cpu_gb": 0.2}))
    assert build(config)["documents"] == 4
    keys = open_shards(config.out).keys()
    assert len(np.intersect1d(keys, open_shards(built[0]).keys())) >= 3  # of a pair of copies, either may stay


SBATCH = """#!/bin/bash
# Runs the job at once: every index of its array, one after the other, in the order that --dependency asks for.
for script; do :; done
echo "$(basename "$0") $*" >> "$SLURM_STANDIN/calls"
for argument in "$@"; do case $argument in --export=ALL,*) export "${argument#--export=ALL,}";; esac; done
export SLURM_JOB_NODELIST=localhost SLURM_NODELIST=localhost SLURM_NODEID=0
last=$(sed -n 's/^#SBATCH --array=0-\\([0-9]*\\).*/\\1/p' "$script")
for index in $(seq 0 "${last:-0}"); do
  SLURM_ARRAY_TASK_ID=$index bash "$script" >> "$SLURM_STANDIN/out" 2>&1 || { cat "$SLURM_STANDIN/out" >&2; exit 1; }
done
number=$(wc -l < "$SLURM_STANDIN/calls"); grep -o "job-name=.*" "$script" | sed "s/^/$number /" >> "$SLURM_STANDIN/names"
echo "Submitted batch job $number"
"""
SRUN = """#!/bin/bash
while [[ $1 == -* ]]; do [[ $1 == -n ]] && shift; shift; done
exec "$@"
"""


@pytest.mark.slow
def test_slurm_runs_the_stages_in_order(raw, built, tmp_path, monkeypatch):
    """Against stand-ins for sbatch, srun and scontrol that run what they are given."""
    commands = tmp_path / "bin"
    commands.mkdir()
    for name, text in (("sbatch", SBATCH), ("srun", SRUN), ("scontrol", "#!/bin/sh\necho localhost\n")):
        (commands / name).write_text(text)
        (commands / name).chmod(0o755)
    monkeypatch.setenv("SLURM_STANDIN", str(tmp_path))
    monkeypatch.setenv("PATH", f"{commands}:{Path(sys.executable).parent}:{os.environ['PATH']}")
    options = {"time": "1:00:00", "partition": "cpu", "requeue_signals": None}
    config = config_for(raw, tmp_path / "web", executor=Executor("slurm", tasks=2, workers=2, options=options))
    assert build(config)["submitted"] == ["evaluations", "filter", "minhash", "buckets", "clusters", "pack", "finish"]
    assert open_shards(config.out).documents == 4
    calls = (tmp_path / "calls").read_text().splitlines()
    assert "--dependency" not in calls[0] and sum("--dependency=afterok" in call for call in calls) >= 6


def test_slurm_without_sbatch(raw, tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    options = {"time": "1:00:00", "partition": "cpu"}
    with pytest.raises(InputError, match="no sbatch here"):
        build(config_for(raw, tmp_path / "a", executor=Executor("slurm", options=options)))
    with pytest.raises(InputError, match=r"executor: options.*partition"):
        build(config_for(raw, tmp_path / "b", executor=Executor("slurm")))
    with pytest.raises(InputError, match=r"executor: options.*tpyo"):
        build(config_for(raw, tmp_path / "c", executor=Executor(options={"tpyo": 1})))


def test_every_config_that_comes_along_is_read():
    from phi3mobile.training.data import ablate, curate, synthetic

    folder = Path(read_settings.__code__.co_filename).parent / "configs"
    kinds = {"web": Build, "synthetic": synthetic.CONFIG, "curate": curate.CONFIG, "ablate": ablate.CONFIG}
    assert {file.stem for file in folder.glob("data-*.toml")} == {f"data-{kind}" for kind in kinds}
    for kind, settings in kinds.items():
        assert isinstance(read_settings(folder / f"data-{kind}.toml", settings), settings)


def test_a_line_ends_at_a_newline_only(tmp_path):
    """U+2028 may stand in a JSON string; conversations are read by the same code."""
    from phi3mobile.training.chats import read_lines

    file = tmp_path / "a.jsonl"
    file.write_text('{"text": "one\u2028line"}\n\n{"text": "two"}\n', "utf-8")
    assert [entry["text"] for entry in read_jsonl(file)] == ["one\u2028line", "two"]
    assert [where for where, _ in read_lines([file])] == [f"{file}:1", f"{file}:3"]
