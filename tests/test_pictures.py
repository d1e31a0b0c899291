"""Pictures of every kind become upright RGB of eight bits; all that is no picture is refused in one line."""

import io
import sys
import types
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import AvifImagePlugin, Image, ImageOps, features

from phi3mobile import pictures
from phi3mobile.errors import InputError
from phi3mobile.pictures import data_uri, open_picture, picture_hash

RED, GREEN, BLUE, WHITE = (200, 10, 20), (10, 200, 20), (20, 10, 200), (255, 255, 255)


def refused(source, *parts):
    """The one line that refuses it."""
    with pytest.raises(InputError) as error:
        open_picture(source)
    line = str(error.value)
    assert "\n" not in line and all(part in line for part in parts), line
    return line


def corners(width=6, height=4):
    """An image whose four quarters differ."""
    pixels = np.zeros((height, width, 3), np.uint8)
    pixels[: height // 2, : width // 2], pixels[: height // 2, width // 2 :] = RED, GREEN
    pixels[height // 2 :, : width // 2], pixels[height // 2 :, width // 2 :] = BLUE, WHITE
    return Image.fromarray(pixels)


def saved(image, path, **options):
    image.save(path, **options)
    return path


def png(image):
    file = io.BytesIO()
    image.save(file, "PNG")
    return file.getvalue()


def test_a_file_its_bytes_an_image_and_an_array_are_the_same(tmp_path):
    image = corners()
    path = saved(image, tmp_path / "a.png")
    expected = np.asarray(image)
    for source in (path, str(path), path.read_bytes(), bytearray(path.read_bytes()), image, expected):
        picture = open_picture(source)
        assert picture.dtype == np.uint8 and np.array_equal(picture, expected)
    assert image.getpixel((0, 0)) == RED  # still open


def test_a_home_folder_is_expanded(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    saved(corners(), tmp_path / "a.png")
    assert open_picture("~/a.png").shape == (4, 6, 3)


@pytest.mark.parametrize("ending", ["jpg", "png", "tif", "webp"])
@pytest.mark.parametrize("orientation", [*range(1, 9), 0, 9])
def test_orientation_is_applied(ending, orientation, tmp_path):
    image = corners(64, 32)
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = saved(image, tmp_path / f"a.{ending}", exif=exif, **({"lossless": True} if ending == "webp" else {}))
    with Image.open(path) as file:
        upright = ImageOps.exif_transpose(file)
        assert np.array_equal(open_picture(path), np.asarray(upright))
        assert upright.size == ((32, 64) if orientation in (5, 6, 7, 8) else (64, 32))
    with Image.open(path) as file:
        assert np.array_equal(open_picture(file), np.asarray(upright))


def test_orientation_of_a_big_picture_by_blocks(tmp_path, monkeypatch):
    monkeypatch.setattr(pictures, "_BLOCK", 100)
    monkeypatch.setattr(pictures, "_IN_MEMORY", 0)  # through a file
    pixels = np.random.default_rng(0).integers(0, 256, (37, 53, 3), np.uint8)
    exif = Image.Exif()
    exif[0x0112] = 6
    path = saved(Image.fromarray(pixels), tmp_path / "a.png", exif=exif)
    assert np.array_equal(open_picture(path), np.rot90(pixels, -1))


def test_broken_exif_is_no_orientation(tmp_path):
    path = saved(corners(), tmp_path / "a.jpg", exif=b"Exif\0\0MM\0*\0\0\0\x08\xff\xff broken")
    assert open_picture(path).shape == (4, 6, 3)


def test_transparency_lies_over_white(tmp_path):
    pixels = np.zeros((2, 3, 4), np.uint8)
    pixels[0, 0] = (*RED, 255)
    pixels[0, 1] = (*RED, 0)
    pixels[0, 2] = (*RED, 100)
    expected = np.full((2, 3, 3), 255, np.uint8)
    expected[0, 0] = RED
    expected[0, 2] = [round((c * 100 + 255 * 155) / 255) for c in RED]
    path = saved(Image.fromarray(pixels), tmp_path / "a.png")
    assert np.array_equal(open_picture(path), expected)
    assert np.array_equal(open_picture(pixels), expected)


def test_grey_with_transparency():
    image = Image.new("LA", (2, 1), (40, 255))
    image.putpixel((1, 0), (40, 0))
    assert open_picture(png(image)).tolist() == [[[40] * 3, [255] * 3]]


def test_a_transparent_colour():
    assert open_picture(png_with(Image.new("L", (1, 1), 7), transparency=7)).tolist() == [[[255] * 3]]
    assert open_picture(png_with(Image.new("RGB", (1, 1), RED), transparency=RED)).tolist() == [[[255] * 3]]
    assert open_picture(png_with(Image.new("RGB", (1, 1), RED), transparency=BLUE)).tolist() == [[list(RED)]]


def png_with(image, **options):
    file = io.BytesIO()
    image.save(file, "PNG", **options)
    return file.getvalue()


@pytest.mark.parametrize("ending", ["png", "gif", "bmp", "tif"])
def test_palettes(ending, tmp_path):
    image = corners().convert("P", palette=Image.Palette.ADAPTIVE)
    path = saved(image, tmp_path / f"a.{ending}")
    assert np.array_equal(open_picture(path), np.asarray(corners()))


def test_palettes_with_transparency(tmp_path):
    image = Image.new("P", (3, 1))
    image.putpalette([*RED, *GREEN, *BLUE])
    image.putdata([0, 1, 2])
    one, some = tmp_path / "a.gif", tmp_path / "a.png"
    image.save(one, transparency=1)
    image.save(some, transparency=bytes([255, 0, 51]))
    assert open_picture(one).tolist() == [[list(RED), [255] * 3, list(BLUE)]]
    assert open_picture(some).tolist() == [[list(RED), [255] * 3, [round((c * 51 + 255 * 204) / 255) for c in BLUE]]]


def test_an_animation_is_its_first_frame(tmp_path):
    frames = [Image.new("RGB", (5, 4), colour) for colour in (RED, GREEN, BLUE)]
    for name, options in (("a.gif", {}), ("a.webp", {"lossless": True}), ("a.png", {}), ("a.tif", {})):
        path = tmp_path / name
        frames[0].save(path, save_all=True, append_images=frames[1:], **options)
        assert np.array_equal(open_picture(path), np.asarray(frames[0])), name


@pytest.mark.parametrize("ending", ["png", "tif", "pgm"])
def test_16_bit_greys_are_scaled(ending, tmp_path):
    levels = np.array([[0, 1, 128, 129, 257, 300, 32768, 65535]], np.uint16)
    path = saved(Image.fromarray(levels), tmp_path / f"a.{ending}")
    expected = np.round(levels / 257).astype(np.uint8)
    assert expected.tolist() == [[0, 0, 0, 1, 1, 1, 128, 255]]
    assert np.array_equal(open_picture(path), expected[..., None].repeat(3, 2))


def test_32_bit_integers():
    assert open_picture(Image.fromarray(np.array([[0, 514, 65535]], np.int32)))[0, :, 0].tolist() == [0, 2, 255]
    assert open_picture(Image.new("L", (1, 1), 77).convert("I"))[0, 0].tolist() == [77] * 3
    refused(Image.fromarray(np.array([[0, 70000]], np.int32)), "values from 0 to 70000, 0 to 65535 are read")
    refused(Image.fromarray(np.array([[-1, 7]], np.int32)), "-1")


def test_floats(tmp_path):
    for values, expected in (([0, 0.5, 1], [0, 128, 255]), ([0, 2, 254.6], [0, 2, 255])):
        image = Image.fromarray(np.array([values], np.float32))
        assert open_picture(saved(image, tmp_path / "a.tif"))[0, :, 2].tolist() == expected
    for values, part in (([0, 256], "256"), ([-0.5, 1], "-0.5"), ([np.nan, 1], ""), ([0.5, np.nan], ""), ([np.inf], "inf")):
        refused(Image.fromarray(np.array([values], np.float32)), part)


def test_one_bit_cmyk_and_other_colours(tmp_path):
    bits = Image.fromarray(np.array([[True, False]]))
    assert open_picture(saved(bits, tmp_path / "a.png")).tolist() == [[[255] * 3, [0] * 3]]
    cmyk = Image.new("CMYK", (16, 16), (0, 255, 255, 0))
    for name in ("a.jpg", "a.tif"):
        assert np.abs(open_picture(saved(cmyk, tmp_path / name)).astype(int) - (255, 0, 0)).max() < 4
    for mode in ("YCbCr", "HSV", "RGBX", "RGBa"):
        assert np.abs(open_picture(corners().convert(mode)).astype(int) - np.asarray(corners())).max() < 6
    refused(Image.new("La", (3, 3)), "values of the kind La", "save it as RGB")


def test_arrays():
    grey = np.arange(6, dtype=np.uint8).reshape(2, 3)
    assert np.array_equal(open_picture(grey), grey[..., None].repeat(3, 2))
    turned = np.asarray(corners())[::-1].transpose(1, 0, 2)
    assert open_picture(turned) is turned
    for wrong in (
        np.zeros((4, 4, 3)),
        np.zeros((3, 4, 4), np.float32),
        np.zeros((3, 8, 8), np.uint8),
        np.zeros((1, 4, 4, 3), np.uint8),
        np.zeros((4, 4, 3), bool),
        np.zeros((4, 4, 3), np.uint16),
        np.zeros(7, np.uint8),
    ):
        refused(wrong, f"{wrong.dtype} {list(wrong.shape)}", "give uint8 [height, width, 3]")
    refused(np.zeros((0, 4, 3), np.uint8), "4 × 0 pixels")
    refused(Image.new("RGB", (0, 3)), "0 × 3 pixels")


@pytest.mark.parametrize("source", [None, 7, io.BytesIO(b"x"), [[1, 2]], ("a.png",)])
def test_what_is_no_picture_at_all(source):
    refused(source, "a picture is a file, bytes, a Pillow image or an array", type(source).__name__)


def test_files_that_are_not_there_or_no_files(tmp_path):
    refused(tmp_path / "none.jpg", "none.jpg does not exist")
    refused(str(tmp_path), "is a folder")
    refused("a\0b.png", "does not exist")
    refused("x" * 5000, "cannot be read")
    refused("~nobody-of-this-name/a.png", "cannot be read")
    if Path("/dev/null").exists():
        refused("/dev/null", "not a regular file")
    refused(tmp_path / "\x1b[2Jevil\nname.png", "does not exist", "\\x1b")


def test_files_that_are_no_pictures(tmp_path):
    refused(b"", "is empty")
    (tmp_path / "a.jpg").touch()
    refused(tmp_path / "a.jpg", "a.jpg is empty")
    for text in (
        b"hello",
        b"%PDF-1.7\n",
        b"<svg xmlns='http://www.w3.org/2000/svg'/>",
        b"%!PS-Adobe-3.0 EPSF-3.0\n" + b"x" * 99,
    ):
        refused(text, "not a picture that can be read: give JPEG, PNG")


@pytest.mark.parametrize("ending", ["png", "jpg", "gif", "bmp", "tif", "webp", "ppm"])
def test_a_file_cut_short(ending, tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (80, 80, 3), np.uint8)
    path = saved(Image.fromarray(pixels), tmp_path / f"a.{ending}")
    whole = path.read_bytes()
    for part in (0.3, 0.6):
        path.write_bytes(whole[: int(len(whole) * part)])
        refused(path, f"a.{ending}")


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.sampled_from(["PNG", "JPEG", "GIF", "TIFF", "WEBP", "BMP", "ICO", "TGA", "PPM"]), st.data())
def test_damaged_files_end_in_a_picture_or_one_line(kind, data):
    file = io.BytesIO()
    corners(24, 20).save(file, kind)
    damaged = bytearray(file.getvalue())
    for _ in range(data.draw(st.integers(1, 4))):
        damaged[data.draw(st.integers(0, len(damaged) - 1))] = data.draw(st.integers(0, 255))
    try:
        picture = open_picture(bytes(damaged[: data.draw(st.integers(1, len(damaged)))]))
    except InputError as error:
        assert "\n" not in str(error)
    else:
        assert picture.dtype == np.uint8 and picture.ndim == 3 and picture.shape[2] == 3 and picture.size


def header(width, height):
    """A PNG that claims a size and has no pixels."""
    import struct
    import zlib

    def chunk(kind, body):
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    size = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", size) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


def test_bombs_are_refused_before_they_are_decoded():
    refused(header(50_000, 50_000), "has 2500 megapixels, at most 128 are read")
    refused(header(13_000, 10_000), "has 130 megapixels, at most 128 are read")
    refused(header(12_000, 9_000), "cut short or damaged")  # 108 are allowed


@pytest.mark.filterwarnings("error")
def test_pillows_own_limit_does_not_warn(monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 15)
    assert open_picture(png(corners())).shape == (4, 6, 3)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 5)
    refused(png(corners()), "megapixels")


HEIC = b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(100)
AVIF = b"\0\0\0\x1cftypavif\0\0\0\0avifmif1" + bytes(100)


def test_heic_is_refused_by_name(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    (tmp_path / "a.heic").write_bytes(HEIC)
    refused(tmp_path / "a.heic", "a.heic is HEIC: pip install pillow-heif, or save it as JPEG or PNG")
    refused(HEIC[:8] + b"mif1" + HEIC[12:], "the picture is HEIC")


def test_heic_is_read_where_its_package_is(monkeypatch):
    def register():
        Image.register_open("HEIF", lambda file, name: corners(), lambda head: head[8:12] == b"heic")

    monkeypatch.setitem(sys.modules, "pillow_heif", types.SimpleNamespace(register_heif_opener=register))
    monkeypatch.setattr(Image, "ID", [*Image.ID])
    monkeypatch.setattr(Image, "OPEN", {**Image.OPEN})
    assert np.array_equal(open_picture(HEIC), np.asarray(corners()))


def test_avif(tmp_path, monkeypatch):
    refused(AVIF, "is AVIF")
    if features.check("avif"):
        path = saved(corners(64, 32), tmp_path / "a.avif", quality=100)
        assert np.abs(open_picture(path).astype(int) - np.asarray(corners(64, 32)))[8, 8].max() < 12
    monkeypatch.setattr(AvifImagePlugin, "SUPPORTED", False)
    refused(AVIF, "is AVIF that Pillow cannot read here: save it as JPEG")


def test_a_full_disk_is_told(monkeypatch):
    def full():
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(pictures, "_IN_MEMORY", 0)
    monkeypatch.setattr(pictures.tempfile, "TemporaryFile", full)
    refused(png(corners()), "could not be kept in", "No space left")


def test_too_little_memory_is_told(monkeypatch):
    def load(self):
        raise MemoryError

    monkeypatch.setattr(Image.Image, "load", load)
    refused(corners(), "the picture does not fit into memory: make it smaller")


def test_without_pillow_arrays_still_go(monkeypatch):
    monkeypatch.setitem(sys.modules, "PIL", None)
    monkeypatch.setattr(pictures.extras, "command", lambda extra: f"pip install 'phi3mobile[{extra}]'")
    refused("a.png", "reading pictures takes Pillow: pip install 'phi3mobile[vision]'; or give an array")
    assert open_picture(np.zeros((2, 2, 4), np.uint8)).tolist() == [[[255] * 3] * 2] * 2


def test_hashes_are_of_shape_and_pixels():
    pixels = np.arange(24, dtype=np.uint8).reshape(2, 4, 3)
    assert picture_hash(pixels) == picture_hash(open_picture(png(Image.fromarray(pixels)))) and len(picture_hash(pixels)) == 64
    assert picture_hash(pixels.reshape(4, 2, 3)) != picture_hash(pixels)
    turned = pixels.transpose(1, 0, 2)
    assert picture_hash(turned) == picture_hash(turned.copy()) != picture_hash(pixels)
    changed = pixels.copy()
    changed[1, 3, 2] += 1
    assert picture_hash(changed) != picture_hash(pixels)


def test_the_hash_of_many_blocks_is_that_of_one(monkeypatch):
    pixels = np.random.default_rng(0).integers(0, 256, (30, 20, 3), np.uint8)
    whole = picture_hash(pixels)
    monkeypatch.setattr(pictures, "_BLOCK", 50)
    assert picture_hash(pixels) == whole


MEMORY = """
import sys
from pathlib import Path
import numpy as np, PIL.Image, PIL.JpegImagePlugin, PIL.PngImagePlugin
from phi3mobile.models.vision import views
from phi3mobile.pictures import data_uri, open_picture, picture_hash

def peak():
    return next(int(line.split()[1]) for line in Path("/proc/self/status").open() if line.startswith("VmHWM"))

before = peak()
picture = open_picture(sys.argv[1])
opened = peak()
picture_hash(picture)
plan, found = views(picture, 16)
count = sum(1 for _ in found)
print(*picture.shape, count, (opened - before) // 1000, (peak() - before) // 1000)
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="peak memory is read from /proc")
@pytest.mark.parametrize("ending", ["jpg", "png"])
def test_50_megapixels_within_300_mb(ending, tmp_path):
    import subprocess

    exif = Image.Exif()
    exif[0x0112] = 6
    path = tmp_path / f"a.{ending}"
    options = {"quality": 90} if ending == "jpg" else {"compress_level": 1}
    Image.linear_gradient("L").resize((8192, 6144)).convert("RGB").save(path, exif=exif, **options)
    done = subprocess.run([sys.executable, "-c", MEMORY, path], capture_output=True, text=True, check=True)
    height, width, channels, count, opened, all_in_all = map(int, done.stdout.split())
    assert (height, width, channels, count) == (8192, 6144, 3, 1 + 12)
    assert opened < 300 and all_in_all < 300, done.stdout


def test_a_data_uri_is_its_file(tmp_path):
    from PIL import Image

    Image.fromarray(np.arange(60, dtype=np.uint8).reshape(4, 5, 3)).save(tmp_path / "a.png")
    uri = data_uri(tmp_path / "a.png")
    assert np.array_equal(open_picture(uri), open_picture(tmp_path / "a.png"))
    assert np.array_equal(open_picture(uri.replace("data:", "data:image/png")), open_picture(uri))
    for bad in ("data:", "data:image/png,abc", "data:;base64,ä", "data:;base64,####", "data:;base64,", uri[:60]):
        with pytest.raises(InputError):
            open_picture(bad)
    with pytest.raises(InputError, match="cannot be read"):
        data_uri(tmp_path / "none.png")
