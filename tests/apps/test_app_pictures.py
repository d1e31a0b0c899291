"""Pictures in the assistant, without a window: kept beside the store, sent with questions, looked at by the model."""

import io
import os
import re
import sqlite3
import time
from pathlib import Path

import numpy as np
import pytest
from fake_app import FakeLibrary, FakePassage, FakeTower, answered, open_fake_tower, open_script, parts_saying, quoted, until

from phi3mobile.assistant import problems
from phi3mobile.assistant.events import Notice
from phi3mobile.assistant.history import conversation, title_of
from phi3mobile.assistant.pictures import THUMBNAIL, Album, Picture, copied, png
from phi3mobile.assistant.state import State
from phi3mobile.assistant.store import Message, Store, set_aside
from phi3mobile.assistant.worker import Worker
from phi3mobile.errors import InputError
from phi3mobile.pictures import open_picture

pytest.importorskip("PIL", reason="pip install pillow")
RED, GREEN = (200, 30, 30), (30, 160, 60)
SECONDS = 20.0  # decoding and looking take some


def painted(color: tuple[int, int, int], width: int = 400, height: int = 300) -> bytes:
    return png(np.full((height, width, 3), color, np.uint8))


@pytest.fixture
def photo(tmp_path) -> Path:
    path = tmp_path / "photo.png"
    path.write_bytes(painted(RED))
    return path


@pytest.fixture
def make_state(tmp_path):
    """State over a model that sees, says `texts`, and is open; closed at the end."""
    made = []

    def make(*texts: str, tower: FakeTower | None = None, library=None, blind: bool = False) -> State:
        parts = parts_saying(*texts, tower=None if blind else tower or FakeTower())
        worker = Worker(lambda path: parts, lambda path: library, quoted, open_script, open_fake_tower)
        state = State(Store(tmp_path / "chats.db"), worker)
        state.parts = parts
        made.append(state)
        state.open_bundle("model")
        until(state, lambda: state.model is not None, SECONDS)
        return state

    yield make
    for state in made:
        state.close()


def attached(state: State, source: Path | bytes) -> None:
    state.attach(source)
    assert "pictures" in until(state, lambda: not state.draft.opening, SECONDS)


# the album


def test_a_picture_is_copied_under_its_hash_with_a_thumbnail(tmp_path, photo):
    album = Album(tmp_path / "pictures")
    picture = album.add(photo)
    assert re.fullmatch("[0-9a-f]{64}", picture.name) and (picture.width, picture.height) == (400, 300)
    assert picture.file.read_bytes() == photo.read_bytes() and picture == album.add(photo.read_bytes())
    small = open_picture(picture.thumbnail)
    assert small.shape == (240, THUMBNAIL, 3) and tuple(small[100, 100]) == RED
    assert sorted(path.name for path in album.folder.iterdir()) == [picture.name, f"{picture.name}.png"]


def test_small_and_narrow_pictures_have_thumbnails_too(tmp_path):
    album = Album(tmp_path)
    assert open_picture(album.add(painted(RED, 20, 10)).thumbnail).shape == (10, 20, 3)
    assert open_picture(album.add(painted(RED, 5000, 3)).thumbnail).shape == (1, THUMBNAIL, 3)


def test_a_thumbnail_is_upright(tmp_path):
    from PIL import Image

    left_red = np.full((40, 80, 3), GREEN, np.uint8)
    left_red[:, :40] = RED
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned clockwise: left becomes the top
    Image.fromarray(left_red).save(tmp_path / "turned.png", exif=exif)
    picture = Album(tmp_path / "pictures").add(tmp_path / "turned.png")
    small = open_picture(picture.thumbnail)
    assert (picture.width, picture.height) == (40, 80) and tuple(small[5, 5]) == RED and tuple(small[70, 5]) == GREEN


@pytest.mark.parametrize("source", [b"", b"no picture", Path("/nowhere/x.jpg"), Path("/")])
def test_what_is_no_picture_is_one_line(tmp_path, source):
    with pytest.raises(InputError) as caught:
        Album(tmp_path / "pictures").add(source)
    assert "\n" not in str(caught.value) and not (tmp_path / "pictures").exists()


def test_an_album_that_can_not_be_written(tmp_path, photo):
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(InputError, match="can't be kept"):
        Album(tmp_path / "file" / "pictures").add(photo)


def test_what_was_never_sent_goes_after_a_day(tmp_path, photo):
    album = Album(tmp_path)
    used, fresh, old = (album.add(painted(color)) for color in (RED, GREEN, (0, 0, 0)))
    day_ago = time.time() - 90_000
    for picture in (used, old):
        os.utime(picture.file, (day_ago, day_ago))
    album.tidy({used.name})
    assert used.file.exists() and fresh.file.exists() and not old.file.exists() and not old.thumbnail.exists()
    Album(tmp_path / "missing").tidy(set())


def test_the_clipboard_gives_a_picture_a_file_or_text(photo):
    class Clipboard:
        def __init__(self, text: str, data: bytes = b"") -> None:
            self.text, self.data = text, data

        def get_types(self) -> list[str]:
            return ["text/plain", "image/png"] if self.data else ["text/plain"]

        def get(self, kind: str) -> bytes:
            return self.data

        def paste(self) -> str:
            return self.text

    assert copied(Clipboard("x", b"data")) == b"data"
    assert copied(Clipboard(str(photo))) == copied(Clipboard(f" {photo.as_uri()}\n")) == photo
    spaced = photo.rename(photo.with_name("my photo.png"))
    assert copied(Clipboard(spaced.as_uri())) == copied(Clipboard(f"'{spaced}'")) == spaced
    for text in ("", "Hello", "photo.png", "/nowhere/photo.png", f"{spaced}\nand more", "\0.png", "~nobody-at-all/x.png"):
        assert copied(Clipboard(text)) is None


# the store

_VERSION_1 = """
CREATE TABLE chat (id INTEGER PRIMARY KEY, title TEXT NOT NULL, updated REAL NOT NULL);
CREATE TABLE message (
    id INTEGER PRIMARY KEY, chat INTEGER NOT NULL REFERENCES chat(id) ON DELETE CASCADE, role TEXT NOT NULL,
    content TEXT NOT NULL, state TEXT NOT NULL, sources TEXT NOT NULL, numbers TEXT NOT NULL,
    replaced INTEGER NOT NULL DEFAULT 0
);
CREATE INDEX message_chat ON message(chat, replaced, id);
CREATE TABLE setting (name TEXT PRIMARY KEY, value TEXT NOT NULL);
INSERT INTO chat VALUES (7, 'Old', 1.0);
INSERT INTO message VALUES (3, 7, 'user', 'Hi', 'done', '[]', 'null', 0);
INSERT INTO message VALUES (4, 7, 'assistant', 'Hello', 'done', '[{"title": "T"}]', '{"ttft_s": 0.5}', 0);
INSERT INTO setting VALUES ('settings', '{"theme": "dark"}');
PRAGMA user_version=1;
"""


def test_a_store_of_version_1_is_read_and_takes_pictures(tmp_path, photo):
    with sqlite3.connect(tmp_path / "chats.db") as db:
        db.executescript(_VERSION_1)
    db.close()
    store = Store(tmp_path / "chats.db")
    old = [Message(3, "user", "Hi"), Message(4, "assistant", "Hello", "done", ({"title": "T"},), {"ttft_s": 0.5})]
    assert store.messages(7) == old and store.setting("settings") == {"theme": "dark"}
    new = store.add(7, "user", "And this?", pictures=(store.album.add(photo),))
    store.close()
    again = Store(tmp_path / "chats.db")
    assert again.messages(7) == [*old, new] and new.pictures[0].file.is_file()
    assert again._db.execute("PRAGMA user_version").fetchone() == (2,)
    again.close()


def test_a_picture_goes_with_the_last_chat_that_has_it(tmp_path):
    store = Store(tmp_path / "chats.db")
    first, second = store.new_chat(), store.new_chat()
    both, alone, drafted = (store.album.add(painted(color)) for color in (RED, GREEN, (0, 0, 0)))
    replaced = store.add(first, "user", "", pictures=(both, alone, drafted))
    store.replace_from(first, replaced.id)
    store.add(second, "user", "", pictures=(both,))
    assert alone.file.exists()  # the row is still there
    store.delete(first, keep={drafted.name})
    assert both.file.exists() and not alone.file.exists() and not alone.thumbnail.exists() and drafted.file.exists()
    store.delete(second)
    assert not both.file.exists()


def test_pictures_are_set_aside_with_their_store(tmp_path, photo):
    store = Store(tmp_path / "chats.db")
    picture = store.album.add(photo)
    store.close()
    aside = set_aside(tmp_path / "chats.db")
    assert not picture.file.exists() and (aside.with_name(f"{aside.name}.pictures") / picture.name).exists()


def test_a_store_in_memory_keeps_pictures_while_it_is_open(photo):
    store = Store(":memory:")
    picture = store.album.add(photo)
    assert picture.file.is_file() and not Path(":memory:.pictures").exists()
    store.close()
    assert not picture.file.exists()


# what the model is given

FIRST, SECOND = (Picture(Path("/album") / name, 4, 3) for name in ("a", "b"))


def images(*pictures: Picture) -> list[dict[str, str]]:
    return [{"type": "image", "image": str(picture.file)} for picture in pictures]


def test_questions_with_pictures_are_lists():
    said = [Message(0, "user", "What?", pictures=(FIRST,)), Message(1, "assistant", "A."), Message(2, "user", "Why?")]
    assert conversation(said) == [
        {"role": "user", "content": [*images(FIRST), {"type": "text", "text": "What?"}]},
        {"role": "assistant", "content": "A."},
        {"role": "user", "content": "Why?"},
    ]
    assert [message["content"] for message in conversation(said, sees=False)] == ["What?", "A.", "Why?"]


def test_a_question_without_an_answer_is_asked_with_the_next_and_all_pictures():
    said = [Message(0, "user", "One", pictures=(FIRST,)), Message(1, "user", "", pictures=(SECOND,)), Message(2, "user", "Two")]
    (asked,) = conversation(said)
    assert asked["content"] == [*images(FIRST, SECOND), {"type": "text", "text": "One\n\nTwo"}]
    assert conversation(said[1:2]) == [{"role": "user", "content": images(SECOND)}]
    assert conversation(said[1:2], sees=False) == []


def test_pictures_count_when_old_turns_are_left_out():
    said = [Message(i, ("user", "assistant")[i % 2], "word", pictures=(FIRST,) * (i % 2 == 0)) for i in range(9)]
    assert len(conversation(said, most=3 * 313 * 12)) == 3  # a third picture and its text are too many
    assert title_of("") == "Picture"


def test_a_picture_is_sent_seen_and_kept(make_state, tmp_path, photo):
    tower = FakeTower(pause_s=0.01)
    state = make_state("Red.", "Still red.", tower=tower)
    assert state.model.sees
    attached(state, photo)
    (picture,) = state.draft.pictures
    photo.unlink()  # the copy is what counts
    notices = []
    take = state._take
    state._take = lambda event: (notices.append(event.text) if isinstance(event, Notice) else None, take(event))
    assert state.send("What colour?") and state.draft.pictures == ()
    answered(state, SECONDS)
    assert [message.content for message in state.messages] == ["What colour?", "Red."]
    assert state.messages[0].pictures == (picture,) and tower.seen == 5  # a 2 by 2 grid, and the whole
    assert notices == ["Looking at the picture…", ""] and state.notice == ""
    assert re.fullmatch(r"(.)1\1\nWhat colour\?", state.parts.chat.asked[-1][-1]["content"])
    assert Store(tmp_path / "chats.db").messages(state.chat) == state.messages
    state.send("Sure?")
    answered(state, SECONDS)
    assert tower.seen == 5 and state.messages[-1].content == "Still red."  # what was seen is remembered


def test_a_picture_alone_is_a_question(make_state, photo):
    state = make_state("A wall.")
    assert not state.send("")
    attached(state, photo)
    assert state.send("  ")
    answered(state, SECONDS)
    assert state.chats[0].title == "Picture" and state.messages[-1].content == "A wall."


def test_the_draft(make_state, photo):
    state = make_state("ok")
    state.attach(photo)
    assert state.draft.opening and not state.send("too early")
    until(state, lambda: not state.draft.opening, SECONDS)
    attached(state, photo)
    attached(state, painted(GREEN))
    assert [picture.width for picture in state.draft.pictures] == [400, 400]  # the same one counts once
    state.detach(state.draft.pictures[0].name)
    assert len(state.draft.pictures) == 1 and "pictures" in state.poll()


def test_what_can_not_be_opened_is_one_sentence(make_state, tmp_path):
    state = make_state("ok")
    (tmp_path / "broken.jpg").write_bytes(b"\xff\xd8\xff\xe0 no")
    attached(state, tmp_path / "broken.jpg")
    assert state.problem.sentence == "This picture can't be opened." and "broken.jpg" in state.problem.detail
    assert state.solve() == "pick_picture" and state.draft.pictures == ()


def test_edit_brings_the_pictures_back(make_state, photo):
    state = make_state("one", "two")
    attached(state, photo)
    state.send("What?")
    answered(state, SECONDS)
    question = state.messages[0]
    state.draft_again(question.pictures)
    assert state.resend(question.id, "What else?")
    answered(state, SECONDS)
    assert [(m.content, m.pictures) for m in state.messages] == [("What else?", question.pictures), ("two", ())]


def test_a_model_that_reads_text_only(make_state, photo):
    state = make_state("words", blind=True)
    assert not state.model.sees and not state.attach(photo) and state.problem == problems.sees_nothing()
    state.draft_again((state.store.album.add(photo),))
    state.problem = None
    assert not state.send("What?") and state.problem == problems.sees_nothing() and len(state.draft.pictures) == 1
    assert state.solve() == "pick_bundle" and state.chats == []


def test_a_chat_about_a_picture_goes_on_with_a_model_that_reads_text_only(make_state, photo):
    state = make_state("Red.", "Words.")
    attached(state, photo)
    state.send("What?")
    answered(state, SECONDS)
    tower, state.parts.tower = state.parts.tower, None
    state.open_bundle("blind")
    until(state, lambda: state.model is not None, SECONDS)
    assert tower.closed  # its memory is given back
    assert not state.regenerate() and state.problem == problems.sees_nothing() and len(state.messages) == 2
    assert state.send("And now?") and state.notice == "This model sees no pictures: it reads the words alone."
    answered(state, SECONDS)
    assert [m["content"] for m in state.parts.chat.asked[-1]] == ["What?", "Red.", "And now?"]


def test_a_picture_that_is_gone(make_state, photo):
    state = make_state("one", "two")
    attached(state, photo)
    state.send("What?")
    answered(state, SECONDS)
    state.messages[0].pictures[0].file.unlink()
    state.send("And?")
    answered(state, SECONDS)
    assert state.problem == problems.picture_gone() and state.messages[-1].state == "failed"


def test_deleting_a_chat_keeps_a_drafted_picture(make_state, photo):
    state = make_state("one")
    attached(state, photo)
    state.send("What?")
    answered(state, SECONDS)
    (picture,) = state.messages[0].pictures
    state.draft_again((picture,))
    state.delete_chat(state.chat)
    assert picture.file.exists()
    state.send("Again?")
    answered(state, SECONDS)
    state.delete_chat(state.chat)
    assert not picture.file.exists()


# with documents


def test_pictures_and_passages_go_together(make_state, photo):
    passage = FakePassage("Place <|image_1|> where it goes.", "Guide", "guide.md", "1", 0.9)
    library = FakeLibrary([passage])
    state = make_state("Yes [1].", library=library)
    state.open_library("x.db")
    until(state, lambda: state.library is not None, SECONDS)
    attached(state, photo)
    state.send("Is this it?")
    answered(state, SECONDS)
    assert library.questions == ["Is this it?"] and state.messages[-1].sources[0]["title"] == "Guide"
    assert state.messages[-1].content == "Yes [1]." and state.messages[0].content == "Is this it?"
    content = state.parts.chat.asked[-1][-1]["content"]
    assert re.fullmatch(r"(.)1\1\n\[1\] Place <image_1\|> where it goes\.\nIs this it\?", content)


def test_where_nothing_is_found_the_picture_is_still_looked_at(make_state, photo):
    library = FakeLibrary([])
    state = make_state("Red.", library=library)
    state.open_library("x.db")
    until(state, lambda: state.library is not None, SECONDS)
    attached(state, photo)
    state.send("What colour?")
    answered(state, SECONDS)
    assert state.messages[-1].content == "Red."
    attached(state, painted(GREEN))
    state.send("")  # nothing to search for
    answered(state, SECONDS)
    assert library.questions == ["What colour?"] and state.messages[-1].content == "Red."


# Android's and iOS's pickers, against fakes of their classes


class FakeIntent:
    def __init__(self, action: str) -> None:
        self.said = [action]

    def setType(self, kind: str) -> "FakeIntent":
        self.said.append(kind)
        return self

    def addCategory(self, category: str) -> "FakeIntent":
        self.said.append(category)
        return self


class FakeResolver:
    def __init__(self, path: Path, kind: str) -> None:
        self.path, self.kind = path, kind

    def getType(self, uri: str) -> str:
        return self.kind

    def openFileDescriptor(self, uri: str, mode: str):
        descriptor = os.open(self.path, os.O_RDONLY)
        return type("Descriptor", (), {"detachFd": lambda self: descriptor})()


class FakeDecoder:
    @staticmethod
    def createSource(resolver: FakeResolver, uri: str) -> Path:
        return resolver.path

    @staticmethod
    def decodeBitmap(source: Path):
        def compress(self, kind: str, quality: int, stream) -> None:
            stream.write(f"{kind} of {source.name}".encode())

        return type("Bitmap", (), {"compress": compress})()


def classes(level: int):
    table = {
        "android.content.Intent": FakeIntent,
        "android.os.Build$VERSION": type("Version", (), {"SDK_INT": level}),
        "android.graphics.ImageDecoder": FakeDecoder,
        "android.graphics.Bitmap$CompressFormat": type("Format", (), {"JPEG": "JPEG"}),
        "java.io.FileOutputStream": lambda path: io.FileIO(path, "w"),
    }
    return table.__getitem__


def test_android_asks_with_the_photo_picker_or_the_older_one():
    from phi3mobile.assistant.android_pictures import picker

    assert picker(classes(34)).said == ["android.provider.action.PICK_IMAGES", "image/*"]
    assert picker(classes(28)).said == ["android.intent.action.GET_CONTENT", "image/*", "android.intent.category.OPENABLE"]


def test_android_reads_through_the_resolver(photo, monkeypatch):
    from phi3mobile.assistant import android_pictures
    from phi3mobile.assistant.android_pictures import read_picture

    assert read_picture(FakeResolver(photo, "image/png"), "uri", classes(34)) == photo.read_bytes()
    assert read_picture(FakeResolver(photo, "image/heic"), "uri", classes(34)) == b"JPEG of photo.png"
    with pytest.raises(InputError, match="HEIC"):
        read_picture(FakeResolver(photo, "image/heif"), "uri", classes(27))
    monkeypatch.setattr(android_pictures, "MOST", 10)
    with pytest.raises(InputError, match="smaller"):
        read_picture(FakeResolver(photo, "image/png"), "uri", classes(34))


def test_ios_reads_the_file_that_the_picker_made(photo):
    from phi3mobile.assistant.ios_pictures import read_picture

    def url(path: Path):
        return type("URL", (), {"path": lambda self: type("S", (), {"UTF8String": lambda self: str(path)})()})()

    assert read_picture(url(photo)) == photo.read_bytes()
    assert "can't be read" in read_picture(url(photo.with_name("no.jpg"))) and "no file" in read_picture(None)
