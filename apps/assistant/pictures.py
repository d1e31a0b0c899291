"""Pictures of conversations: files in a folder beside the store, named by their SHA-256, each with a thumbnail made once."""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import struct
import time
import zlib
from collections import deque
from collections.abc import Collection, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from urllib.request import url2pathname

import numpy as np

from phi3mobile.errors import InputError
from phi3mobile.files import sha256, whole_file
from phi3mobile.models.resample import resize
from phi3mobile.pictures import open_picture

# What a picker lists and a pasted path must end with; what a file is tells its content.
SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".avif", ".heic", ".heif")
THUMBNAIL = 320  # pixels of its longer side
_UNUSED_S = 86_400.0  # a picture that no message has may be about to be sent; after a day it was not


@dataclass(frozen=True)
class Picture:
    """A picture that is kept. width, height: pixels as people see it, upright."""

    file: Path  # the bytes that were given; its name is their SHA-256 in hex
    width: int
    height: int

    @property
    def name(self) -> str:
        return self.file.name

    @property
    def thumbnail(self) -> Path:
        """A small PNG of it, upright."""
        return self.file.with_suffix(".png")


class Album:
    """A folder of pictures; it is made with the first."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def add(self, source: Path | bytes) -> Picture:
        """Keep a copy of a picture (its file or bytes) and a thumbnail. InputError, in one line, if that can't be."""
        pixels = open_picture(source)
        height, width = pixels.shape[:2]
        try:
            name = hashlib.sha256(source).hexdigest() if isinstance(source, bytes) else sha256(source)
            picture = Picture(self.folder / name, width, height)
            self.folder.mkdir(parents=True, exist_ok=True)
            if picture.file.is_file() and picture.thumbnail.is_file():
                os.utime(picture.file)
                return picture
            with whole_file(picture.thumbnail) as partial:
                partial.write_bytes(png(_small(pixels)))
            with whole_file(picture.file) as partial:
                if isinstance(source, bytes):
                    partial.write_bytes(source)
                else:
                    shutil.copyfile(source, partial)
        except OSError as error:
            raise InputError(f"the picture can't be kept in {self.folder}: {error.strerror}; make room there") from None
        return picture

    def remove(self, names: Iterable[str]) -> None:
        """Take these pictures off the disk."""
        for name in names:
            for path in (self.folder / name, self.folder / f"{name}.png"):
                with contextlib.suppress(OSError):
                    path.unlink()

    def tidy(self, used: Collection[str]) -> None:
        """Remove what is not used and a day old: pictures of questions that were never sent."""
        with contextlib.suppress(OSError):
            old = [path for path in self.folder.iterdir() if time.time() - path.stat().st_mtime > _UNUSED_S]
            self.remove({path.name.partition(".")[0] for path in old} - set(used))


class Draft:
    """The pictures of a question that is being written. Files are opened in a thread: a big photo takes long."""

    def __init__(self, album: Album) -> None:
        self.pictures: tuple[Picture, ...] = ()
        self._album, self._opening = album, deque[Future[Picture]]()
        self._pool = ThreadPoolExecutor(1, "pictures")

    @property
    def opening(self) -> bool:
        return bool(self._opening)

    def add(self, source: Path | bytes) -> None:
        """Open a picture; `poll` takes it in."""
        self._opening.append(self._pool.submit(self._album.add, source))

    def poll(self) -> list[Picture | BaseException]:
        """What was opened since the last call, and is a part of `pictures` now; or why it can't be."""
        done: list[Picture | BaseException] = []
        while self._opening and self._opening[0].done():
            opened = self._opening.popleft()
            done.append(opened.exception() or opened.result())
        new = (picture for picture in done if isinstance(picture, Picture))
        self.pictures = tuple(dict.fromkeys((*self.pictures, *new)))
        return done

    def remove(self, name: str) -> None:
        self.pictures = tuple(picture for picture in self.pictures if picture.name != name)

    def take(self) -> tuple[Picture, ...]:
        """The pictures, which leave the draft."""
        taken, self.pictures = self.pictures, ()
        return taken

    def close(self) -> None:
        self._pool.shutdown(cancel_futures=True)


def _small(pixels: np.ndarray) -> np.ndarray:
    """A picture uint8 [H, W, 3] with at most THUMBNAIL pixels a side; smaller ones stay."""
    height, width = pixels.shape[:2]
    longer = max(height, width)
    if longer <= THUMBNAIL:
        return pixels
    step = max(1, longer // (4 * THUMBNAIL))  # the rest is averaged
    size = max(1, round(width * THUMBNAIL / longer)), max(1, round(height * THUMBNAIL / longer))
    return resize(pixels[::step, ::step], size)


def png(pixels: np.ndarray) -> bytes:
    """A PNG file of a picture uint8 [H, W, 3]."""
    height, width, _ = pixels.shape
    rows = np.zeros((height, 1 + 3 * width), np.uint8)  # each after a zero: unfiltered
    rows[:, 1:] = pixels.reshape(height, 3 * width)
    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    chunks = ((b"IHDR", head), (b"IDAT", zlib.compress(rows.tobytes())), (b"IEND", b""))
    body = (struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data)) for kind, data in chunks)
    return b"\x89PNG\r\n\x1a\n" + b"".join(body)


def copied(clipboard: Any) -> Path | bytes | None:
    """The picture on the clipboard (Kivy's), or the file that its text names by path or file: URI; None: it is just text."""
    kinds = clipboard.get_types() or []
    for kind in ("image/png", "image/jpeg"):
        if kind in kinds and (data := clipboard.get(kind)):
            return bytes(data)
    return named(clipboard.paste() or "")


def named(text: str) -> Path | None:
    """The picture's file whose path or file: URI a text is; None: it is no such."""
    line = text.strip().strip("'\"")
    if "\n" in line or not line.lower().endswith(SUFFIXES):
        return None
    try:
        path = Path(url2pathname(urlsplit(line).path) if line.startswith("file:") else line).expanduser()
        return path if path.is_absolute() and path.is_file() else None
    except (OSError, RuntimeError, ValueError):
        return None
