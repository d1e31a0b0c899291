"""Pictures through the Kotlin SDK: Bitmap's colours and EXIF's orientation in, Python's answers out."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from test_sdk import texts

from phi3mobile.session.session import Session


@pytest.fixture(scope="session")
def seeing(once, checkpoint_of) -> Path:
    from phi3mobile.export.build import export

    return once("seeing-host", lambda out: export(checkpoint_of("vision-tiny"), out, "host", 2048, method="rtn"))


def say(text: str, *pictures: np.ndarray) -> dict[str, Any]:
    parts = [*({"type": "image", "image": picture} for picture in pictures), {"type": "text", "text": text}]
    return {"role": "user", "content": parts if pictures else text}


def test_the_answers_are_pythons(check, seeing):
    colors = (np.arange(40 * 30) * 7919) & 0xFFFFFF
    wide = np.stack([colors >> 16, colors >> 8 & 255, colors & 255], axis=1).astype(np.uint8).reshape(30, 40, 3)
    lying = (np.arange(3 * 20 * 60) * 31).astype(np.uint8).reshape(60, 20, 3)
    upright = lying.transpose(1, 0, 2)[:, ::-1]  # EXIF's 6
    messages = ("What is this?", "And its name?", "Like <|image_1|> is <|image_2|>?")
    said, expected = [], []
    with Session(seeing, num_crops=2) as session:
        for text, shown in zip(messages, ([wide], [], [upright]), strict=True):
            said.append(say(text, *shown))
            expected.append("".join(session.generate(said, max_tokens=6, repetition=True)))
            said.append({"role": "assistant", "content": expected[-1]})
    assert texts(check("pictures", seeing, *messages)) == expected


def test_a_text_model_refuses_pictures(check, bundle_of):
    check("blind", bundle_of("tiny-gqa", "host"))
