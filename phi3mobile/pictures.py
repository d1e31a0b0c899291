"""Pictures from outside as arrays: upright, in RGB, eight bits, over white. Pillow decodes files; arrays need no Pillow."""

from __future__ import annotations

import base64
import hashlib
import importlib
import io
import re
import tempfile
import warnings
from pathlib import Path
from typing import IO, TYPE_CHECKING, cast

import numpy as np

from phi3mobile import extras
from phi3mobile.errors import InputError
from phi3mobile.unicode import printable

if TYPE_CHECKING:
    from PIL import Image

MAX_PIXELS = 128_000_000  # a phone's 108 megapixels pass
# Not what runs other programs (EPS) or is hardly ever met: a decoder less is a hole less.
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "ICO", "JPEG2000", "TGA", "QOI", "AVIF")
_ORIENTATION = 0x0112  # EXIF's tag
_HEIC = (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1")
_BLOCK = 1 << 20  # pixels converted at a time
_IN_MEMORY = 64_000_000  # bytes; more go through a file while Pillow still holds its own copy


def open_picture(source: str | Path | bytes | Image.Image | np.ndarray) -> np.ndarray:
    """A picture as uint8 [height, width, 3]: not to be written to, and rows need not be contiguous.

    source: a file, its bytes, a data: URI, a Pillow image, or an array uint8 [H, W, 3], [H, W, 4] (RGBA) or [H, W]. EXIF's
    orientation is applied; transparency lies over white; of an animation this is the first frame; 16-bit greys are scaled,
    floats count as 0 to 1 if none is larger, else as 0 to 255. InputError, in one line, for all that is no such picture.
    """
    if isinstance(source, np.ndarray):
        return _from_array(source)
    try:
        from PIL import Image
    except ImportError:
        how = extras.command("vision")
        raise InputError(f"reading pictures takes Pillow: {how}; or give an array uint8 [height, width, 3]") from None
    if isinstance(source, Image.Image):
        return _decoded(source, "the picture", close=False)
    if isinstance(source, bytes | bytearray):
        return _read(io.BytesIO(source), "the picture")
    if isinstance(source, str) and source.startswith("data:"):
        return _read(io.BytesIO(_from_uri(source)), "the picture")
    if not isinstance(source, str | Path):
        raise InputError(
            f"a picture is a file, bytes, a Pillow image or an array uint8 [height, width, 3], not {type(source).__name__}"
        )
    name = printable(source)
    try:
        path = Path(source).expanduser()
        if path.is_dir():
            raise InputError(f"{name} is a folder; give a picture's file")
        if not path.exists():
            raise InputError(f"{name} does not exist; give a picture's file")
        if not path.is_file():
            raise InputError(f"{name} is not a regular file; give a picture's file")
        file = path.open("rb")
    except (OSError, RuntimeError) as error:
        raise InputError(f"{name[:200]} cannot be read: {getattr(error, 'strerror', None) or error}") from None
    with file:
        return _read(file, name)


def data_uri(path: Path) -> str:
    """A file's bytes as one text that open_picture reads. InputError if it can't be read."""
    try:
        data = path.read_bytes()
    except OSError as error:
        raise InputError(f"{printable(path)} cannot be read: {error.strerror}; give a picture's file") from None
    return "data:;base64," + base64.b64encode(data).decode()


def picture_hash(picture: np.ndarray) -> str:
    """SHA-256 of an opened picture's shape and bytes, in hex: equal pictures have equal ones, whatever file they came in."""
    digest = hashlib.sha256(str(picture.shape).encode())
    for rows in _blocks(*picture.shape[:2]):
        digest.update(np.ascontiguousarray(picture[rows]).data)
    return digest.hexdigest()


def _from_uri(uri: str) -> bytes:
    head, comma, data = uri.partition(",")
    if not comma or not head.endswith(";base64"):
        raise InputError(f"{head[:60]!r} is no data: URI of a picture; allowed is data:image/...;base64,...")
    try:
        return base64.b64decode(data, validate=True)
    except ValueError:
        raise InputError("a data: URI's picture is not base64; encode its bytes again") from None


def _blocks(height: int, width: int) -> list[slice]:
    step = max(1, _BLOCK // max(1, width))
    return [slice(top, min(top + step, height)) for top in range(0, height, step)]


def _from_array(picture: np.ndarray) -> np.ndarray:
    fits = picture.dtype == np.uint8 and (picture.ndim == 2 or (picture.ndim == 3 and picture.shape[2] in (3, 4)))
    if not fits:
        raise InputError(
            f"an array {picture.dtype} {list(picture.shape)} is no picture: give uint8 [height, width, 3], "
            "[height, width, 4] or [height, width]"
        )
    height, width = picture.shape[:2]
    _check_size(width, height, "the picture")
    if picture.ndim == 2:
        return np.repeat(picture[..., None], 3, axis=2)
    if picture.shape[2] == 3:
        return picture
    pixels = np.empty((height, width, 3), np.uint8)
    for rows in _blocks(height, width):
        pixels[rows] = _over_white(picture[rows])
    return pixels


def _check_size(width: int, height: int, name: str) -> None:
    if not width * height:
        raise InputError(f"{name} has {width} × {height} pixels; give one with at least one pixel each way")
    if width * height > MAX_PIXELS:
        raise InputError(_too_big(name, width * height))


def _too_big(name: str, pixels: int) -> str:
    return f"{name} has {pixels / 1e6:.0f} megapixels, at most {MAX_PIXELS / 1e6:.0f} are read: make it smaller"


def _read(file: IO[bytes], name: str) -> np.ndarray:
    """The picture in a file that has just been opened."""
    from PIL import Image, UnidentifiedImageError

    head = file.read(64)
    file.seek(0)
    if not head:
        raise InputError(f"{name} is empty; give a picture's file")
    formats: tuple[str, ...] = FORMATS
    avif = head[4:8] == b"ftyp" and (b"avif" in head or b"avis" in head)
    if head[4:8] == b"ftyp" and not avif and any(brand in head for brand in _HEIC):
        _register_heic(name)
        formats = (*FORMATS, "HEIF")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow's own limit, lower than ours, and odd EXIF
        try:
            image = Image.open(file, formats=formats)
        except UnidentifiedImageError:
            if avif:
                raise InputError(f"{name} is AVIF that Pillow cannot read here: save it as JPEG or PNG") from None
            raise InputError(f"{name} is not a picture that can be read: give JPEG, PNG, WebP, GIF, BMP or TIFF") from None
        except Image.DecompressionBombError as error:  # far above our limit
            (pixels,) = re.findall(r"\d+", str(error))[:1] or [0]
            raise InputError(_too_big(name, int(pixels))) from None
        except Exception as error:  # decoders raise whatever bytes from outside make them
            raise _damaged(name, error) from None
        with image:
            return _decoded(image, name, close=True)


def _damaged(name: str, error: Exception) -> InputError:
    if isinstance(error, MemoryError):
        return InputError(f"{name} does not fit into memory: make it smaller")
    reason = " ".join(str(error).split())[:200] or type(error).__name__
    return InputError(f"{name} is cut short or damaged ({reason}): copy it again, or save it anew")


def _register_heic(name: str) -> None:
    try:
        plugin = importlib.import_module("pillow_heif")
    except ImportError:
        raise InputError(f"{name} is HEIC: pip install pillow-heif, or save it as JPEG or PNG") from None
    plugin.register_heif_opener()


def _decoded(image: Image.Image, name: str, close: bool) -> np.ndarray:
    """An image's pixels, upright. close: it is ours, so its memory may go as soon as they are out."""
    _check_size(*image.size, name)
    try:
        image.load()
    except Exception as error:
        raise _damaged(name, error) from None
    try:
        orientation = image.getexif().get(_ORIENTATION, 1)
    except Exception:  # broken EXIF: shown as it lies, as viewers do
        orientation = 1
    return _upright(_pixels(image, name, close), orientation)


def _pixels(image: Image.Image, name: str, close: bool) -> np.ndarray:
    """uint8 [H, W, 3]. Pillow's copy takes four bytes a pixel: ours of a big picture waits in a file until that is freed."""
    (width, height), white = image.size, _white(image, name)
    size = 3 * width * height
    try:
        with tempfile.TemporaryFile() if size > _IN_MEMORY else io.BytesIO() as store:
            for rows in _blocks(height, width):
                block = _rgb(image.crop((0, rows.start, width, rows.stop)), white)
                store.write(np.ascontiguousarray(block).data)
            if close:
                image.close()
            store.seek(0)
            return np.frombuffer(store.read(), np.uint8).reshape(height, width, 3)
    except ValueError as error:
        raise InputError(f"{name} has values of the kind {image.mode} ({error}): save it as RGB") from None
    except OSError as error:
        raise InputError(f"{name}: {size / 1e6:.0f} MB could not be kept in {tempfile.gettempdir()}: {error}") from None


def _white(image: Image.Image, name: str) -> float | None:
    """The value that is white in an image of one channel of more than eight bits; None for all others."""
    if image.mode.startswith("I;16"):
        return 65535
    if image.mode not in ("I", "F"):
        return None
    lowest, highest = cast(tuple[float, float], image.getextrema())
    limit = 65535 if image.mode == "I" else 255
    if not 0 <= lowest <= highest <= limit:
        raise InputError(f"{name} has values from {lowest} to {highest}, 0 to {limit} are read: scale them, or save 8 bits")
    if image.mode == "I":  # what Pillow makes of 16-bit files; of 8 bits if somebody widened them
        return 65535 if highest > 255 else 255
    return 255 if highest > 1 else 1


def _rgb(image: Image.Image, white: float | None) -> np.ndarray:
    """uint8 [H, W, 3] of a part of an image. ValueError for colours that Pillow cannot convert."""
    if white is not None:
        grey = np.asarray(image).astype(np.float64)
        if np.isnan(grey).any():
            raise ValueError("not a number")
        return np.repeat(np.rint(grey * (255 / white)).astype(np.uint8)[..., None], 3, axis=2)
    if image.has_transparency_data:
        return _over_white(np.asarray(image.convert("RGBA")))
    return np.asarray(image.convert("RGB"))


def _over_white(pixels: np.ndarray) -> np.ndarray:
    """uint8 [H, W, 4], straight alpha -> uint8 [H, W, 3], rounded to nearest."""
    alpha = pixels[..., 3:].astype(np.uint16)
    return ((pixels[..., :3] * alpha + 255 * (255 - alpha) + 127) // 255).astype(np.uint8)


def _upright(pixels: np.ndarray, orientation: int) -> np.ndarray:
    """A view of the pixels as EXIF's orientation 1 to 8 wants them seen."""
    if orientation in (5, 6, 7, 8):
        pixels = pixels.transpose(1, 0, 2)
    if orientation in (3, 4, 7, 8):
        pixels = pixels[::-1]
    return pixels[:, ::-1] if orientation in (2, 3, 6, 7) else pixels
