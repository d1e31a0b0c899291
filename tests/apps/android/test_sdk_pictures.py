"""Pictures through the Kotlin SDK: Bitmap's colours and EXIF's orientation in, Python's answers out."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from test_sdk import texts

from phi3mobile.pictures import data_uri, open_picture
from phi3mobile.session.conversation import Conversation
from phi3mobile.session.session import Session

COLORS = (np.arange(40 * 30) * 7919) & 0xFFFFFF
WIDE = np.stack([COLORS >> 16, COLORS >> 8 & 255, COLORS & 255], axis=1).astype(np.uint8).reshape(30, 40, 3)
GLASSY = np.stack([np.arange(40 * 30) * 1700007 >> bits & 255 for bits in (16, 8, 0, 24)], axis=1).astype(np.uint8)
LYING = (np.arange(3 * 20 * 60) * 31).astype(np.uint8).reshape(60, 20, 3)
UPRIGHT = LYING.transpose(1, 0, 2)[:, ::-1]  # EXIF's 6


@pytest.fixture(scope="session")
def seeing(once, checkpoint_of) -> Path:
    from phi3mobile.export.build import export

    return once("seeing-host", lambda out: export(checkpoint_of("vision-tiny"), out, "host", 2048, method="rtn"))


def say(text: str, *pictures: np.ndarray) -> dict[str, Any]:
    parts = [*({"type": "image", "image": picture} for picture in pictures), {"type": "text", "text": text}]
    return {"role": "user", "content": parts if pictures else text}


def test_the_answers_are_pythons(check, seeing):
    messages = ("What is this?", "And its name?", "Like <|image_1|> is <|image_2|>?")
    said, expected = [], []
    with Session(seeing, num_crops=2) as session:
        for text, shown in zip(messages, ([WIDE], [], [UPRIGHT]), strict=True):
            said.append(say(text, *shown))
            expected.append("".join(session.generate(said, max_tokens=6, repetition=True)))
            said.append({"role": "assistant", "content": expected[-1]})
    assert texts(check("pictures", seeing, *messages)) == expected


def test_a_conversation_with_pictures_is_kept(check, seeing, tmp_path):
    """Python reads what Kotlin saved, pictures and KV cache, knows as much of it, and says the same."""
    asked = ("What is this?", "Like <|image_1|> is <|image_2|>?", "And its name?")
    lines = check("kept", seeing, *asked, scratch=tmp_path)
    known, reused = map(int, lines[0].split()[1:])
    kept = Conversation.load(tmp_path / "kept" / "conversation.json")
    assert [message["role"] for message in kept.messages] == ["system", *("user", "assistant") * 2]
    pictures = [open_picture(kept.messages[index]["content"][0]["image"]) for index in (1, 3)]
    for found, shown in zip(pictures, (open_picture(GLASSY.reshape(30, 40, 4)), UPRIGHT), strict=True):
        np.testing.assert_array_equal(found, shown)
    with Session(seeing, num_crops=2) as session:
        assert session.restore(tmp_path / "kept" / "conversation.json.state") == known > 5
        kept.say("user", asked[2])
        assert ["".join(session.generate(kept.messages, max_tokens=6, repetition=True))] == texts(lines)
        assert session.statistics.reused_tokens == reused == known


def test_a_conversation_of_the_chats_goes_on(check, seeing, tmp_path):
    """Pictures of other formats, above and below the text."""
    from PIL import Image

    shown = []
    for name, pixels in (("a.png", WIDE), ("b.bmp", UPRIGHT)):
        Image.fromarray(np.ascontiguousarray(pixels)).save(tmp_path / name)
        shown.append({"type": "image", "image": data_uri(tmp_path / name)})
    text = [{"type": "text", "text": text} for text in ("Look: ", "What is it?", "Is <|image_3|> as <|image_2|>?", "Both?")]
    conversation = Conversation()
    for role, content in (
        ("system", "Be brief."),
        ("user", [shown[0], text[1]]),
        ("assistant", "A sea."),
        ("user", [text[0], shown[1], text[1]]),
        ("assistant", "A tree."),
        ("user", [text[2], shown[0]]),
        ("assistant", "No."),
        ("user", [text[3]]),
        ("assistant", "Yes."),
    ):
        conversation.say(role, content)
    conversation.save(tmp_path / "conversation.json")
    found = texts(check("resumed", seeing, str(tmp_path), "And its name?"))
    conversation.say("user", "And its name?")
    with Session(seeing, num_crops=2) as session:
        assert ["".join(session.generate(conversation.messages, max_tokens=6, repetition=True))] == found


def test_pngs_are_pillows(check, seeing, tmp_path):
    """Sizes, alpha and orientations at random: Python reads what Kotlin writes, Kotlin reads what Pillow writes."""
    from PIL import Image

    random = np.random.default_rng(7)
    written, read = {}, []
    for index in range(40):
        height, width, channels = *random.integers(1, 40, 2), random.choice([3, 4])
        # Smooth, so that Pillow's encoder takes all filters, and noise.
        slopes = np.add.outer(np.arange(height) * random.integers(0, 9), np.arange(width * channels) * random.integers(0, 9))
        noise = random.integers(0, 1 + index % 3 * 90, slopes.shape)
        pixels = (slopes + noise).astype(np.uint8).reshape(height, width, channels)
        (tmp_path / f"{index}.raw").write_bytes(pixels.tobytes())
        if index % 2:
            read.append([index])
            Image.fromarray(pixels).save(tmp_path / f"{index}.png", compress_level=int(random.integers(0, 10)))
        else:
            written[index] = pixels, int(random.integers(1, 9))
    sizes = [[index, pixels.shape[1], pixels.shape[0], orientation] for index, (pixels, orientation) in written.items()]
    (tmp_path / "write.json").write_text(json.dumps(sizes))
    (tmp_path / "read.json").write_text(json.dumps(read))
    image = Image.fromarray(WIDE)
    exif = image.getexif()
    exif[0x0112] = 6
    image.save(tmp_path / "turned.png", exif=exif)
    for name, other in (("palette.png", image.quantize(8)), ("grey.png", image.convert("L")), ("none.bmp", image)):
        other.save(tmp_path / name)
    check("png", seeing, str(tmp_path))
    for index, (pixels, orientation) in written.items():
        upright = Image.fromarray(pixels)
        upright.getexif()[0x0112] = orientation
        np.testing.assert_array_equal(open_picture(tmp_path / f"{index}.png"), open_picture(upright))


def user(*parts: Any) -> dict[str, Any]:
    return {"role": "user", "content": list(parts)}


@pytest.mark.parametrize(
    ("message", "says"),
    [
        ({"content": "x"}, "has no role"),
        ({"role": "user"}, "has no content"),
        (user({"type": "image", "image": "photo.jpg"}), "shows photo.jpg: only pictures that lie in it"),
        (user(3), "shows nothing"),
        (user({"type": "image", "image": "data:;base64,?"}), "is not base64"),
        (user({"type": "image", "image": "data:;base64,AAAA"}), "(data:;base64, 3 bytes) that is no plain"),
        (user({"type": "text", "text": "as <|image_1|>?"}), "names a picture of before and shows none"),
    ],
)
def test_what_is_no_conversation_is_told(check, seeing, message, says):
    document = {"format": "phi3mobile-conversation", "version": 1, "messages": [message]}
    (line,) = check("unreadable", seeing, json.dumps(document))
    assert says in line and "message 0" in line


def test_a_text_model_refuses_pictures(check, bundle_of):
    check("blind", bundle_of("tiny-gqa", "host"))
