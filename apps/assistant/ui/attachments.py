"""Pictures as widgets: a thumbnail, those of a question in its bubble, those of the draft with a button that removes each."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from kivy.core.image import Image as CoreImage
from kivy.graphics import Color, Ellipse, Line, RoundedRectangle
from kivy.metrics import dp
from kivy.uix.behaviors import ButtonBehavior
from kivy.uix.boxlayout import BoxLayout
from kivy.uix.relativelayout import RelativeLayout
from kivy.uix.scrollview import ScrollView
from kivy.uix.stacklayout import StackLayout
from kivy.uix.widget import Widget

from phi3mobile.assistant.pictures import Picture
from phi3mobile.assistant.ui.theme import Theme

SHOWN = (200, 160)  # dp, the most of a picture in the conversation
DRAFT = 84  # dp, the height of the draft's pictures


class Thumbnail(Widget):
    """A picture's thumbnail with round corners, as large as fits `wide` x `high` (pixels of the screen), in proportion."""

    def __init__(self, theme: Theme, picture: Picture, wide: float, high: float, **kwargs) -> None:
        self.picture = picture
        scale = min(wide / picture.width, high / picture.height)
        size = (max(picture.width * scale, theme.touch), max(picture.height * scale, theme.touch))
        super().__init__(size_hint=(None, None), size=size, **kwargs)
        self._drawn = (picture.width * scale, picture.height * scale)
        self.texture = _texture(picture)
        with self.canvas:
            Color(*theme.color("line"))
            self._ground = RoundedRectangle(radius=[dp(10)], size=size)
            Color(1, 1, 1, 1 if self.texture else 0)
            corner = min(dp(10), min(self._drawn) / 2) if min(size) == min(self._drawn) else 0
            self._image = RoundedRectangle(radius=[corner], size=self._drawn, texture=self.texture)
        self.bind(pos=self._place)
        self._place()

    def _place(self, *_: object) -> None:
        self._ground.pos = self.pos
        self._image.pos = (self.center_x - self._drawn[0] / 2, self.center_y - self._drawn[1] / 2)


def _texture(picture: Picture):
    """None where the file is gone or damaged: its place stays."""
    try:
        return CoreImage(str(picture.thumbnail)).texture if picture.thumbnail.is_file() else None
    except Exception:  # Kivy's loaders raise what their libraries do
        return None


def shown(theme: Theme, pictures: Sequence[Picture], wide: float) -> StackLayout:
    """The pictures of a question, in lines of at most `wide` pixels of the screen."""
    stack = StackLayout(size_hint_y=None, spacing=dp(6), padding=(0, dp(2), 0, dp(6)))
    stack.bind(minimum_height=stack.setter("height"))
    for picture in pictures:
        stack.add_widget(Thumbnail(theme, picture, min(dp(SHOWN[0]), wide), dp(SHOWN[1])))
    return stack


class Cross(ButtonBehavior, Widget):
    """A cross on a disc that stands out from any picture; as large as a finger, though drawn smaller."""

    icon = "close"

    def __init__(self, theme: Theme, action: Callable[[], None]) -> None:
        super().__init__(size_hint=(None, None), size=(theme.touch, theme.touch))
        with self.canvas:
            Color(*theme.color("surface"))
            self._disc = Ellipse(size=(dp(26), dp(26)))
            Color(*theme.color("text"))
            self._lines = [Line(width=dp(1)), Line(width=dp(1))]
        self.bind(on_release=lambda *_: action(), pos=self._place)
        self._place()

    def _place(self, *_: object) -> None:
        x, y, arm = self.center_x, self.center_y, dp(5)
        self._disc.pos = (x - dp(13), y - dp(13))
        self._lines[0].points = (x - arm, y - arm, x + arm, y + arm)
        self._lines[1].points = (x - arm, y + arm, x + arm, y - arm)


class Attachments(ScrollView):
    """The draft's pictures in one line above the field; no height without any."""

    def __init__(self, theme: Theme, remove: Callable[[str], None]) -> None:
        super().__init__(size_hint_y=None, height=0, do_scroll_y=False, bar_width=0)
        self._theme, self._remove = theme, remove
        self._line = BoxLayout(size_hint_x=None, spacing=dp(8), padding=(dp(2), 0))
        self._line.bind(minimum_width=self._line.setter("width"))
        self.add_widget(self._line)

    def show(self, pictures: Sequence[Picture]) -> None:
        self._line.clear_widgets()
        self.height = max(dp(DRAFT), 1.6 * self._theme.touch) if pictures else 0
        for picture in pictures:
            self._line.add_widget(self._tile(picture))

    def _tile(self, picture: Picture) -> RelativeLayout:
        """A thumbnail with its cross in the corner, which a finger hits."""
        theme = self._theme
        thumbnail = Thumbnail(theme, picture, 2 * self.height, self.height)
        wide = max(thumbnail.width, 1.4 * theme.touch)
        tile = RelativeLayout(size_hint=(None, None), size=(wide, self.height))
        thumbnail.pos = ((wide - thumbnail.width) / 2, (self.height - thumbnail.height) / 2)
        tile.add_widget(thumbnail)
        close = Cross(theme, lambda: self._remove(picture.name))
        close.pos = (wide - close.width, self.height - close.height)
        tile.add_widget(close)
        return tile
