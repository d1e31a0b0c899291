"""Colors, sizes, fonts and icons; one Theme is handed to every widget, and a change of it builds the window anew."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from kivy.core.text import LabelBase
from kivy.metrics import dp, sp
from kivy.utils import get_color_from_hex as rgb

FONTS = Path(__file__).parents[1] / "fonts"
# Of Material Design Icons (see fonts/LICENSE-Icons.txt).
ICONS = {
    "menu": "\U000f035c",
    "plus": "\U000f0415",
    "send": "\U000f005d",
    "stop": "\U000f04db",
    "copy": "\U000f018f",
    "again": "\U000f0450",
    "edit": "\U000f03eb",
    "close": "\U000f0156",
    "delete": "\U000f0a7a",
    "settings": "\U000f0493",
    "chart": "\U000f012a",
    "library": "\U000f125f",
    "file": "\U000f09ee",
    "folder": "\U000f0256",
    "model": "\U000f061a",
    "alert": "\U000f05d6",
    "check": "\U000f012c",
    "back": "\U000f004d",
    "chat": "\U000f0365",
    "down": "\U000f0045",
    "picture": "\U000f087c",
}
# Scripts that are not bundled are drawn by the system's fonts, where it has one of these.
_CJK = (
    "/system/fonts/NotoSansCJK-Regular.ttc",
    "/System/Library/Fonts/PingFang.ttc",
    "/System/Library/Fonts/Hiragino Sans GB.ttc",
    "/usr/share/fonts/opentype/noto/NotoSansCJK-Regular.ttc",
    "/usr/share/fonts/truetype/wqy/wqy-microhei.ttc",
)
LIGHT = {
    "background": "f6f7f9",
    "surface": "ffffff",
    "text": "1b1d22",
    "dim": "5a606b",
    "accent": "2757d6",
    "on_accent": "ffffff",
    "bubble": "dfe7fd",
    "line": "dfe2e8",
    "danger": "b3261e",
    "warn": "fdecea",
    "code": "eef0f4",
    "plot": "2757d6",
}
DARK = {
    "background": "121317",
    "surface": "1c1e24",
    "text": "e8e9ed",
    "dim": "a3a8b3",
    "accent": "8fb2ff",
    "on_accent": "0c1a3a",
    "bubble": "27375f",
    "line": "31343d",
    "danger": "f4b6b1",
    "warn": "3b2222",
    "code": "262932",
    "plot": "8fb2ff",
}
Color = tuple[float, float, float, float]


@dataclass(frozen=True)
class Theme:
    dark: bool
    scale: float  # of text
    phone: bool  # a narrow window: one column

    def color(self, name: str) -> Color:
        return tuple(rgb((DARK if self.dark else LIGHT)[name]))

    @property
    def text(self) -> float:
        return sp(16) * self.scale

    @property
    def small(self) -> float:
        return sp(13) * self.scale

    @property
    def title(self) -> float:
        return sp(18) * self.scale

    @property
    def touch(self) -> float:
        """The least height and width of what a finger presses."""
        return dp(44) * max(1.0, min(self.scale, 1.4))

    @property
    def gap(self) -> float:
        return dp(8)

    @property
    def margin(self) -> float:
        return dp(12) if self.phone else dp(20)


def register_fonts() -> None:
    """Names that `runs` gives, to files."""
    for name, regular, bold in (
        ("arabic", "NotoSansArabic-Regular", "NotoSansArabic-Bold"),
        ("hebrew", "NotoSansHebrew-Regular", "NotoSansHebrew-Bold"),
        ("mono", "NotoSansMono-Regular", None),
        ("math", "NotoSansMath-Regular", None),
        ("signs", "NotoSansSymbols2-Regular", None),
        ("emoji", "Twemoji", "Twemoji"),
        ("icons", "Icons", None),
    ):
        LabelBase.register(name, str(FONTS / f"{regular}.ttf"), fn_bold=str(FONTS / f"{bold}.ttf") if bold else None)
    regular, italic, bold = (str(FONTS / f"NotoSans-{style}.ttf") for style in ("Regular", "Italic", "Bold"))
    LabelBase.register("base", regular, fn_italic=italic, fn_bold=bold)
    cjk = next((path for path in _CJK if Path(path).is_file()), str(FONTS / "NotoSans-Regular.ttf"))
    LabelBase.register("cjk", cjk)


def system_is_dark() -> bool:
    """What the system's own setting says, where it can be asked."""
    from kivy.utils import platform

    if platform == "android":
        from jnius import autoclass

        activity = autoclass("org.kivy.android.PythonActivity").mActivity
        return activity.getResources().getConfiguration().uiMode & 0x30 == 0x20  # UI_MODE_NIGHT_MASK, UI_MODE_NIGHT_YES
    if platform == "ios":
        from pyobjus import autoclass

        style = autoclass("UIScreen").mainScreen().traitCollection.userInterfaceStyle
        return int(style) == 2  # UIUserInterfaceStyleDark
    return False


__all__ = ["ICONS", "Color", "Theme", "register_fonts", "system_is_dark"]
