"""The command line: every verb, every bad input as one line and exit code 2, and a chat driven from a terminal."""

import contextlib
import io
import json
import os
import pty
import select
import shutil
import signal
import subprocess
import sys
import time

import pytest
from exported import VOCAB
from tiny import tiny

from phi3mobile import cli
from phi3mobile.cli import VERBS, main

HEAVY = ("torch", "numpy", "rich", "jinja2", "tokenizers", "transformers", "executorch", "safetensors", "huggingface_hub")


def refused(capsys, *arguments):
    """The line that `phi3mobile arguments...` refuses with."""
    code = main([str(argument) for argument in arguments])
    captured = capsys.readouterr()
    assert code == 2 and captured.out == ""
    lines = captured.err.splitlines()
    assert len(lines) == 1 and lines[0].startswith("phi3mobile: "), captured.err
    return lines[0]


def shown(capsys, *arguments):
    """(stdout, its last line as JSON) of a run that ends well."""
    code = main([str(argument) for argument in arguments])
    captured = capsys.readouterr()
    assert code == 0, captured.err
    return captured.out, json.loads(captured.out.splitlines()[-1])


def command(*arguments):
    return [sys.executable, "-m", "phi3mobile.cli", *map(str, arguments)]


# Help costs nothing and is always there


def loaded_after(code):
    """Which heavy packages a fresh interpreter has after `code`."""
    report = f"\nimport sys; print([name for name in {HEAVY!r} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code + report], capture_output=True, text=True, timeout=1800)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()[-1]


def test_importing_and_help_load_nothing_heavy():
    assert loaded_after("import phi3mobile") == "[]"
    for arguments in (["--help"], ["--version"], *([verb, "--help"] for verb in VERBS)):
        code = f"from phi3mobile.cli import main\ntry: main({arguments!r})\nexcept SystemExit as end: assert not end.code"
        assert loaded_after(code) == "[]", arguments


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_has_help(capsys, verb):
    with pytest.raises(SystemExit) as end:
        main([verb, "--help"])
    assert end.value.code == 0
    text = " ".join(capsys.readouterr().out.split())
    assert text.startswith(f"usage: phi3mobile {verb}") and VERBS[verb][1] in text


def test_the_overview_names_every_verb(capsys):
    with pytest.raises(SystemExit):
        main(["--help"])
    text = capsys.readouterr().out
    assert all(verb in text for verb in VERBS)


# Bad input


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "VERB"),
        (["fly"], "invalid choice: 'fly' (choose from"),
        (["--fast"], "VERB"),
        (["export"], "source"),
        (["export", "a", "--fast"], "unrecognized arguments: --fast"),
        (["run", "a"], "prompt"),
        (["run"], "bundle, prompt"),
        (["export", "a", "--context", "many"], "argument --context: invalid int value: 'many'"),
        (["chat", "b", "--temperature", "hot"], "argument --temperature"),
        (["inspect", "a", "b"], "unrecognized arguments: b"),
    ],
)
def test_unknown_verbs_and_flags(capsys, arguments, message):
    line = refused(capsys, *arguments)
    assert message in line and "--help" in line


def test_paths_that_are_not_there(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for verb in (["run", "nothing", "hi"], ["chat", "nothing"], ["bench", "nothing"]):
        assert "nothing does not exist or is not a folder; give a bundle" in refused(capsys, *verb)
    for verb in (["inspect", "nothing"], ["export", "nothing"], ["import", "nothing", "out"]):
        assert "nothing does not exist; give a file, a folder, or a hub id" in refused(capsys, *verb)
    assert "has no config.json: it is not a checkpoint folder" in refused(capsys, "inspect", tmp_path)
    assert "has no manifest.json: it is not a bundle" in refused(capsys, "run", tmp_path, "hi")
    assert not list(tmp_path.iterdir())


def test_files_that_are_no_models(capsys, tmp_path):
    bad = tmp_path / "bad.gguf"
    for data, message in ((b"", "not a GGUF file"), (b"GGUF\3\0\0\0" + b"\xff" * 60, "truncated or damaged")):
        bad.write_bytes(data)
        assert message in refused(capsys, "import", bad, tmp_path / "out")
        assert message in refused(capsys, "export", bad, "-o", tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["bad.gguf"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model_type": "bert"}, "model_type is 'bert'; known are phi3, llama, mistral"),
        ({"num_key_value_heads": 3}, "num_key_value_heads 3 does not divide"),
        ({"wings": 2}, "unknown key 'wings'"),
        ({"hidden_size": 32}, "has shape"),
        ({"num_hidden_layers": 3}, "is missing"),
        ({"rope_scaling": {"type": "longrope", "short_factor": [1.0], "long_factor": [1.0]}}, "has 1 values"),
    ],
)
def test_bad_configs(capsys, tiny_checkpoint_folder, tmp_path, change, message):
    folder = tmp_path / "checkpoint"
    shutil.copytree(tiny_checkpoint_folder, folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | change))
    for verb in (["inspect", folder], ["export", folder, "-o", tmp_path / "out"], ["import", folder, tmp_path / "out"]):
        assert message in refused(capsys, *verb)
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint"]


def test_bad_options(capsys, tiny_checkpoint_folder, tmp_path):
    export = ("export", tiny_checkpoint_folder, "-o", tmp_path / "out")
    assert "recipe 'fast' is not known; take one of:" in refused(capsys, *export, "--recipe", "fast")
    assert "context 1000: this model takes 1 to 256" in refused(capsys, *export, "--context", 1000)
    assert "dtype 'int4'; allowed are float16, bfloat16, float32" in refused(
        capsys, "import", tiny_checkpoint_folder, tmp_path / "out", "--dtype", "int4"
    )
    assert not list(tmp_path.iterdir())
    for verb in (["export", tiny_checkpoint_folder, "-o", tmp_path], ["import", tiny_checkpoint_folder, tmp_path]):
        assert f"{tmp_path} exists; give another name or remove it" in refused(capsys, *verb)


def test_too_small_a_disk_is_known_before_the_work(capsys, tiny_checkpoint_folder, tmp_path, monkeypatch):
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=1000))
    for verb in (["export", tiny_checkpoint_folder, "-o", tmp_path / "o"], ["import", tiny_checkpoint_folder, tmp_path / "o"]):
        assert "the disk has 0.0 GB free; make room or write elsewhere" in refused(capsys, *verb)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--temperature", "-1"], "temperature is -1.0; it must be 0 or more"),
        (["--top-p", "0"], "top_p is 0.0"),
        (["--top-k", "-2"], "top_k is -2"),
        (["--max-tokens", "-1"], "max_tokens is -1; it must be an integer, 1 or more"),
        (["--top-p", "0.9"], "top_p has no effect at temperature 0 (greedy): give a temperature too"),
        (["--temperature", "0", "--top-k", "5", "--seed", "1"], "top_k, seed has no effect at temperature 0"),
        (["--stop", ""], "stop is ['']"),
        (["--seed", "-1"], "seed is -1"),
    ],
)
def test_sampling_out_of_range(capsys, tiny_bundle, arguments, message):
    assert message in refused(capsys, "run", tiny_bundle, "hello", *arguments)


def test_prompts_that_cannot_be_answered(capsys, tiny_bundle, monkeypatch):
    for prompt in ("", " \n"):
        for raw in ([], ["--raw"]):
            assert "the prompt is empty; write some text" in refused(capsys, "run", tiny_bundle, prompt, *raw)
    for raw in ([], ["--raw"]):
        line = refused(capsys, "run", tiny_bundle, "zq " * 300, *raw)
        assert "the prompt has" in line and "the context holds 256" in line and "shorten it" in line
    for data, message in ((b"", "the prompt is empty"), (b"\xff\xfe", "stdin is not UTF-8 text (byte 0)")):
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(data)))
        assert message in refused(capsys, "run", tiny_bundle, "-")
    for raw in ([], ["--raw"]):
        assert "surrogate" in refused(capsys, "run", tiny_bundle, "a\udcff", *raw)


def test_a_damaged_bundle_is_refused_by_every_verb(capsys, tiny_bundle, tmp_path):
    folder = shutil.copytree(tiny_bundle, tmp_path / "b")
    data = bytearray((folder / "model.pte").read_bytes())
    data[1000] ^= 1
    (folder / "model.pte").write_bytes(data)
    for verb in (["run", folder, "hi"], ["chat", folder], ["inspect", folder], ["bench", folder]):
        assert "model.pte is damaged" in refused(capsys, *verb)


def test_a_message_is_one_line_whatever_the_path(capsys, tmp_path):
    assert "a b does not exist" in refused(capsys, "inspect", "a\nb")


def test_a_bug_is_a_traceback_and_an_interrupt_130(capsys, monkeypatch):
    def run(error):
        def fail(name):
            raise error

        monkeypatch.setattr(cli.importlib, "import_module", fail)
        return main(["inspect", "x"])

    with pytest.raises(ZeroDivisionError):
        run(ZeroDivisionError())
    assert run(KeyboardInterrupt()) == 130
    assert capsys.readouterr().err == "phi3mobile: interrupted\n"


def test_a_reader_that_goes_away_is_no_error(tiny_bundle):
    process = subprocess.Popen(command("inspect", tiny_bundle), stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    process.stdout.close()
    assert (process.wait(60), process.stderr.read()) == (0, b"")


# Verbs that work


def test_inspect_shows_bundle_and_checkpoint(capsys, tiny_bundle, tiny_checkpoint_folder):
    text, document = shown(capsys, "inspect", tiny_bundle)
    assert "bits per weight" in text and "2 layers x 64" in text
    assert document["bundle"] == str(tiny_bundle) and document["model"]["context"] == 256
    text, document = shown(capsys, "inspect", tiny_checkpoint_folder)
    assert "2 layers x 64, ffn 128, 4/2 heads x 16" in text
    assert document["parameters"] == tiny("tiny-gqa", vocab_size=VOCAB).parameters()


def test_import_writes_a_checkpoint_that_exports_the_same(capsys, tiny_checkpoint_folder, tmp_path):
    assert main(["import", str(tiny_checkpoint_folder), str(tmp_path / "out"), "--dtype", "float32"]) == 0
    assert "2 layers x 64" in capsys.readouterr().out
    assert (tmp_path / "out" / "tokenizer.json").is_file() and (tmp_path / "out" / "generation_config.json").is_file()
    _, ours = shown(capsys, "inspect", tmp_path / "out")
    _, theirs = shown(capsys, "inspect", tiny_checkpoint_folder)
    assert ours["parameters"] == theirs["parameters"]


def test_run_prints_the_answer_alone_or_one_json_object(capsys, tiny_bundle, monkeypatch):
    def asked(prompt, *flags):
        return shown(capsys, "run", tiny_bundle, prompt, "--max-tokens", 8, "--json", *flags)[1]

    document = asked("hello")
    numbers = document["statistics"]
    assert document["sources"] == [] and numbers["generated_tokens"] <= 8 and numbers["finish_reason"] in ("length", "stop")
    assert asked("hello")["text"] == document["text"]
    assert asked("hello", "--raw")["statistics"]["prompt_tokens"] < numbers["prompt_tokens"]
    assert asked("hello", "--system", "be brief")["statistics"]["prompt_tokens"] > numbers["prompt_tokens"]
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"hello\n")))
    assert asked("-")["text"] == document["text"]
    assert main(["run", str(tiny_bundle), "hello", "--max-tokens", "8"]) == 0
    plain = capsys.readouterr()
    assert plain.out == document["text"] + "\n"
    assert plain.err.startswith(f"[{numbers['generated_tokens']} tokens, ") and plain.err.count("\n") == 1


def endless(tiny_bundle, folder, **changes):
    """A bundle whose model never ends an answer."""
    bundle = shutil.copytree(tiny_bundle, folder)
    manifest = json.loads((bundle / "manifest.json").read_text())
    manifest["tokens"]["eos"] = []
    (bundle / "manifest.json").write_text(json.dumps(manifest | changes))
    return bundle


def test_a_checkpoints_own_sampling_is_the_default(capsys, tiny_bundle, tmp_path):
    drawn = {"do_sample": True, "temperature": 1.5, "top_p": 0.99, "repetition_penalty": 1.0}
    bundle = endless(tiny_bundle, tmp_path / "drawn", generation=drawn)
    texts = {shown(capsys, "run", bundle, "hello", "--json", "--max-tokens", 16)[1]["text"] for _ in range(4)}
    assert len(texts) > 1  # drawn
    seeded = [shown(capsys, "run", bundle, "hello", "--json", "--max-tokens", 16, "--seed", 3)[1]["text"] for _ in range(2)]
    assert seeded[0] == seeded[1]
    greedy = [shown(capsys, "run", bundle, "hello", "--json", "--max-tokens", 16, "--temperature", 0)[1] for _ in range(2)]
    assert greedy[0]["text"] == greedy[1]["text"]


def test_bench_measures(capsys, tiny_bundle):
    text, document = shown(capsys, "bench", tiny_bundle, "--rounds", 1)
    assert document["rounds"] == 1 and all(figures["tokens_per_s"] > 0 for figures in document["decode"].values())
    assert "decode at depth" in text
    assert "--rounds 0: give 1 or more" in refused(capsys, "bench", tiny_bundle, "--rounds", 0)


# Chat


def test_chat_from_a_pipe(tiny_bundle):
    lines = ["/stats", "hello", "/stats", "/undo", "/undo", "/dance now", "", "hello", "/reset", "hello", "zq " * 300, "/exit"]
    done = subprocess.run(
        command("chat", tiny_bundle, "--max-tokens", 6, "--system", "be kind"),
        input="\n".join([*lines, "never asked"]),
        capture_output=True,
        text=True,
        errors="replace",
        timeout=1800,
    )
    assert done.returncode == 0, done.stderr
    answers = [part.split("\n")[0] for part in done.stdout.split("> ")]
    assert answers[2] == answers[8] == answers[10]  # /undo and /reset forget what was said
    expected = (
        "/reset forgets",
        "  [no answer yet]",
        "  (cut: --max-tokens 0 lets it go on)",
        "  [6 tokens, ",
        "  (the last turn is gone, 1 messages are left)",
        "  (there is no turn to undo)",
        "  /dance is not a command; /reset",
        "  (cut: ",
        "  (the conversation is forgotten)",
        "  (cut: ",
        "phi3mobile: the system message and the last turn alone have",
    )
    errors = done.stderr.splitlines()
    assert len(errors) == len(expected), errors
    assert all(error.startswith(start) for error, start in zip(errors, expected, strict=True)), errors


def test_chat_goes_on_where_functions_were_called(tiny_bundle, tmp_path):
    """A conversation with tools' results, as Session.generate takes them and the Kotlin SDK saves them."""
    said = [
        {"role": "user", "content": "rain?"},
        {"role": "assistant", "content": '[{"name": "weather", "arguments": {}}]'},
        {"role": "tool", "name": "weather", "content": "rain"},
        {"role": "assistant", "content": "yes"},
    ]
    file = tmp_path / "talk.json"
    file.write_text(json.dumps({"format": "phi3mobile-conversation", "version": 1, "messages": said}))
    lines = [f"/load {file}", "and now?", f"/save {file}", "/exit"]
    given = "\n".join(lines)
    chat = command("chat", tiny_bundle, "--max-tokens", 6, "--resume", file)
    done = subprocess.run(chat, input=given, capture_output=True, text=True, errors="replace", timeout=1800)
    assert done.returncode == 0 and "phi3mobile:" not in done.stderr, done.stderr
    kept = json.loads(file.read_text())["messages"]
    assert kept[:4] == said and [message["role"] for message in kept[4:]] == ["user", "assistant"]


def test_chat_saves_and_loads(tiny_bundle, tmp_path):
    file = tmp_path / "talk.json"
    absent = tmp_path / "absent"
    lines = ["hello", "/save", f"/save {file}", "/reset", f"/load {absent}", f"/load {file}", "/undo", "hello", "/exit"]
    done = subprocess.run(
        command("chat", tiny_bundle, "--max-tokens", 6),
        input="\n".join(lines),
        capture_output=True,
        text=True,
        errors="replace",
        timeout=1800,
    )
    assert done.returncode == 0, done.stderr
    said = json.loads(file.read_text())["messages"]
    assert [message["role"] for message in said] == ["user", "assistant"]
    errors = [line for line in done.stderr.splitlines()[1:] if "(cut" not in line]
    assert errors[0] == "  /save needs a file name: /save chat.json"
    assert errors[1] == errors[4] == "  (2 messages)" and "can't read the conversation" in errors[3]


def test_chat_answers_as_a_schema_wants_and_from_a_library(tiny_bundle, tmp_path):
    (tmp_path / "schema.json").write_text('{"enum": ["yes", "no"]}')
    (tmp_path / "sea.txt").write_text("The sea beside the village is called Wadden.\n")
    assert main(["index", str(tmp_path / "sea.txt"), "-o", str(tmp_path / "l.db"), "--words-only"]) == 0
    flags = ["--json-schema", tmp_path / "schema.json", "--library", tmp_path / "l.db"]
    done = subprocess.run(
        command("chat", tiny_bundle, *flags), input="what is the sea called?\nquantum?\n", capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    first, second = done.stdout.split("> ")[1:3]
    assert first.strip() in ('"yes"', '"no"') and second.strip() == "Nothing in your files is about this."
    assert "[1] " in done.stderr and "sea.txt" in done.stderr


def test_chat_with_a_bundle_without_template_ends_at_once(capsys, tiny_bundle, tmp_path):
    chat = {"template": None, "bos": "", "eos": "", "segments": None}
    bundle = endless(tiny_bundle, tmp_path / "base", chat=chat)
    assert "has no chat template: it completes text only (phi3mobile run --raw)" in refused(capsys, "chat", bundle)


def test_a_pasted_text_is_one_message(tiny_bundle):
    with Terminal("chat", tiny_bundle, "--max-tokens", 1) as chat:
        chat.wait_for("> ")
        time.sleep(0.2)  # readline is there a moment after its prompt
        chat.type("\x1b[200~the cat\nsat on\nthe mat\x1b[201~")
        chat.wait_for("the mat")
        chat.type("\n")
        chat.wait_for("> ")
        chat.type("/undo\n")
        assert "0 messages are left" in chat.wait_for("are left)")  # three questions would leave four
        chat.wait_for("> ")
        chat.type("\x04")
        assert chat.exit_code() == 0


def test_chat_survives_what_is_not_text(tiny_bundle):
    done = subprocess.run(
        command("chat", tiny_bundle, "--max-tokens", 2), input=b"\xff\xfe\nhello\n", capture_output=True, timeout=1800
    )
    assert done.returncode == 0 and b"Traceback" not in done.stderr
    assert b"UTF-8" in done.stderr or b"Unicode" in done.stderr


class Terminal:
    """A program on a terminal of its own."""

    def __init__(self, *arguments):
        self.pid, self.end = pty.fork()
        if self.pid == 0:
            signal.signal(signal.SIGINT, signal.SIG_DFL)  # pytest-xdist's workers ignore it, and that is inherited
            os.execv(sys.executable, command(*arguments))
        self.shown = ""

    def __enter__(self):
        return self

    def __exit__(self, kind, *_):
        if kind is not None:  # a failed test leaves no program behind
            os.kill(self.pid, signal.SIGKILL)
            os.waitpid(self.pid, 0)

    def wait_for(self, *texts, seconds=600):
        """Read on until one of `texts` is shown; returns what came up to its end."""
        deadline = time.monotonic() + seconds
        while not (ends := [self.shown.index(text) + len(text) for text in texts if text in self.shown]):
            ready = select.select([self.end], [], [], max(0, deadline - time.monotonic()))[0]
            assert ready, f"{texts} did not come: {self.shown!r}"
            self.shown += os.read(self.end, 4096).decode(errors="replace")
        before, self.shown = self.shown[: min(ends)], self.shown[min(ends) :]
        return before

    def interrupt_until(self, text):
        """Ctrl-C until `text` is shown: readline shows its prompt a moment before it listens."""
        for _ in range(30):
            os.kill(self.pid, signal.SIGINT)
            with contextlib.suppress(AssertionError):
                return self.wait_for(text, seconds=2)
        raise AssertionError(f"{text} did not come: {self.shown!r}")

    def wait_for_more(self):
        """Until there is something that nobody waited for; readline's switches of bracketed paste are not."""
        while not self.shown.replace("\x1b[?2004h", "").replace("\x1b[?2004l", "").strip():
            self.shown += os.read(self.end, 4096).decode(errors="replace")

    def type(self, text):
        os.write(self.end, text.encode())

    def exit_code(self):
        while True:  # a terminal must be read, or the program waits
            try:
                if not os.read(self.end, 4096):
                    break
            except OSError:
                break
        os.close(self.end)
        return os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])


def test_ctrl_c_stops_the_answer_and_not_the_program(tiny_bundle, tmp_path):
    bundle = endless(tiny_bundle, tmp_path / "endless")
    with Terminal("chat", bundle, "--allow-repetition", "--max-tokens", 0) as chat:
        chat.wait_for("/exit ends")
        for _ in range(30):  # a tiny model has filled its context after a moment: the signal may come to the prompt
            chat.wait_for("> ")
            chat.type("go on\n")
            chat.wait_for("go on\r\n")
            chat.wait_for_more()
            os.kill(chat.pid, signal.SIGINT)
            if "(stopped)" in chat.wait_for("(stopped)", "(Ctrl-D or /exit ends)"):
                break
            chat.wait_for("> ")
            chat.type("/reset\n")
        chat.wait_for("> ")
        chat.type("/stats\n")
        chat.wait_for("; stopped]")
        chat.interrupt_until("(Ctrl-D or /exit ends)")
        chat.wait_for("> ")
        chat.type("/dance\n")  # the program goes on
        chat.wait_for("/dance is not a command")
        chat.wait_for("> ")
        chat.type("\x04")
        assert chat.exit_code() == 0
