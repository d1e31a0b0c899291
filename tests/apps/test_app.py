"""The assistant without a window: conversations on disk, the worker, what a person does, what goes wrong."""

import itertools
import json
import os
import signal
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest
from fake_app import FakeLibrary, FakePassage, answered, counted, open_script, parts_saying, quoted, until
from hypothesis import given
from hypothesis import strategies as st

from phi3mobile.assistant import problems
from phi3mobile.assistant.bundles import DAMAGED, FITS, TIGHT, TOO_LARGE, UNKNOWN, choices
from phi3mobile.assistant.meters import Frames, Metered, Speed, memory_free, memory_used
from phi3mobile.assistant.settings import Settings
from phi3mobile.assistant.state import State, conversation
from phi3mobile.assistant.store import Message, Store, set_aside
from phi3mobile.assistant.worker import Worker, _open_library
from phi3mobile.errors import InputError

PASSAGE = FakePassage("The rent is due on Monday.", "Lease", "lease.pdf", "page 4", 0.8)


@pytest.fixture
def make_state(tmp_path):
    """State over a model that says `texts`, with the model open; closed at the end."""
    made = []

    def make(*texts: str, library=None, load=True, open_bundle=None, **engine) -> State:
        parts = parts_saying(*texts, **engine)
        worker = Worker(open_bundle or (lambda path: parts), (lambda path: library) if library else None, quoted, open_script)
        state = State(Store(tmp_path / "chats.db"), worker)
        state.parts = parts
        made.append(state)
        if load:
            state.open_bundle("model")
            until(state, lambda: state.model is not None)
        return state

    yield make
    for state in made:
        state.close()


def contents(state: State) -> list[str]:
    return [message.content for message in state.messages]


# the store


def test_what_was_said_is_there_again(tmp_path):
    store = Store(tmp_path / "folder" / "chats.db")
    chat = store.new_chat("Title")
    question, answer = store.add(chat, "user", "Hi 😀\0!"), store.add(chat, "assistant", "", "streaming")
    whole = Message(answer.id, "assistant", "Hello", "done", ({"text": "t", "score": 0.5},), {"ttft_s": 0.1})
    store.write(whole)
    store.close()
    again = Store(tmp_path / "folder" / "chats.db")
    assert again.messages(chat) == [question, whole]
    assert [entry.title for entry in again.chats()] == ["Title"]


def test_chats_are_listed_newest_first_and_deleted_with_their_messages(tmp_path):
    store = Store(tmp_path / "chats.db")
    first, second = store.new_chat("first"), store.new_chat("second")
    store.add(first, "user", "later")
    assert [chat.id for chat in store.chats()] == [first, second]
    store.delete(first)
    assert [chat.id for chat in store.chats()] == [second] and store.messages(first) == []


def test_what_is_replaced_leaves_the_conversation_but_not_the_file(tmp_path):
    store = Store(tmp_path / "chats.db")
    chat = store.new_chat()
    kept, gone = store.add(chat, "user", "kept"), store.add(chat, "user", "gone")
    store.replace_from(chat, gone.id)
    assert store.messages(chat) == [kept]
    with sqlite3.connect(tmp_path / "chats.db") as db:
        assert db.execute("SELECT content FROM message WHERE replaced=1").fetchall() == [("gone",)]


def test_an_answer_that_was_being_written_is_interrupted_at_the_next_start(tmp_path):
    store = Store(tmp_path / "chats.db")
    chat = store.new_chat()
    store.add(chat, "assistant", "half", "streaming")
    store.close()
    assert [message.state for message in Store(tmp_path / "chats.db").messages(chat)] == ["interrupted"]


@pytest.mark.parametrize("damage", [b"not a database at all" * 50, b"SQLite format 3\0" + b"\xff" * 500])
def test_a_damaged_store_is_an_input_error_and_can_be_set_aside(tmp_path, damage):
    path = tmp_path / "chats.db"
    path.write_bytes(damage)
    with pytest.raises(InputError, match=r"chats\.db can't be read"):
        Store(path)
    aside = set_aside(path)
    assert aside.read_bytes() == damage and Store(path).chats() == []


def test_a_store_of_a_newer_version_is_refused(tmp_path):
    with sqlite3.connect(tmp_path / "chats.db") as db:
        db.execute("PRAGMA user_version=99")
    with pytest.raises(InputError, match="newer version"):
        Store(tmp_path / "chats.db")


# settings


@pytest.mark.parametrize(
    "wrong",
    [{"temperature": -1}, {"top_p": 0}, {"max_tokens": 0}, {"theme": "pink"}, {"text_scale": 7.0}, {"system_prompt": None}],
)
def test_settings_out_of_range(wrong):
    with pytest.raises(InputError):
        Settings(**wrong)
    assert Settings.from_dict({**Settings(temperature=0.1).to_dict(), **wrong}).temperature == pytest.approx(
        Settings().temperature if "temperature" in wrong else 0.1
    )


@given(st.recursive(st.none() | st.integers() | st.text() | st.booleans(), lambda inner: st.dictionaries(st.text(), inner)))
def test_settings_from_anything(values):
    assert isinstance(Settings.from_dict(values), Settings)


def test_settings_come_back(make_state, tmp_path):
    make_state("x").change(theme="dark", temperature=0.0)
    assert Settings.from_dict(Store(tmp_path / "chats.db").setting("settings")) == Settings(
        theme="dark", temperature=0.0, own_sampling=True, bundle="model"
    )


# talking


def test_an_answer_streams_and_is_kept(make_state, tmp_path):
    state = make_state("Hello — 😀!")
    assert state.send("  Hi there  ")
    assert (state.messages[0].content, state.messages[1].state) == ("Hi there", "streaming")
    old = until(state, lambda: not state.answering)
    assert {"messages", "answer", "status"} <= old
    assert contents(state) == ["Hi there", "Hello — 😀!"] and state.messages[1].state == "done"
    assert state.messages[1].numbers["generated_tokens"] == len("Hello — 😀!".encode())
    assert [chat.title for chat in state.chats] == ["Hi there"]
    assert Store(tmp_path / "chats.db").messages(state.chat) == state.messages


def test_the_model_is_given_the_conversation_and_the_system_prompt(make_state):
    state = make_state("one", "two")
    state.change(system_prompt="Be brief.")
    for question in ("first", "second"):
        state.send(question)
        answered(state)
    assert state.parts.chat.asked[-1] == [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "first"},
        {"role": "assistant", "content": "one"},
        {"role": "user", "content": "second"},
    ]


def test_stop_keeps_what_was_said(make_state):
    state = make_state(counted(400), pause_s=0.001)
    state.send("Go")
    until(state, lambda: len(state.messages[-1].content) > 20)
    state.stop()
    answered(state)
    assert state.messages[-1].state == "stopped" and 20 < len(state.messages[-1].content) < 2000
    assert state.messages[-1].numbers["finish_reason"] == "cancelled"


def test_stop_before_the_first_token_is_not_forgotten(make_state):
    state = make_state(counted(400), prefill_s=0.2)
    state.send("Go")
    state.stop()
    answered(state)
    assert state.messages[-1].state == "stopped" and len(state.messages[-1].content) <= 1


def test_regenerate_replaces_the_last_answer(make_state):
    state = make_state("one", "two")
    state.send("Q")
    answered(state)
    assert state.regenerate()
    answered(state)
    assert contents(state) == ["Q", "two"] == [m.content for m in state.store.messages(state.chat)]


def test_edit_and_resend_replaces_what_followed(make_state):
    state = make_state("one", "two", "three")
    for question in ("a", "b"):
        state.send(question)
        answered(state)
    assert not state.resend(999, "x") and not state.resend(state.messages[0].id, "  ")
    assert state.resend(state.messages[0].id, "c")
    answered(state)
    assert contents(state) == ["c", "three"] == [m.content for m in state.store.messages(state.chat)]


def test_nothing_is_sent_twice_empty_or_without_a_model(make_state):
    state = make_state("x" * 200, load=False)
    assert not state.send("Hi") and state.problem == problems.no_bundle() and state.messages == []
    state.open_bundle("model")
    until(state, lambda: state.model is not None)
    assert not state.send("   ")
    state.send("Hi")
    assert not state.send("again") and not state.regenerate()
    answered(state)


def test_another_chat_while_an_answer_runs(make_state):
    state = make_state(counted(60), pause_s=0.001)
    state.send("first")
    first = state.chat
    until(state, lambda: state.messages[-1].content)
    state.new_chat()
    assert state.messages == []
    state.open_chat(first)
    assert state.messages[-1].state == "streaming" and state.messages[-1].content
    state.new_chat()
    answered(state)
    assert state.messages == []
    state.open_chat(first)
    assert contents(state) == ["first", counted(60)]


def test_deleting_the_chat_that_is_being_answered(make_state):
    state = make_state(counted(100), pause_s=0.001)
    state.send("first")
    until(state, lambda: state.messages[-1].content)
    state.delete_chat(state.chat)
    answered(state)
    assert state.chats == [] and state.messages == [] and state.send("next")
    answered(state)


def test_text_that_no_file_can_hold_is_sent_all_the_same(make_state):
    state = make_state("ok")
    assert state.send("broken \ud83d surrogate")
    answered(state)
    assert contents(state) == ["broken ? surrogate", "ok"]


@given(st.lists(st.tuples(st.sampled_from(["user", "assistant"]), st.sampled_from(["", " ", "a", "b"])), max_size=8))
def test_roles_alternate_for_the_model(said):
    history = conversation([Message(i, role, content) for i, (role, content) in enumerate(said)], "S")
    roles = [message["role"] for message in history]
    assert roles[0] == "system" and all(a != b for a, b in itertools.pairwise(roles))
    assert all(message["content"].strip() for message in history)


def test_turns_that_can_not_fit_are_left_out():
    said = [Message(i, ("user", "assistant")[i % 2], f"{i:04}" * 5) for i in range(101)]
    history = conversation(said, "S", most=100)
    assert [message["content"][:4] for message in history] == ["S", "0096", "0097", "0098", "0099", "0100"]
    assert len(conversation(said, "S")) == 102
    assert conversation([Message(0, "user", "x" * 500)], most=100) == [{"role": "user", "content": "x" * 500}]


# documents


def test_sources_are_given_shown_and_kept(make_state, tmp_path):
    library = FakeLibrary([PASSAGE])
    state = make_state("On Monday [1].", library=library)
    state.open_library("lease.db")
    until(state, lambda: state.library is not None)
    state.send("When is the rent due?")
    answered(state)
    assert library.questions == ["When is the rent due?"]
    assert state.parts.chat.asked[-1][-1]["content"].startswith("[1] The rent is due on Monday.")
    stored = Store(tmp_path / "chats.db").messages(state.chat)
    assert stored[0].content == "When is the rent due?"  # not what the model was given
    assert stored[1].sources[0] == {
        "text": PASSAGE.text,
        "title": "Lease",
        "source": "lease.pdf",
        "location": "page 4",
        "score": 0.8,
    }


def test_nothing_found_is_said(make_state):
    """By the app itself: the model, asked all the same, would invent."""
    state = make_state("Love is a river.", library=FakeLibrary([]))
    state.open_library("lease.db")
    state.send("What is love?")
    answered(state)
    assert state.messages[-1].content == "Nothing in your files is about this." and state.messages[-1].sources == ()


def test_a_search_that_fails_does_not_stop_the_answer(make_state):
    class Broken:
        def search(self, question: str, k: int = 5):
            raise InputError("the library is damaged; index again")

    state = make_state("Fine.", library=Broken())
    state.open_library("lease.db")
    state.send("Rent?")
    answered(state)
    assert contents(state) == ["Rent?", "Fine."] and state.problem == problems.search_failed(
        "the library is damaged; index again"
    )
    assert state.solve() == "no_library"
    until(state, lambda: state.library is None and state.settings.library == "")


def test_a_library_that_does_not_open(make_state):
    state = make_state("x")
    state.worker._open_library = _open_library
    state.open_library("/nowhere/library.db")
    until(state, lambda: state.problem is not None)
    assert state.problem.sentence == "Your document library can't be opened." and state.library is None


def test_documents_are_added_searched_and_cited(make_state, tmp_path, monkeypatch):
    """The real index, by words; a document that can't be read is a sentence, and the others are there."""
    from phi3mobile.retrieval import grounded_messages

    monkeypatch.setattr("phi3mobile.assistant.worker._embedder_files", lambda progress: None)
    state = make_state("On Monday [1].")
    state.worker._ground = grounded_messages
    first, second = tmp_path / "one", tmp_path / "two"
    for folder, text in ((first, "The rent is due on Monday."), (second, "The caretaker has a green hat.")):
        folder.mkdir()
        (folder / f"{folder.name}.md").write_text(f"# {folder.name}\n\n{text}\n")
    (second / "broken.pdf").write_bytes(b"%PDF-1.7 no")
    library = tmp_path / "My documents.db"
    state.add_documents(first, library)
    until(state, lambda: state.library == library)
    state.add_documents(second, library)
    until(state, lambda: state.problem is not None and state.store.setting("documents") == [str(first), str(second)])
    assert state.problem.sentence == "A document can't be added." and "broken.pdf" in state.problem.detail
    for question, title in (("When is the rent due?", "one"), ("Which hat has the caretaker?", "two")):
        state.send(question)
        answered(state)
        assert state.messages[-1].sources[0]["title"] == title
        assert "> The" in state.parts.chat.asked[-1][-1]["content"]
    state.add_documents(tmp_path / "chats.db", library)
    until(state, lambda: state.problem is not None)
    assert "documents of this kind can't be read" in state.problem.detail and state.library == library


def test_a_damaged_library_is_a_sentence_and_a_button(make_state, tmp_path):
    from phi3mobile.retrieval import open_library

    state = make_state("x")
    state.worker._open_library = open_library
    (tmp_path / "broken.db").write_bytes(b"SQLite format 3\0" + b"\xff" * 4000)
    state.open_library(tmp_path / "broken.db")
    until(state, lambda: state.problem is not None)
    assert state.problem.sentence == "Your document library can't be opened." and state.problem.button == "Go on without it"


# what goes wrong


@pytest.mark.parametrize(
    ("error", "sentence", "action"),
    [
        (
            InputError("/m/model.pte is damaged: its SHA-256 is not the manifest's; copy"),
            "damaged or incomplete",
            "pick_bundle",
        ),
        (InputError("/m lacks the file model.pte; copy the whole bundle again"), "damaged or incomplete", "pick_bundle"),
        (InputError("this bundle needs 3.9 GB of memory, 1.2 GB are free; close"), "not enough memory", "pick_bundle"),
        (InputError("the bundle was made for ExecuTorch 1.2"), "can't be opened", "pick_bundle"),
        (MemoryError(), "not enough memory", "pick_bundle"),
        (RuntimeError("0x12"), "went wrong inside", "copy"),
    ],
)
def test_a_bundle_that_does_not_open(make_state, error, sentence, action):
    def open_bundle(path):
        raise error

    state = make_state("x", open_bundle=open_bundle, load=False)
    state.open_bundle("m")
    until(state, lambda: state.problem is not None)
    assert sentence in state.problem.sentence and state.problem.action == action
    assert "Traceback" not in state.problem.detail and state.loading is None and state.model is None
    assert state.solve() == action and state.problem is None


def test_real_damage_in_a_real_bundle(make_state, tmp_path, tiny_bundle):
    from phi3mobile.bundle import open_bundle

    broken = tmp_path / "broken"
    broken.mkdir()
    (broken / "manifest.json").write_text((tiny_bundle / "manifest.json").read_text())
    state = make_state("x", open_bundle=open_bundle, load=False)
    state.open_bundle(broken)
    until(state, lambda: state.problem is not None)
    assert "damaged or incomplete" in state.problem.sentence and "lacks the file" in state.problem.detail


def test_a_conversation_that_does_not_fit(make_state):
    state = make_state("x", context=64)
    state.send("word " * 40)
    answered(state)
    assert state.problem.action == "new_chat" and state.messages[-1].state == "failed"
    state.solve()
    assert state.messages == [] and state.send("short")
    answered(state)


def test_an_engine_that_fails_in_the_middle(make_state):
    state = make_state(counted(50))
    forward = state.worker.engine.engine.forward

    def fail(tokens, position, long=False):
        if position > 30:
            raise RuntimeError("method forward failed: 0x20")
        return forward(tokens, position, long)

    state.worker.engine.engine.forward = fail
    state.send("Go")
    answered(state)
    assert state.messages[-1].state == "failed" and state.messages[-1].content.startswith("0000 ")
    assert state.problem.action == "copy" and "0x20" in state.problem.detail


# kill -9

_VICTIM = """
import sys, time
sys.path.insert(0, {tests!r})
from fake_app import counted, open_script, parts_saying
from phi3mobile.assistant.state import State
from phi3mobile.assistant.store import Store
from phi3mobile.assistant.worker import Worker
state = State(Store({path!r}), Worker(lambda path: parts_saying(counted(6000), pause_s=0.001), open_engine=open_script))
state.open_bundle("m")
while state.model is None:
    state.poll()
state.send("What must not be lost?")
while state.answering:
    state.poll()
    print(len(state.messages[-1].content), flush=True)
    time.sleep(0.01)
"""


@pytest.mark.parametrize("after", [0, 150])
def test_a_killed_process_loses_no_message(tmp_path, after):
    """Killed (SIGKILL) right after the question, and with `after` characters shown."""
    path = tmp_path / "chats.db"
    script = _VICTIM.format(tests=str(Path(__file__).parents[1]), path=str(path))
    victim = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True)
    shown = 0
    for line in victim.stdout:
        shown = int(line)
        if shown >= after:
            break
    os.kill(victim.pid, signal.SIGKILL)
    assert victim.wait() == -signal.SIGKILL, "the answer ended before"
    store = Store(path)
    question, answer = store.messages(store.chats()[0].id)
    assert (question.content, question.state) == ("What must not be lost?", "done")
    assert answer.state == "interrupted" and counted(6000).startswith(answer.content)
    assert len(answer.content) >= shown - 400  # written every quarter of a second, at about 900 characters a second


# the picker, the meters


def bundle_at(folder: Path, name: str, gb: float, native: bool = True) -> None:
    folder.mkdir(parents=True)
    memory = {"weights": 2e9, "kv_per_token": 1000, "activations": gb * 1e9, "peak": {}}
    manifest = {"name": name, "memory": memory, "model": {"context": 1000}, "weights_mapped": native}
    manifest |= {"recipe": {"name": "host"}, "files": {"m": {"bytes": 7}}}
    (folder / "manifest.json").write_text(json.dumps(manifest))


def test_the_picker_knows_what_fits(tmp_path):
    for name, gb, native in (("fits", 1, True), ("tight", 9, True), ("large", 20, True), ("heap", 8.5, False)):
        bundle_at(tmp_path / name, name, gb, native)
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "manifest.json").write_text('{"memory": 3}')
    (tmp_path / "nothing").mkdir()
    listed = choices([tmp_path, tmp_path / "fits", tmp_path / "missing"], free=int(10e9))
    assert [(c.name, c.verdict) for c in listed] == [
        ("fits", FITS),
        ("tight", TIGHT),
        ("heap", TOO_LARGE),
        ("large", TOO_LARGE),
        ("broken", DAMAGED),
    ]
    assert "10.00 GB are free" in listed[-2].sentence
    assert listed[0].needs == 1_001_000_000 and listed[2].needs == 10_501_000_000


def test_bundles_of_one_name_are_told_apart_and_say_all_they_need(tmp_path):
    for folder in ("a", "b"):
        bundle_at(tmp_path / folder, "smollm2", 0.08, True)
    bundle_at(tmp_path / "c", "smollm2", 0.08, True)
    manifest = json.loads((tmp_path / "c" / "manifest.json").read_text())
    (tmp_path / "c" / "manifest.json").write_text(json.dumps(manifest | {"recipe": {"name": "android-cpu"}}))
    listed = choices([tmp_path], free=int(10e9))
    assert [c.name for c in listed] == ["smollm2, android-cpu", "smollm2, host, a", "smollm2, host, b"]
    assert "0.08 GB of memory and 2.00 GB of its file at 1000 tokens" in listed[0].sentence


def test_the_picker_reads_bundles_of_format_1(tmp_path):
    """Which said whether weights are mapped by an option of their recipe."""
    for name, attention in (("mapped", "native"), ("heap", "stock")):
        bundle_at(tmp_path / name, name, 8.5)
        path = tmp_path / name / "manifest.json"
        manifest = json.loads(path.read_text()) | {"format": 1, "recipe": {"name": "r", "attention": attention}}
        del manifest["weights_mapped"]
        path.write_text(json.dumps(manifest | {"runtime": {"kind": "executorch", "program": "model.pte"}}))
    assert [(c.name, c.verdict) for c in choices([tmp_path], int(10e9))] == [("mapped", TIGHT), ("heap", TOO_LARGE)]


def test_the_picker_without_a_known_memory(tmp_path, monkeypatch):
    bundle_at(tmp_path / "b", "b", 1)
    monkeypatch.setattr("phi3mobile.assistant.bundles.memory_free", lambda: None)
    assert [choice.verdict for choice in choices([tmp_path])] == [UNKNOWN]


def test_the_picker_lists_a_real_bundle(tiny_bundle):
    (choice,) = choices([tiny_bundle])
    assert choice.verdict == FITS and choice.path == tiny_bundle.resolve() and choice.needs > 0


def test_speed_is_the_mean_of_the_last_second():
    speed = Speed()
    rates = [speed.push(i / 10, i * 5) for i in range(21)]
    assert rates[0] == 0 and rates[-1] == pytest.approx(50) and len(speed.history) == 20
    speed.start()
    assert speed.push(9, 3) == 0


def test_frames_and_memory():
    frames = Frames()
    for now in (0.0, 0.016, 0.032, 0.132):
        frames.tick(now)
        frames.drawn(now + 0.002)
    frames.pause()
    frames.drawn(9.0)
    frames.tick(10.0)
    assert frames.summary() == pytest.approx(
        {"frames": 3, "p50_ms": 16, "p95_ms": 91.6, "p99_ms": 98.32, "work_p50_ms": 2, "work_p95_ms": 2, "work_p99_ms": 2}
    )
    assert Frames().summary() == {}
    assert memory_used() > 1e6 and memory_free() > 1e6


def test_the_live_numbers(make_state):
    state = make_state(counted(100), pause_s=0.002)
    assert state.live()["tokens_per_s"] == 0
    state.send("Go")
    until(state, lambda: len(state.speed.history) > 2)
    live = state.live()
    assert live["tokens_per_s"] > 20 and 0 < live["used"] < live["context"] == 4096 and live["ttft_s"] > 0
    answered(state)
    assert state.live()["tokens_per_s"] == state.numbers["decode_tokens_per_s"]
    assert isinstance(state.worker.engine, Metered)


def test_closing_ends_a_running_answer_well(make_state, tmp_path):
    state = make_state(counted(400), pause_s=0.001)
    state.send("Go")
    until(state, lambda: state.messages[-1].content)
    chat, engine = state.chat, state.parts.engine
    state.close()
    assert engine.closed
    assert [m.state for m in Store(tmp_path / "chats.db").messages(chat)] == ["done", "stopped"]
    state.close = lambda: None


# the verb


@pytest.mark.parametrize("size", ["", "big", "390", "390x", "10x10", "-5x900"])
def test_a_wrong_size_is_one_line(size, capsys):
    from phi3mobile.cli import main

    assert main(["app", f"--size={size}"]) == 2
    assert "WIDTHxHEIGHT" in capsys.readouterr().err


def test_a_missing_library_is_one_line(capsys, tmp_path):
    pytest.importorskip("kivy", reason="pip install 'phi3mobile[app]'")
    from phi3mobile.cli import main

    assert main(["app", "x", "--library", str(tmp_path / "no.db")]) == 2
    assert "phi3mobile index" in capsys.readouterr().err


def test_the_logic_needs_no_window():
    code = (
        "import sys, phi3mobile.assistant.state, phi3mobile.assistant.bundles, phi3mobile.assistant.text.runs\n"
        "assert not [name for name in ('kivy', 'torch', 'rich', 'jinja2', 'psutil') if name in sys.modules], sys.modules.keys()"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
