"""Conversations with pictures as data: scenarios.py's engine with eyes, and a tower simple enough to be the same everywhere."""

from __future__ import annotations

import json
import random
from hashlib import sha256
from pathlib import Path
from typing import Any
from zlib import crc32

import numpy as np
from photos import drawn
from scenarios import SPECIAL, ChainEngine, tokenizer_json, write_bundle

from phi3mobile.info import EngineInfo

WIDTH, HIDDEN, ROWS, NUM_CROPS = 5, 6, 50, 2  # of a patch, of the decoder, of one `project`, of a picture
BEGIN = SPECIAL[0]  # before every piece of text, as <s> is in phi-3-vision's prompts


class SeeingChain(ChainEngine):
    """A row of a picture counts as a token whose number is its checksum."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.info = EngineInfo(self.vocab, self.max_context, self.max_chunk, self.original_context, self.back, HIDDEN)

    def forward_embeddings(self, rows: np.ndarray, position: int, long: bool = False) -> np.ndarray:
        assert rows.shape[1] == HIDDEN and rows.dtype == np.float32
        return self._run([crc32(row.tobytes()) for row in rows], position, long)


class DrawnTower:
    """Sums over a view's patches, and of merged rows a few columns: each of one rounding, so the same in any order.

    `views`, `merged`: what was given, where `keeps`.
    """

    name, num_crops, hidden = "drawn", NUM_CROPS, HIDDEN

    def __init__(self, keeps: bool = False) -> None:
        drawn = np.random.default_rng(5).standard_normal((2, 4 * WIDTH)).astype(np.float32)
        self.separators = (drawn[0], drawn[1])
        self.keeps, self.views, self.merged, self.seen = keeps, [], [], 0

    def encode(self, view: np.ndarray) -> np.ndarray:
        self.seen += 1
        if self.keeps:
            self.views.append(view)
        tiles = view.reshape(3, 24, 14, 24, 14).transpose(1, 3, 0, 2, 4).reshape(576, 3, 196)
        return np.ascontiguousarray(tiles[:, [0, 1, 2, 0, 1], [0, 17, 195, 90, 33]])

    def project(self, rows: np.ndarray) -> np.ndarray:
        if self.keeps:
            self.merged.append(rows)
        return np.ascontiguousarray(rows[:, :HIDDEN] + rows[:, -HIDDEN:])

    def close(self) -> None:
        pass


def write_seeing_bundle(folder: Path, engine: ChainEngine) -> Path:
    """scenarios.write_bundle's, of a model that sees; its tower is given by whoever opens it."""
    write_bundle(folder, engine)
    begin = next(token["id"] for token in tokenizer_json()["added_tokens"] if token["content"] == BEGIN)
    single = [{"SpecialToken": {"id": BEGIN, "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}]
    tokens = {BEGIN: {"id": BEGIN, "ids": [begin], "tokens": [BEGIN]}}
    post = {"type": "TemplateProcessing", "single": single, "pair": single, "special_tokens": tokens}
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer_json() | {"post_processor": post}), "utf-8")
    (folder / "vision.bin").write_bytes(b"a stand-in")
    (folder / "separators.bin").write_bytes(b"".join(part.astype("<f4").tobytes() for part in DrawnTower().separators))
    manifest = json.loads((folder / "manifest.json").read_text("utf-8"))
    for name in ("tokenizer.json", "vision.bin", "separators.bin"):
        data = (folder / name).read_bytes()
        manifest["files"][name] = {"bytes": len(data), "sha256": sha256(data).hexdigest()}
    manifest["model"]["hidden"] = HIDDEN
    manifest["vision"] = {"program": "vision.bin", "separators": "separators.bin", "hidden": HIDDEN, "width": WIDTH}
    manifest["vision"] |= {"rows": ROWS, "bits": 8, "num_crops": NUM_CROPS}
    (folder / "manifest.json").write_text(json.dumps(manifest), "utf-8")
    return folder


PICTURES = {
    "A": drawn(1, 40, 30),
    "B": drawn(2, 30, 50),
    "C": drawn(3, 9, 9),
    "D": drawn(4, 100, 20),
    "A again": drawn(1, 40, 30),
}


def _content(rng: random.Random, before: int) -> tuple[str | list[dict[str, str]], int]:
    """A user's content, and how many images it has; `before`: those of earlier messages. Now and then a number is wrong."""
    words = rng.choice(["the and in", "what is on it", "there 12", "a\nre 🙂", "<|image_1|> the", "", "<|end|>"])
    count = rng.choice([0, 0, 1, 1, 2])
    if not count:
        return words or "the", 0
    images = [{"type": "image", "image": rng.choice(list(PICTURES))} for _ in range(count)]
    if rng.random() < 0.4:
        numbers = [*range(before + 1, before + count + 1), *([rng.randint(0, before + count)] if rng.random() < 0.4 else [])]
        rng.shuffle(numbers)
        words += "".join(f"{rng.choice(['', ' and ', chr(10)])}<|image_{number}|>" for number in numbers)
    parts: list[dict[str, str]] = [{"type": "text", "text": words}, *images]
    rng.shuffle(parts)
    return parts, count


def seeing_scenario(number: int) -> dict[str, Any]:
    """The scenario of a number: always the same. As scenarios.scenario's, pictures by their names."""
    rng = random.Random(number)
    context = rng.choice([500, 1100, 2000])
    engine: dict[str, Any] = {"seed": rng.randint(0, 999), "max_context": context, "max_chunk": rng.choice([7, 64, 400, 2000])}
    engine["habit"] = rng.choice([0, 8, 20])
    if rng.random() < 0.5:
        engine["original_context"] = rng.choice([320, 700, 1000])
    if rng.random() < 0.2:
        engine["back"] = rng.randint(1, 400)
    steps: list[dict[str, Any]] = []
    history: list[dict[str, Any]] = []
    for _ in range(rng.randint(1, 5)):
        choice = rng.random()
        if choice < 0.1:
            steps.append({"reset": True})
        if 0.1 < choice < 0.3 and len(history) > 2:  # undo
            del history[-2:]
        if choice > 0.85 and history:  # an edit
            index = rng.randrange(len(history))
            history[index] = {**history[index], "content": "edited the"}
        if not history and rng.random() < 0.3:
            history.append({"role": "system", "content": "on the"})
        before = sum(part["type"] == "image" for m in history if isinstance(m["content"], list) for part in m["content"])
        history.append({"role": "user", "content": _content(rng, before)[0]})
        request: dict[str, Any] = {"messages": list(history), "max_tokens": rng.choice([1, 4, 12])}
        request |= rng.choice([{}, {"overflow": "slide"}]) | rng.choice([{}, {"lookup": True}])
        request |= rng.choice([{}, {"repetition_penalty": 1.3}, {"temperature": 0.8, "seed": 5}, {"stop": ["the", "12"]}])
        step: dict[str, Any] = {"request": request}
        if rng.random() < 0.15:
            step["cancel_after"] = rng.randint(1, 3)
        steps.append(step)
        history.append({"role": "assistant", "content": rng.choice(["and", "<|image_1|>", "in 13"])})
    return {"number": number, "engine": engine, "steps": steps}


def shown(request: dict[str, Any], given: Any) -> dict[str, Any]:
    """A request with `given(name)` in the place of the pictures' names."""
    messages = []
    for message in request["messages"]:
        if isinstance(content := message["content"], list):
            content = [part | ({"image": given(part["image"])} if part["type"] == "image" else {}) for part in content]
        messages.append({**message, "content": content})
    return request | {"messages": messages}
