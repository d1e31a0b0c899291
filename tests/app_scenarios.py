"""What the window's tests do, one function each: makes a Driver, runs steps, notes what was seen."""

from __future__ import annotations

import json
from pathlib import Path

from app_driver import Driver, png, run
from fake_app import ANSWERS, PASSAGES, FakeLibrary, FakeTower, counted, parts_saying


def chat(folder: Path) -> None:
    """Three questions, streaming, stop, try again, edit, copy, delete, drawer or sidebar."""
    driver = Driver(folder, lambda path: parts_saying(*ANSWERS, pause_s=0.0008, prefill_s=0.1))

    def steps(d: Driver):
        d.shot("empty")
        d.state.open_bundle("phi")
        yield d.idle
        yield 0.3
        d.ask("What is a KV cache?")
        yield lambda: "prefill" in d.state.messages[-1].content
        d.shot("streaming")
        d.seen["stop shown while answering"] = d.content.composer.button.icon
        yield d.idle
        yield 0.4
        d.shot("answer")
        d.seen["cut"] = d.cut()
        d.ask("بالعربية من فضلك 🙂")
        yield d.idle
        yield 0.4
        d.shot("arabic")
        d.ask("Show me some emoji")
        yield d.idle
        yield 0.4
        d.seen["messages"] = [(m.role, m.content, m.state) for m in d.state.messages]
        d.press("Try again")
        yield lambda: len(d.state.messages[-1].content) > 20
        d.press(d.content.composer.button)
        yield d.idle
        yield 0.3
        d.seen["stopped"] = (d.state.messages[-1].state, d.state.messages[-1].content)
        d.app.toggle_panel()
        yield 0.5
        d.shot("stopped")
        d.press("Edit")
        yield 0.3
        d.seen["edited text"] = d.content.composer.field.text
        d.write("And in one line?")
        d.shot("editing")
        d.press(d.content.composer.button)
        yield d.idle
        yield 0.3
        d.seen["after edit"] = [m.content for m in d.state.messages if m.role == "user"]
        d.press("Copy")
        from kivy.core.clipboard import Clipboard

        d.seen["copied"] = Clipboard.paste()
        d.app.new_chat()
        yield 0.3
        d.ask("A second conversation")
        yield d.idle
        if d.content.theme.phone:
            d.press("menu")
            yield 0.3
        d.shot("chats")
        d.seen["chats"] = [chat.title for chat in d.state.chats]
        d.press("delete")
        yield 0.3
        d.shot("confirm")
        d.press("Delete")
        yield 0.3
        d.seen["chats after delete"] = [chat.title for chat in d.state.chats]

    run(steps, driver)


def sheets(folder: Path) -> None:
    """Models, documents, sources, a passage, settings by touch: theme, text size, a slider."""
    for name, heap in (("phi-3-mini-4k-instruct", 0), ("phi-3-medium", 2_000_000_000_000)):
        write_bundle(folder / "models" / name, name, activations=5_000_000 + heap)
    (folder / "models" / "broken").mkdir()
    (folder / "models" / "broken" / "manifest.json").write_text("{")
    (folder / "libraries").mkdir()
    (folder / "libraries" / "Lease and house rules.db").write_bytes(b"")
    answer = "The rent is due on the **third working day** of each month [1]. Late payments cost 5 euros per day [1]."
    driver = Driver(folder, lambda path: parts_saying(answer, pause_s=0.001), FakeLibrary(PASSAGES))

    def steps(d: Driver):
        d.app.open_models()
        yield 0.4
        d.shot("models")
        d.seen["models cut"] = d.cut()
        d.press("phi-3-mini-4k-instruct")
        yield d.idle
        d.seen["model"] = d.state.model.name
        d.app.open_library()
        yield 0.3
        d.shot("documents")
        d.press("Lease and house rules")
        yield lambda: d.state.library is not None
        d.ask("When is the rent due?")
        yield d.idle
        yield 0.5
        d.shot("sources")
        d.seen["sources cut"] = d.cut()
        d.seen["chips"] = [chip.children[0].text for chip in d.widgets() if getattr(chip, "caption", "").startswith("[")]
        d.seen["asked"] = d.state.worker._session.parts.chat.asked[-1]
        d.press("[1] Lease 2026")
        yield 0.4
        d.shot("passage")
        d.seen["passage"] = d.texts()[-8:]
        d.content.close_sheet()
        d.app.open_settings()
        yield 0.4
        d.shot("settings")
        d.seen["settings cut"] = d.cut()
        d.press("Dark")
        yield 0.4
        d.seen["dark"] = d.content.theme.dark
        d.shot("settings-dark")
        d.press("150%")
        yield 0.4
        d.shot("settings-large")
        d.seen["large cut"] = d.cut()
        d.content.close_sheet()
        yield 0.4
        d.shot("large-dark")
        d.app.change(text_scale=2.0)
        yield 0.4
        d.seen["largest cut"] = d.cut()
        d.shot("settings-largest")
        d.content.close_sheet()
        yield 0.3
        d.shot("largest")
        d.app.open_settings()
        yield 0.3
        d.press("100%")
        yield 0.3
        slider = next(w for w in d.widgets() if getattr(w, "name", "") == "temperature")
        slider.value, before = 0.0, d.state.settings.temperature
        d.press(slider)  # its middle
        d.seen["temperature"] = (before, d.state.settings.temperature)
        d.content.sheet.prompt.text = "Answer briefly."
        d.press("close")
        yield 0.3
        d.seen["system prompt"] = d.state.settings.system_prompt
        d.shot("dark")
        d.app.toggle_panel()
        yield 0.4
        d.shot("dark-panel")

    run(steps, driver)


def pictures(folder: Path) -> None:
    """Pictures by touch: from the folders' sheet, pasted, dropped; removed, sent, edited; light, dark, large; a blind model."""
    import numpy as np
    from kivy.core.clipboard import Clipboard
    from kivy.core.window import Window

    shelf = folder / "Pictures"
    shelf.mkdir()
    row, column = np.mgrid[0:300, 0:400]
    paint = np.stack([column * 255 // 400, row * 255 // 300, 120 + 0 * row], axis=2).astype(np.uint8)
    paint[80:220, 120:260] = (230, 180, 40)
    (shelf / "a wall.png").write_bytes(png(paint))
    (shelf / "tall.png").write_bytes(png(paint[:, 150:200]))
    (shelf / "wide.png").write_bytes(png(paint[100:140]))
    (shelf / "broken.jpg").write_bytes(b"no")
    (shelf / "notes.txt").write_bytes(b"no picture")
    seeing = parts_saying("A yellow square on a wall.", "The same.", pause_s=0.002, tower=FakeTower(pause_s=0.1))
    driver = Driver(folder, lambda path: parts_saying("Words.") if path.name == "blind" else seeing)

    def steps(d: Driver):
        strip = lambda: [picture.file.name for picture in d.state.draft.pictures]  # noqa: E731
        opened = lambda: not d.state.draft.opening  # noqa: E731
        d.state.open_bundle("phi-3-vision")
        yield d.idle
        yield 0.3
        button = d.content.composer.attach
        d.seen["button"] = (button.width, button.height)
        d.press(button)
        yield 0.4
        d.shot("browser")
        d.seen["listed"] = [w.caption for w in d.content.sheet.walk() if hasattr(w, "caption")]
        d.press("a wall.png")
        yield lambda: opened() and len(strip()) == 1
        yield 0.3
        d.shot("attached")
        for name in ("tall.png", "wide.png"):
            Window.dispatch("on_drop_file", str(shelf / name).encode(), 10, 10)
            yield opened
        yield 0.3
        d.seen["dropped"], d.seen["cut"] = len(strip()), d.cut()
        tiles = d.content.composer.pictures
        d.seen["crosses"] = [
            (*w.to_window(*w.pos), w.width, w.height) for w in tiles.walk() if getattr(w, "icon", "") == "close"
        ]
        d.seen["strip"] = (*tiles.to_window(*tiles.pos), tiles.width, tiles.height)
        field = d.content.composer.field
        d.seen["field top"] = field.to_window(0, field.top)[1]
        d.shot("three")
        d.press(next(w for w in tiles.walk() if getattr(w, "icon", "") == "close"))
        yield 0.3
        d.seen["after removing"] = len(strip())
        Clipboard.copy(str(shelf / "a wall.png"))
        field.paste()
        yield opened
        yield 0.2
        d.seen["pasted"] = (len(strip()), field.text)
        Window.dispatch("on_drop_file", str(shelf / "broken.jpg").encode(), 10, 10)
        yield opened
        yield 0.3
        d.seen["broken"] = (d.state.problem.sentence, d.state.problem.detail, d.cut())
        d.shot("broken")
        d.state.show(None)
        d.ask("What is on these pictures?")
        yield lambda: d.state.notice != ""
        yield 0.1
        d.seen["notice"] = d.content.composer.notice.source
        d.shot("looking")
        yield d.idle
        yield 0.4
        d.seen["strip after"] = (d.content.composer.pictures.height, d.state.notice)
        d.seen["bubble"] = [
            (*w.to_window(*w.pos), w.width, w.height) for w in d.content.chat.walk() if type(w).__name__ == "Thumbnail"
        ]
        d.seen["textures"] = [bool(w.texture) for w in d.content.chat.walk() if type(w).__name__ == "Thumbnail"]
        d.seen["bubble cut"] = d.cut()
        d.shot("light")
        d.press("Edit")
        yield 0.3
        d.seen["editing"] = (len(strip()), field.text)
        d.press("Cancel")
        yield 0.3
        d.seen["cancelled"] = (len(strip()), field.text)
        d.app.change(theme="dark")
        d.content.close_sheet()
        d.state.attach(shelf / "a wall.png")
        yield opened
        yield 0.4
        d.shot("dark")
        d.app.change(text_scale=2.0)
        d.content.close_sheet()
        yield 0.4
        d.seen["large cut"] = d.cut()
        d.shot("large")
        d.state.open_bundle("blind")
        yield d.idle
        yield 0.3
        d.seen["blind has a button"] = d.content.composer.attach.parent is not None
        d.ask("And this?")
        yield 0.3
        d.seen["blind"] = (d.state.problem.sentence, d.content.composer.field.text)
        d.shot("blind")

    run(steps, driver)


def problems(folder: Path) -> None:
    """What a person meets when things go wrong: a sentence and a button each, and the button works."""
    from phi3mobile.assistant.problems import no_bundle
    from phi3mobile.errors import InputError

    fails: dict[str, Exception] = {
        "damaged": InputError("/phone/phi/model.pte is damaged: its SHA-256 is not the manifest's; copy the bundle again"),
        "memory": InputError(
            "this bundle needs 3.9 GB of memory (1.6 GB KV cache for 4096 positions), 1.2 GB are free; "
            "close programs or export with a smaller --context"
        ),
        "bug": RuntimeError("Error: failed with code 0x12"),
    }

    def open_bundle(path: Path):
        if path.name in fails:
            raise fails[path.name]
        return parts_saying("Fine.", context=64)

    class Broken:
        def search(self, question: str, k: int = 5):
            raise InputError("the library my.db is damaged (database disk image is malformed); index the documents again")

    driver = Driver(folder, open_bundle, Broken())

    def steps(d: Driver):
        def note(name: str) -> None:
            d.shot(name)
            d.seen[name] = (d.state.problem.sentence, d.state.problem.detail, d.state.problem.button, d.cut())

        d.state.show(no_bundle())
        yield 0.4
        note("no-model")
        d.press("Choose a model")
        yield 0.3
        d.seen["no-model solved by"] = type(d.content.sheet).__name__
        d.press("close")
        for name in fails:
            d.state.open_bundle(name)
            yield lambda: d.state.problem is not None
            yield 0.3
            note(name)
        d.write("Hello?")
        d.press(d.content.composer.button)
        yield 0.3
        d.seen["not sent without a model"] = (d.content.composer.field.text, d.state.problem.sentence)
        d.state.open_bundle("good")
        yield d.idle
        d.ask("x" * 200)
        yield lambda: d.state.problem is not None
        yield 0.3
        note("too-long")
        d.press(d.state.problem.button)
        yield 0.3
        d.seen["after too long"] = (d.state.problem, len(d.state.messages))
        d.state.open_library("my.db")
        yield lambda: d.state.library is not None
        d.ask("Rent?")
        yield lambda: d.idle() and d.state.problem is not None
        yield 0.3
        note("library")
        d.press(d.state.problem.button)
        yield lambda: d.state.library is None
        d.seen["answered all the same"] = d.state.messages[-1].content

    run(steps, driver)


def rotate(folder: Path) -> None:
    """A window that becomes narrow and wide again keeps what is written, shown and running."""
    driver = Driver(folder, lambda path: parts_saying(ANSWERS[0], pause_s=0.004))

    def steps(d: Driver):
        from kivy.core.window import Window

        d.state.open_bundle("phi")
        yield d.idle
        d.ask("What is a KV cache?")
        d.write("half written")
        yield lambda: len(d.state.messages[-1].content) > 30
        d.seen["layouts"] = [d.content.theme.phone]
        for size in ((390, 844), (1024, 768)):
            Window.size = size
            yield lambda size=size: d.content.theme.phone == (size[0] < 760) and tuple(Window.size) == size
            yield 0.3
            d.seen["layouts"].append(d.content.theme.phone)
            d.seen[f"text {size[0]}"] = (d.content.composer.field.text, d.state.answering)
            d.shot(f"rotated-{size[0]}")
        yield d.idle
        d.seen["answer"] = d.state.messages[-1].content

    run(steps, driver)


def write_bundle(folder: Path, name: str, activations: int) -> None:
    """A manifest as the picker reads it."""
    folder.mkdir(parents=True)
    memory = {"weights": 2_200_000_000, "kv_per_token": 204_800, "activations": activations, "peak": {}}
    manifest = {
        "name": name,
        "memory": memory,
        "model": {"context": 4096},
        "weights_mapped": True,
        "recipe": {"name": "host"},
        "files": {"model.pte": {"bytes": 2_240_000_000, "sha256": ""}},
    }
    (folder / "manifest.json").write_text(json.dumps(manifest))


def keys(folder: Path) -> None:
    """A desktop's keyboard."""
    driver = Driver(folder, lambda path: parts_saying(counted(300), pause_s=0.002))

    def steps(d: Driver):
        from kivy.core.window import Keyboard, Window

        def key(name: str, *modifiers: str) -> None:
            code = Keyboard.keycodes[name]
            if Window.dispatch("on_key_down", code, 0, None, list(modifiers)):
                return
            Window.dispatch("on_keyboard", code, 0, None, list(modifiers))

        d.state.open_bundle("phi")
        yield d.idle
        field = d.content.composer.field
        field.focus = True
        yield 0.2
        d.write("two")
        key("enter", "shift")
        d.seen["shift+enter"] = f"{field.text}lines"
        d.write("Hello")
        key("enter")
        d.seen["sent by enter"] = [m.content for m in d.state.messages if m.role == "user"]
        yield lambda: len(d.state.messages[-1].content) > 20
        key("escape")
        yield d.idle
        d.seen["escape stops"] = d.state.messages[-1].state
        field.focus = True
        yield 0.2
        key("up")
        d.seen["up edits"] = field.text
        key("n", "ctrl")
        d.seen["ctrl+n"] = d.state.messages
        key(",", "ctrl")
        yield 0.2
        d.seen["ctrl+,"] = type(d.content.sheet).__name__
        d.content.composer.field.focus = False
        key("escape")
        yield 0.2
        d.seen["escape closes"] = d.content.sheet
        d.shot("keys")

    run(steps, driver)


def demo(folder: Path) -> None:
    """A real bundle answers; frame times meanwhile."""
    import os

    from phi3mobile.bundle import open_bundle

    driver = Driver(folder, open_bundle)

    def steps(d: Driver):
        d.app.toggle_panel()
        d.state.change(temperature=0.0, max_tokens=300)
        d.state.open_bundle(os.environ["PHI3MOBILE_TEST_BUNDLE"])
        yield lambda: d.state.loading is None
        d.ask("Explain in a few paragraphs why the sky is blue, and why sunsets are red.")
        yield lambda: len(d.state.messages[-1].content) > 400 or not d.state.answering
        d.shot("demo-streaming")
        yield d.idle
        yield 0.3
        d.shot("demo")
        last = d.state.messages[-1]
        d.seen |= {"answer": last.content, "state": last.state, "frames": d.app.frames.summary(), "numbers": last.numbers}

    run(steps, driver)


def soak(folder: Path) -> None:
    """A thousand messages through the window; bytes of memory after 200, 400, ..."""
    import gc

    from phi3mobile.assistant.meters import memory_used

    driver = Driver(folder, lambda path: parts_saying(*ANSWERS[1:], "**Short** `code` 😀\n\n- a list", context=8192))

    def steps(d: Driver):
        d.state.open_bundle("phi")
        yield d.idle
        d.seen["memory"] = []
        for number in range(1, 501):
            d.state.send(f"Question {number} 🙂 وسؤال")
            yield d.idle
            if number % 100 == 0:
                yield 0.3
                gc.collect()
                d.seen["memory"].append(memory_used())
        d.seen["messages"] = len(d.state.messages)
        d.shot("soak")

    run(steps, driver)


def picture(folder: Path) -> None:
    """The parts of docs/app.png: a real answer with the panel; by script, sources in the dark and another script."""
    import os

    from phi3mobile.bundle import open_bundle

    real = Path(os.environ["PHI3MOBILE_TEST_BUNDLE"])
    answer = "The rent is due on the **third working day** of each month [1]. Late payments cost 5 euros per day [1]."
    script = parts_saying(answer, ANSWERS[1], pause_s=0.004)
    driver = Driver(folder, lambda path: open_bundle(path) if path == real else script, FakeLibrary(PASSAGES))

    def steps(d: Driver):
        d.state.change(theme="light", temperature=0.0)
        d.state.open_bundle(real)
        yield d.idle
        d.app.toggle_panel()
        for question in ("What is the capital of France, and what is it known for?", "Name three things to see there."):
            d.ask(question)
            yield d.idle
        yield 0.4
        d.shot("panel")
        d.app.toggle_panel()
        d.state.open_bundle("phi")
        yield d.idle
        d.state.open_library("Lease and house rules.db")
        yield lambda: d.state.library is not None
        d.app.new_chat()
        d.ask("When is the rent due?")
        yield d.idle
        d.state.change(theme="dark")
        d.app.draw_anew()
        yield 0.4
        d.shot("sources")
        d.state.open_library(None)
        yield lambda: d.state.library is None
        d.app.new_chat()
        d.ask("بالعربية من فضلك 🙂")
        yield d.idle
        yield 0.4
        d.shot("arabic")

    run(steps, driver)


def typing(folder: Path) -> None:
    """The field: several scripts, right to left, emoji, many lines; where the cursor stands."""
    driver = Driver(folder, lambda path: parts_saying("Fine."))

    def steps(d: Driver):
        field = d.content.composer.field
        field.focus = True
        d.seen["heights"] = [field.height]
        for name, text in (("hebrew", "שלום 🙂 abc"), ("arabic", "مرحبا بالعالم 👍🏽"), ("lines", "one\ntwo\nthree 🚀\nfour")):
            d.write(text)
            field.cursor = field.get_cursor_from_index(0)
            yield 0.2
            left = field.cursor_pos[0]
            field.cursor = field.get_cursor_from_index(len(text))
            yield 0.2
            d.seen[name] = (left, field.cursor_pos[0])
            d.seen["heights"].append(field.height)
            d.shot(name)
        d.write("line\n" * 30)
        yield 0.2
        d.seen["heights"].append(field.height)
        d.shot("many-lines")

    run(steps, driver)
