"""Choosing a model and a document library: what is on the device first, then a look through the folders."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from kivy.metrics import dp
from kivy.uix.boxlayout import BoxLayout
from kivy.uix.widget import Widget

from phi3mobile.assistant.bundles import DAMAGED, FITS, TIGHT, TOO_LARGE, Choice
from phi3mobile.assistant.pictures import SUFFIXES
from phi3mobile.assistant.ui.drawn import Line, Text
from phi3mobile.assistant.ui.parts import Column, Icon, Pressable, TextButton, row
from phi3mobile.assistant.ui.sheets import Sheet
from phi3mobile.assistant.ui.theme import Theme
from phi3mobile.bundle import is_bundle
from phi3mobile.unicode import printable

VERDICTS = {FITS: "fits", TIGHT: "tight", TOO_LARGE: "too large", DAMAGED: "damaged"}
DOCUMENTS = (".txt", ".md", ".html", ".htm", ".pdf", ".epub", ".docx")


def entry(
    theme: Theme, icon: str, title: str, about: str, action: Callable[[], None], note: str = "", bad: bool = False
) -> Pressable:
    """A line of a list: icon, title, a sentence below, a word to the right. Titles are files' names, which may be any bytes."""
    title, about = printable(title), printable(about)
    button = Pressable(theme, action, fill="code", radius=dp(12), size_hint_y=None, padding=(dp(8), dp(8)), spacing=dp(6))
    button.caption = title
    button.add_widget(Icon(theme, icon, pos_hint={"center_y": 0.5}))
    words = Column(pos_hint={"center_y": 0.5}, spacing=dp(2))
    words.add_widget(Line(theme, title, bold=True))
    if about:
        words.add_widget(Text(theme, about, size=theme.small, color="dim", plain=True))
    words.bind(height=lambda _, height: setattr(button, "height", max(height + dp(16), theme.touch)))
    button.add_widget(words)
    if note:
        color = "danger" if bad else "accent"
        wide = theme.small * 5.6
        button.add_widget(
            Line(
                theme,
                note,
                size=theme.small,
                bold=True,
                color=color,
                halign="right",
                size_hint_x=None,
                width=wide,
                pos_hint={"center_y": 0.5},
            )
        )
    return button


def models_sheet(
    theme: Theme,
    choices: list[Choice],
    current: Path | None,
    pick: Callable[[Path], None],
    close: Callable[[], None],
    more: tuple[str, Callable[[], None]] | None,
    where: Path,
) -> Sheet:
    """The bundles on this device, each with the memory that it needs; `more`: a button for finding others."""
    sheet = Sheet(theme, "Models", close)
    for choice in choices:
        note = "open" if choice.path == current else VERDICTS.get(choice.verdict, "")
        bad = choice.verdict in (TOO_LARGE, DAMAGED)
        icon = "alert" if bad else "model"
        sheet.column.add_widget(
            entry(theme, icon, choice.name, choice.sentence, lambda path=choice.path: pick(path), note, bad)
        )
    if not choices:
        sheet.column.add_widget(Text(theme, "There is no model on this device yet.", bold=True, plain=True))
    hint = f"Copy model folders (made by `phi3mobile export`) to {where}"
    sheet.column.add_widget(Text(theme, hint, size=theme.small, color="dim"))
    if more:
        sheet.column.add_widget(row(theme, TextButton(theme, more[0], more[1], icon="folder"), Widget()))
    return sheet


def library_sheet(
    theme: Theme,
    current: Path | None,
    found: list[Path],
    pick: Callable[[Path | None], None],
    close: Callable[[], None],
    more: list[tuple[str, Callable[[], None]]],
) -> Sheet:
    """The document libraries on this device."""
    sheet = Sheet(theme, "Documents", close)
    about = "With a library open, questions are answered from your documents, and the answer names the passages it used."
    sheet.column.add_widget(Text(theme, about, size=theme.small, color="dim", plain=True))
    for path in found:
        note = "open" if path == current else ""
        sheet.column.add_widget(entry(theme, "library", path.stem, str(path.parent), lambda path=path: pick(path), note))
    if not found:
        sheet.column.add_widget(Text(theme, "There is no library on this device yet.", bold=True, plain=True))
    buttons = [TextButton(theme, name, action, icon="folder") for name, action in more]
    if current is not None:
        buttons.append(TextButton(theme, "Close library", lambda: pick(None), icon="close"))
    for button in buttons:
        sheet.column.add_widget(row(theme, button, Widget()))
    return sheet


class Browser(Sheet):
    """Looks through folders. `wanted`: "bundle" (folders with a manifest), "library" (.db), "documents" (files, folders) or
    "picture" (the newest first)."""

    def __init__(self, theme: Theme, start: Path, wanted: str, pick: Callable[[Path], None], close: Callable[[], None]) -> None:
        titles = {
            "bundle": "Find a model",
            "library": "Find a library",
            "documents": "Add documents",
            "picture": "Attach a picture",
        }
        super().__init__(theme, titles[wanted], close)
        self._wanted, self._pick = wanted, pick
        self.open(start)

    def open(self, folder: Path) -> None:
        self.folder = folder
        self.column.clear_widgets()
        self.column.add_widget(Text(self.theme, printable(folder), size=self.theme.small, color="dim", plain=True))
        if self._wanted == "documents":
            button = TextButton(self.theme, "Add this whole folder", lambda: self._pick(folder), strong=True)
            self.column.add_widget(row(self.theme, button, Widget()))
        if folder.parent != folder:
            self.column.add_widget(entry(self.theme, "back", "Up", "", lambda: self.open(folder.parent)))
        try:
            inside = sorted(folder.iterdir(), key=_newest if self._wanted == "picture" else _by_name)
        except OSError as error:
            self.column.add_widget(Text(self.theme, f"This folder can't be read: {error.strerror}.", plain=True))
            return
        shown = 0
        for path in inside:
            if path.name.startswith(".") or shown == 300:
                continue
            shown += self._list(path)
        if not shown:
            self.column.add_widget(BoxLayout(size_hint_y=None, height=dp(8)))
            self.column.add_widget(Text(self.theme, "Nothing here that could be opened.", color="dim", plain=True))

    def _list(self, path: Path) -> bool:
        """Add an entry if the path is of use."""
        if path.is_dir():
            if self._wanted == "bundle" and is_bundle(path):
                self.column.add_widget(entry(self.theme, "model", path.name, "", lambda: self._pick(path), "model"))
            else:
                self.column.add_widget(entry(self.theme, "folder", path.name, "", lambda: self.open(path)))
            return True
        suffixes = {"library": (".db",), "documents": DOCUMENTS, "picture": SUFFIXES}.get(self._wanted, ())
        if path.suffix.lower() in suffixes:
            icon = "picture" if self._wanted == "picture" else "file"
            self.column.add_widget(entry(self.theme, icon, path.name, "", lambda: self._pick(path)))
            return True
        return False


def _by_name(path: Path) -> tuple[bool, float, str]:
    """Folders first."""
    return (not path.is_dir(), 0.0, path.name.lower())


def _newest(path: Path) -> tuple[bool, float, str]:
    """Folders first, by name."""
    is_file, _, name = _by_name(path)
    try:
        return (is_file, -path.stat().st_mtime if is_file else 0.0, name)
    except OSError:  # a link that leads nowhere
        return (is_file, 0.0, name)
