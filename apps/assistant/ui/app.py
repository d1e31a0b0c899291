"""The Kivy application: ties State to the window, keys and frames to both."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from kivy.app import App
from kivy.clock import Clock
from kivy.core.clipboard import Clipboard
from kivy.core.window import Window
from kivy.metrics import dp

from phi3mobile.assistant import bundles
from phi3mobile.assistant.device import device
from phi3mobile.assistant.meters import Frames
from phi3mobile.assistant.pictures import copied
from phi3mobile.assistant.places import Places
from phi3mobile.assistant.state import State
from phi3mobile.assistant.store import Chat, Message, Store, set_aside
from phi3mobile.assistant.ui import pickers, sheets
from phi3mobile.assistant.ui.settings_sheet import SettingsSheet
from phi3mobile.assistant.ui.theme import Theme, register_fonts, system_is_dark
from phi3mobile.assistant.ui.window import Content

WIDE = 760  # dp from which there are two columns
PANEL_EVERY_S = 0.2
LOOKS = ("theme", "text_scale")  # settings that change how things are drawn


class AssistantApp(App):
    """`state` is made by the caller; `where` tells what the pickers list."""

    title = "Phi-3 on this device"

    def __init__(self, state: State, where: Places, **kwargs) -> None:
        super().__init__(**kwargs)
        self.state, self.where, self.frames = state, where, Frames()
        self.content: Content | None = None
        self._panel_at = 0.0

    def build(self) -> Content:
        register_fonts()
        Window.softinput_mode = "below_target"
        self.content = Content(self._theme(), self.state, self)
        Window.bind(size=self._resized, on_key_down=self._key, on_keyboard=self._back)
        Window.bind(on_drop_file=lambda _, name, *__: self.state.attach(Path(os.fsdecode(name))))
        Window.bind(on_flip=lambda *_: self.frames.drawn(time.perf_counter()))
        Clock.schedule_interval(self._frame, 0)
        return self.content

    def on_start(self) -> None:
        self._ground()

    def on_pause(self) -> bool:
        self.state.worker.keep()
        return True  # the conversation is on disk at any time

    def on_stop(self) -> None:
        self.content.close_sheet()
        self.state.close()

    def draw_anew(self) -> None:
        """The same state in a new theme or layout; what is being written stays."""
        old, self.content = self.content, Content(self._theme(), self.state, self)
        self.content.composer.field.text = old.composer.field.text
        Window.remove_widget(old)
        Window.add_widget(self.content)
        self.root = self.content
        self._ground()

    def _theme(self) -> Theme:
        settings = self.state.settings
        dark = system_is_dark() if settings.theme == "system" else settings.theme == "dark"
        return Theme(dark, settings.text_scale, Window.width < dp(WIDE))

    def _ground(self) -> None:
        Window.clearcolor = self.content.theme.color("background")

    def _frame(self, _: float) -> None:
        now = time.perf_counter()
        if self.state.answering:
            self.frames.tick(now)
        else:
            self.frames.pause()
        if old := self.state.poll():
            self.content.refresh(old)
        if now - self._panel_at >= PANEL_EVERY_S:
            self._panel_at = now
            self.content.show_live()

    def _resized(self, *_: object) -> None:
        if self.content.theme.phone != (Window.width < dp(WIDE)):
            self.draw_anew()

    def _key(self, _window, key: int, _scan: int, _text: str | None, modifiers: list[str]) -> bool:
        if not {"ctrl", "meta"} & set(modifiers):
            return False
        action = {ord("n"): self.new_chat, ord(","): self.open_settings, ord("r"): self.again, ord("o"): self.open_models}.get(
            key
        )
        if action is None:
            return False
        action()
        return True

    def _back(self, _window, key: int, *_: object) -> bool:
        """Escape, and Android's Back: close what lies on top, else stop the answer; nothing of both: the system's."""
        if key != 27:
            return False
        if self.content.close_sheet():
            return True
        if self.state.answering:
            self.stop_answer()
            return True
        from kivy.utils import platform

        return platform != "android"  # on a desktop Escape ends nothing

    # what a person does

    def submit(self, text: str) -> bool:
        editing = self.content.composer.editing
        if editing is not None and any(message.id == editing.id for message in self.state.messages):
            return self.state.resend(editing.id, text)
        return self.state.send(text)

    def ask(self, text: str) -> None:
        if not self.state.send(text):
            self.content.composer.field.text = text

    def stop_answer(self) -> None:
        self.state.stop()

    def again(self) -> None:
        self.state.regenerate()

    def copy(self, text: str) -> None:
        Clipboard.copy(text)

    def edit(self, message: Message) -> None:
        self.state.draft_again(message.pictures)
        self.content.composer.edit(message)

    def end_edit(self) -> None:
        self.state.draft_again(())

    def attach(self) -> None:
        """Let the person choose a picture, as the device does it."""
        self.content.close_sheet()
        if self.where.browse:
            pictures = self.where.browse / "Pictures"
            self._browse("picture", self.pick_picture, pictures if pictures.is_dir() else None)
        else:
            self._photo_picker()(self._picked)

    def detach(self, name: str) -> None:
        self.state.detach(name)

    def pick_picture(self, path: Path) -> None:
        self.content.close_sheet()
        self.state.attach(path)

    def paste_picture(self) -> bool:
        """Whether the clipboard held a picture, or named a picture's file, for a model that sees."""
        picture = self.state.sees and copied(Clipboard)
        return bool(picture) and self.state.attach(picture)

    def edit_last(self) -> None:
        if last := next((message for message in reversed(self.state.messages) if message.role == "user"), None):
            self.edit(last)

    def new_chat(self) -> None:
        self.content.close_sheet()
        self.state.new_chat()
        self.content.composer.field.focus = not self.content.theme.phone

    def open_chat(self, chat: int) -> None:
        self.content.close_sheet()
        self.state.open_chat(chat)

    def ask_delete(self, chat: Chat) -> None:
        self.content.close_sheet()
        name = chat.title or "New chat"
        sheet = sheets.question_sheet(
            self.content.theme,
            "Delete this chat?",
            f"“{name}” and its answers will be gone.",
            "Delete",
            lambda: self.state.delete_chat(chat.id),
            self.content.close_sheet,
        )
        self.content.open_sheet(sheet)

    def toggle_panel(self) -> None:
        self.state.change(panel=self.content.toggle_panel())

    def open_source(self, source: dict[str, Any]) -> None:
        self.content.open_sheet(sheets.passage_sheet(self.content.theme, source, self.content.close_sheet, self.copy))

    def open_settings(self) -> None:
        self.content.close_sheet()
        self.content.open_sheet(SettingsSheet(self.content.theme, self.state.settings, self.change, self.content.close_sheet))

    def change(self, **changes: Any) -> None:
        self.state.change(**changes)
        if any(name in LOOKS for name in changes):
            self.draw_anew()
            self.open_settings()

    def open_models(self) -> None:
        self.content.close_sheet()
        found = bundles.choices(
            (*self.where.models, *([Path(self.state.settings.bundle)] if self.state.settings.bundle else []))
        )
        more = (
            ("Look in folders", lambda: self._browse("bundle", self.pick_bundle))
            if self.where.browse
            else self._system_picker()
        )
        current = self.state.model.path.resolve() if self.state.model else None
        sheet = pickers.models_sheet(
            self.content.theme, found, current, self.pick_bundle, self.content.close_sheet, more, self.where.models[0]
        )
        self.content.open_sheet(sheet)

    def pick_bundle(self, path: Path) -> None:
        self.content.close_sheet()
        self.state.open_bundle(path)

    def open_library(self) -> None:
        self.content.close_sheet()
        found = [path for folder in self.where.libraries if folder.is_dir() for path in sorted(folder.glob("*.db"))]
        if self.state.library and self.state.library not in found:
            found.append(self.state.library)
        more = []
        if self.where.browse:
            more = [
                ("Look for a library", lambda: self._browse("library", self.pick_library)),
                ("Add documents", lambda: self._browse("documents", self.add_documents)),
            ]
        sheet = pickers.library_sheet(
            self.content.theme, self.state.library, found, self.pick_library, self.content.close_sheet, more
        )
        self.content.open_sheet(sheet)

    def pick_library(self, path: Path | None) -> None:
        self.content.close_sheet()
        self.state.open_library(path)

    def add_documents(self, path: Path) -> None:
        self.content.close_sheet()
        folder = self.where.libraries[0]
        folder.mkdir(parents=True, exist_ok=True)
        self.state.add_documents(path, folder / "My documents.db")

    def solve(self) -> None:
        problem = self.state.problem
        action = self.state.solve()
        if action == "pick_bundle":
            self.open_models()
        elif action == "pick_library":
            self.open_library()
        elif action == "pick_picture":
            self.attach()
        elif action == "new_store":
            set_aside(self.where.store)
            self.state.use_store(Store(self.where.store))
        elif action == "copy" and problem:
            self.copy(f"{problem.sentence}\n{problem.detail}")

    def _browse(self, wanted: str, pick, start: Path | None = None) -> None:
        self.content.close_sheet()
        start = start or self.where.browse
        self.content.open_sheet(pickers.Browser(self.content.theme, start, wanted, pick, self.content.close_sheet))

    def _picked(self, result: bytes | str) -> None:
        """A picture's bytes from the system's picker, or the sentence that says why there are none."""
        if isinstance(result, bytes):
            self.state.attach(result)
        else:
            from phi3mobile.assistant.problems import picture_failed

            self.state.show(picture_failed(result))

    def _system_picker(self) -> tuple[str, Any] | None:
        from kivy.utils import platform

        if platform != "android":
            return None
        from phi3mobile.assistant.android_import import pick_folder

        return ("Import a folder", lambda: pick_folder(self.where.models[0], self._imported))

    def _photo_picker(self) -> Callable[[Callable[[bytes | str], None]], None]:
        if device() == "android":
            from phi3mobile.assistant.android_pictures import pick_picture
        else:
            from phi3mobile.assistant.ios_pictures import pick_picture
        return pick_picture

    def _imported(self, result: Path | str) -> None:
        """A folder that was copied in, or the sentence that says why not."""
        if isinstance(result, Path):
            self.state.open_bundle(result)
        else:
            from phi3mobile.assistant.problems import bundle_failed

            self.state.show(bundle_failed(result))
