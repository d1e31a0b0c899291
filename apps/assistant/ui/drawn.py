"""Text as widgets: mixed scripts, right to left, emoji; a text field that draws the same."""

from __future__ import annotations

from functools import lru_cache

from kivy.cache import Cache
from kivy.core.text import Label as CoreLabel
from kivy.core.text.markup import MarkupLabel
from kivy.uix.label import Label
from kivy.uix.textinput import TextInput
from kivy.utils import escape_markup, get_hex_from_color

from phi3mobile.assistant.text.blocks import spans
from phi3mobile.assistant.text.runs import BASE, has_rtl, is_rtl, runs, shown, visual, visual_lines
from phi3mobile.assistant.ui.theme import Theme


def markup(text: str, base: str = BASE) -> str:
    """Kivy markup of text in drawing order: each run in its font."""
    parts = []
    for font, run in runs(shown(text)):
        escaped = escape_markup(run)
        parts.append(escaped if font == base or (base == "mono" and font == BASE) else f"[font={font}]{escaped}[/font]")
    return "".join(parts)


def styled(text: str, code_color: str) -> str:
    """Kivy markup of one left-to-right block with **bold**, *italic* and `code`."""
    parts = []
    for style, span in spans(text):
        if style == "bold":
            parts.append(f"[b]{markup(span)}[/b]")
        elif style == "italic":
            parts.append(f"[i]{markup(span)}[/i]")
        elif style == "code":
            parts.append(f"[font=mono][color={code_color}]{markup(span, 'mono')}[/color][/font]")
        else:
            parts.append(markup(span))
    return "".join(parts)


@lru_cache(maxsize=64)
def _ruler(font: str, size: float, bold: bool) -> CoreLabel:
    ruler = CoreLabel(font_name=font, font_size=size, bold=bold, font_hinting=None)
    ruler.resolve_font_name()
    return ruler


def width_of(text: str, size: float, bold: bool = False, base: str = BASE) -> float:
    """Pixels that `text`, in drawing order, takes on one line."""
    return sum(_ruler(base if font == BASE else font, size, bold).get_extents(run)[0] for font, run in runs(shown(text)))


class Text(Label):
    """A block of text as high as it must be. `mono`: as code; `bold`; `plain`: no Markdown in it."""

    def __init__(
        self,
        theme: Theme,
        text: str = "",
        *,
        size: float | None = None,
        color: str = "text",
        bold: bool = False,
        mono: bool = False,
        plain: bool = False,
        halign: str = "left",
        lines: int = 0,
        **kwargs,
    ) -> None:
        super().__init__(
            markup=True,
            font_name="mono" if mono else BASE,
            font_size=size or theme.text,
            color=theme.color(color),
            bold=bold,
            font_hinting=None,
            size_hint_y=None,
            valign="top",
            line_height=1.0,
            **kwargs,
        )
        self._mono, self._plain, self._halign, self._lines = mono, plain or mono, halign, lines
        self._code_color = get_hex_from_color(theme.color("accent"))
        self.source = text
        self.bind(width=lambda *_: self._fit(), texture_size=self._high)
        self._fit()

    def show(self, text: str) -> None:
        """Draw another text."""
        if text != self.source:
            self.source = text
            self._fit()

    def _high(self, _: object, size: tuple[float, float]) -> None:
        self.height = size[1]

    def _fit(self) -> None:
        if self._lines:
            self.shorten, self.max_lines, self.shorten_from, self.ellipsis_options = True, self._lines, "right", {}
        self.text_size = (self.width, None)
        self.halign = "right" if is_rtl(self.source) and self._halign == "left" else self._halign
        self.text = self._markup()

    def _markup(self) -> str:
        if has_rtl(self.source):
            bare = self.source if self._plain else "".join(span for _, span in spans(self.source))
            width = max(self.width - 2, self.font_size)
            lines = [
                line
                for paragraph in bare.split("\n")
                for line in visual_lines(paragraph, width, lambda text: width_of(text, self.font_size, self.bold))
            ]
            return markup("\n".join(lines[: self._lines] if self._lines else lines))
        if self._mono:
            return markup(self.source, "mono")
        return markup(self.source) if self._plain else styled(self.source, self._code_color)


class Line(Text):
    """One line that is cut with an ellipsis."""

    def __init__(self, theme: Theme, text: str = "", **kwargs) -> None:
        super().__init__(theme, text, plain=True, lines=1, **kwargs)


class Field(TextInput):
    """A text field that shapes and orders what it draws; its text stays as it was typed."""

    def __init__(self, theme: Theme, **kwargs) -> None:
        self._ink = theme.color("text")  # in the textures themselves: the canvas would tint emoji too
        super().__init__(
            font_name=BASE,
            font_size=theme.text,
            background_normal="",
            background_active="",
            background_color=(0, 0, 0, 0),
            foreground_color=(1, 1, 1, 1),
            hint_text_color=theme.color("dim"),
            cursor_color=theme.color("accent"),
            cursor_width="2dp",
            selection_color=(*theme.color("accent")[:3], 0.35),
            **kwargs,
        )
        self.bind(text=self._align)

    def _create_line_label(self, text: str, hint: bool = False):
        if hint:
            return super()._create_line_label(text, hint=True)
        plain = text.replace("\n", "").replace("\t", " " * self.tab_width)
        key = f"{plain}\0{self.font_size}\0{self._ink}"
        texture = Cache.get("textinput.label", key)
        if texture is None:
            # A space where there is nothing: a texture must have a size.
            label = MarkupLabel(text=markup(visual(plain)) or " ", font_name=BASE, font_size=self.font_size, color=self._ink)
            label.refresh()
            texture = label.texture
            Cache.append("textinput.label", key, texture)
        return texture

    def _align(self, *_: object) -> None:
        self.halign = "right" if is_rtl(self.text) else "left"

    def _get_text_width(self, text: str, tab_width: int, _label_cached) -> float:
        if all(character < "\u0590" for character in text):
            return super()._get_text_width(text, tab_width, _label_cached)
        return width_of(visual(text.replace("\t", " " * tab_width)), self.font_size)

    def cursor_offset(self) -> float:
        offset, row = super().cursor_offset(), int(self.cursor_row)
        if row < len(self._lines) and is_rtl(self._lines[row]):
            return self._get_text_width(self._lines[row], self.tab_width, self._label_cached) - offset
        return offset

    def get_cursor_from_xy(self, x: float, y: float) -> tuple[int, int]:
        column, row = super().get_cursor_from_xy(x, y)
        if row < len(self._lines) and is_rtl(self._lines[row]):
            return len(self._lines[row]) - column, row
        return column, row
