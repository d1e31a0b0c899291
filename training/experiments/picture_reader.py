"""A tiny vision model that answers the task `pictures` (bench/evaluate/pictures.py): tests/bench/reader is what this writes.

    .venv/bin/python training/experiments/picture_reader.py build/reader      # minutes on 2 cores

The tower is drawn, not trained: positions are waves, so that features tell a place in a view, and colours and lines come out
of random patches. Separators, projector and decoder learn. Crops and global view of a training picture show different boards:
colours are asked of the crops and lines of the global view: each must be cut, ordered and merged right. While it trains,
after the first layer each position of a picture also says what it shows and where, and a question's end what place it asks of:
that teaches both much sooner than answers alone.
"""

from __future__ import annotations

import argparse
import json
import random
import time
from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np
import torch
from torch import nn

from phi3mobile.bench.evaluate.pictures import COLOURS, LINES, QUESTIONS, SHAPES, Board, asked, picture, random_board
from phi3mobile.models.checkpoint import write_checkpoint
from phi3mobile.models.clip import Vision
from phi3mobile.models.families.phi3 import Phi3Config
from phi3mobile.models.families.phi3_v import Phi3VConfig
from phi3mobile.models.vision import PATCHES, cut, merge
from phi3mobile.models.vision_config import PREFIX, VisionConfig
from phi3mobile.text.chat import load_chat
from phi3mobile.text.vocabularies import load_tokenizer
from phi3mobile.training.model import empty_hf

SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message.role + '\n' + message.content + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
VOCAB = 384
WIDTH = 64
CONFIG = Phi3VConfig(
    hidden_size=WIDTH,
    intermediate_size=128,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=4,
    head_dim=16,
    vocab_size=VOCAB,
    max_position_embeddings=1024,
    rope_theta=62800.0,  # one pair of dimensions turns once in 25 tokens, a row of two crops: left and right differ in it
    bos_token_id=1,
    eos_token_ids=(2,),
    pad_token_id=0,
    vision=VisionConfig(WIDTH, hidden_size=32, intermediate_size=64, num_hidden_layers=3, num_attention_heads=2),
)
WHOLES, ASKED = 80, 8  # global views of a shape; questions about a training picture
FACTS = [12, len(COLOURS), len(LINES)]
Asked = list[list[tuple[list[int], int, int]]]  # of each picture: what Prompts.question gives
HERE = "\0"  # where the picture stands in a prompt


def write_tokenizer(folder: Path) -> None:
    """Byte-level BPE over the task's words, ChatML around them."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    native = Tokenizer(models.BPE())
    native.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    native.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB, special_tokens=list(SPECIAL), initial_alphabet=alphabet, show_progress=False
    )
    texts = [asked(kind, row, column, 2) for kind in QUESTIONS for row in range(2) for column in range(2)]
    native.train_from_iterator([*texts, *COLOURS, *LINES, "user assistant"] * 9, trainer)
    folder.mkdir(parents=True)
    native.save(str(folder / "tokenizer.json"))
    told = {"bos_token": SPECIAL[1], "eos_token": SPECIAL[2], "chat_template": CHATML}
    (folder / "tokenizer_config.json").write_text(json.dumps(told))
    (folder / "preprocessor_config.json").write_text(json.dumps({"num_crops": 4, "num_img_tokens": 144}))
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": [2]}))


@torch.no_grad()
def drawn_vision(seed: int = 0) -> Vision:
    """A tower that nobody trains; what comes after it begins as torch does."""
    torch.manual_seed(seed)
    vision = Vision(CONFIG.vision)
    tower, size = vision.img_processor.vision_model, CONFIG.vision.hidden_size
    for name, weight in tower.named_parameters():
        if weight.ndim == 2:
            gain = 0.3 if "out_proj" in name or "fc2" in name else 1.0
            weight.normal_(0, gain / weight.shape[1] ** 0.5)
    tower.embeddings.patch_embedding.weight.normal_(0, 0.06)
    at = (torch.arange(PATCHES) + 0.5) / PATCHES
    waves = torch.cat([f(turns * torch.pi * at)[:, None] for turns in (1, 2, 4) for f in (torch.sin, torch.cos)], dim=1)
    places = torch.cat([waves.repeat_interleave(PATCHES, 0), waves.repeat(PATCHES, 1)], dim=1)
    tower.embeddings.position_embedding.weight.zero_()
    tower.embeddings.position_embedding.weight[1:] = places @ torch.randn(places.shape[1], size) * 0.4
    vision.sub_GN.normal_()
    vision.glb_GN.normal_()
    return vision


@dataclass
class Pool:
    """Views with their features float32 [views, 576, C], encoded once."""

    boards: list[Board]
    features: np.ndarray


def pool(vision: Vision, boards: list[Board], shape: tuple[int, int]) -> Pool:
    """Boards of a shape, each as its global view."""
    views = (next(cut(picture(board), shape)) for board in boards)
    return Pool(boards, np.concatenate([vision.encode(torch.from_numpy(view)[None]).numpy() for view in views]))


class Prompts:
    """Ids around a picture and of questions with their answers."""

    def __init__(self, folder: Path) -> None:
        tokenizer, chat = load_tokenizer(folder), load_chat(folder)
        text = chat.render([{"role": "user", "content": f"{HERE}\n{HERE}"}])
        before, between, self.after = text.split(HERE)
        assert between == "\n"
        self.encode = tokenizer.encode
        self.before = tokenizer.encode(before)

    def question(self, kind: str, row: int, column: int, rows: int, answer: str) -> tuple[list[int], int, int]:
        """Ids from behind the picture to the answer's end, how many of them are the answer's, and where it is seen."""
        ids, said = self.encode(f"\n{asked(kind, row, column, rows)}{self.after}"), self.encode(f"{answer}{SPECIAL[2]}")
        return [*ids, *said], len(said), place_of(row, column, rows, kind == "colour")


class Reader(nn.Module):
    """What learns: separators, projector, decoder."""

    def __init__(self, vision: Vision) -> None:
        super().__init__()
        self.sub, self.whole = vision.sub_GN, vision.glb_GN
        self.projector, self.facts = vision.img_projection, nn.Linear(WIDTH, sum(FACTS))
        text = {field.name: getattr(CONFIG, field.name) for field in fields(Phi3Config)} | {"source_model_type": "phi3"}
        self.decoder = empty_hf(Phi3Config(**text))
        for weight in self.decoder.parameters():
            if weight.ndim > 1:
                nn.init.normal_(weight, std=0.08)

    def rows(self, features: np.ndarray, grid: tuple[int, int]) -> torch.Tensor:
        """[B, views, 576, C] -> [B, tokens, hidden]."""
        width = 4 * features.shape[-1]
        zero, one = np.zeros(width, np.float32), np.ones(width, np.float32)
        merged = torch.from_numpy(np.stack([merge(one_picture, grid, zero, zero) for one_picture in features]))
        is_sub, is_whole = (
            torch.from_numpy(merge(features[0] * 0, grid, *marks)[:, :1]) for marks in ((one, zero), (zero, one))
        )
        return self.projector(merged + is_sub * self.sub.flatten() + is_whole * self.whole.flatten())

    def loss(
        self, rows: torch.Tensor, before: list[int], questions: Asked, facts: np.ndarray
    ) -> tuple[torch.Tensor, np.ndarray]:
        """Of the answers' tokens; which first tokens are right. A picture's keys and values serve its questions."""
        embed, count = self.decoder.model.embed_tokens, len(questions[0])
        opening = embed(torch.tensor(before)).expand(len(rows), -1, -1)
        x = torch.cat([opening, rows], dim=1)
        shown = self.decoder.model(inputs_embeds=x, use_cache=True, output_hidden_states=True)
        told = self.told(shown.hidden_states[1][:, len(before) :], facts)
        seen = shown.past_key_values
        seen.batch_repeat_interleave(count)
        every = [question for of_picture in questions for question in of_picture]
        ids = torch.zeros(len(every), max(len(own) for own, _, _ in every), dtype=torch.long)
        targets, first = torch.full_like(ids, -100), torch.zeros_like(ids, dtype=torch.bool)
        for index, (own, answer, _) in enumerate(every):
            ids[index, : len(own)] = torch.tensor(own)
            targets[index, len(own) - answer - 1 : len(own) - 1] = torch.tensor(own[-answer:])
            first[index, len(own) - answer - 1] = True
        found = self.decoder.model(inputs_embeds=embed(ids), past_key_values=seen, use_cache=True, output_hidden_states=True)
        hidden = found.last_hidden_state
        places = torch.tensor([place for of_picture in questions for _, _, place in of_picture])
        told = told + nn.functional.cross_entropy(self.facts(found.hidden_states[1][first])[:, : FACTS[0]], places)
        logits = self.decoder.lm_head(hidden[targets >= 0])
        loss = nn.functional.cross_entropy(logits, targets[targets >= 0])
        right = logits.argmax(-1)[first[targets >= 0]] == targets[first]
        return loss + told, right.numpy()

    def told(self, hidden: torch.Tensor, facts: np.ndarray) -> torch.Tensor:
        """Loss of what each position says of itself: facts int64 [B, T, 3], -1 where it shows nothing."""
        there = torch.from_numpy(facts[..., 0] >= 0)
        said, right = self.facts(hidden[there]).split(FACTS, dim=-1), torch.from_numpy(facts)[there]
        return sum((nn.functional.cross_entropy(one, right[:, index]) for index, one in enumerate(said)), torch.zeros(()))


def place_of(row: int, column: int, rows: int, in_crop: bool) -> int:
    """One of FACTS[0]: a square of a board with so many rows, in the global view or as a crop."""
    return 2 * row + column + 4 * (rows == 1) + 6 * in_crop


def facts_of(whole: Board, crops: Board) -> np.ndarray:
    """What each position of a picture shows, int64 [tokens, 3]: its place and view, the colour, the lines there."""
    down, across = whole.colours.shape
    found = np.zeros((1 + across * down, PATCHES, PATCHES, 4))
    for row, column in np.ndindex(down, across):
        rows, columns = (
            slice(PATCHES // size * at, PATCHES // size * (at + 1)) for at, size in ((row, down), (column, across))
        )
        found[0, rows, columns] = [place_of(row, column, down, False), whole.colours[row, column], whole.lines[row, column], 0]
        found[1 + row * across + column] = [
            place_of(row, column, down, True),
            crops.colours[row, column],
            crops.lines[row, column],
            0,
        ]
    nothing = np.full(16, -1, np.float32)
    return merge(found.reshape(-1, PATCHES**2, 4), (across, down), nothing, nothing)[:, :3].astype(np.int64)


def train(folder: Path, steps: int, batch: int, rate: float, seed: int = 0) -> dict[str, torch.Tensor]:
    """The checkpoint's tensors by name."""
    started, draw, vision = time.perf_counter(), random.Random(seed), drawn_vision(seed)
    prompts, reader = Prompts(folder), Reader(vision)
    squares = np.ndindex(len(COLOURS), len(LINES))
    crops = pool(vision, [Board(np.array([[colour]]), np.array([[lines]])) for colour, lines in squares], (1, 1))
    wholes = {shape: pool(vision, [random_board(*shape, draw) for _ in range(WHOLES)], shape) for shape in SHAPES}
    optimizer = torch.optim.AdamW(reader.parameters(), lr=rate, betas=(0.9, 0.98), weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, total_steps=steps, pct_start=0.1)
    began, shares = time.perf_counter(), []
    print(f"{len(crops.boards) + WHOLES * len(SHAPES)} views encoded in {began - started:.0f} s", flush=True)
    for step in range(steps):
        shape = SHAPES[step % len(SHAPES)]
        features, questions, facts = [], [], []
        for _ in range(batch):
            chosen = [draw.randrange(len(crops.boards)) for _ in range(shape[0] * shape[1])]
            whole = draw.randrange(WHOLES)
            features.append(np.concatenate([wholes[shape].features[whole : whole + 1], crops.features[chosen]]))
            questions.append([])
            squares = [crops.boards[number] for number in chosen]
            colours, lines = (np.array([getattr(one, part) for one in squares]) for part in ("colours", "lines"))
            shown = Board(colours.reshape(shape[::-1]), lines.reshape(shape[::-1]))
            facts.append(facts_of(wholes[shape].boards[whole], shown))
            for number in range(ASKED):
                kind, row, column = list(QUESTIONS)[number % 2], draw.randrange(shape[1]), draw.randrange(shape[0])
                if kind == "lines":
                    answer = wholes[shape].boards[whole].answer(kind, row, column)
                else:
                    answer = shown.answer(kind, row, column)
                questions[-1].append(prompts.question(kind, row, column, shape[1], answer))
        loss, right = reader.loss(reader.rows(np.stack(features), shape), prompts.before, questions, np.stack(facts))
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(reader.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        shares.append([right[::2].mean(), right[1::2].mean()])
        if step % 20 == 19:
            spent = time.perf_counter() - began
            print(
                f"step {step + 1}  loss {loss.item():.3f}  right {np.round(np.mean(shares[-20:], axis=0), 2)}  {spent:.0f} s",
                flush=True,
            )
    return dict(reader.decoder.state_dict()) | {f"{PREFIX}{name}": value for name, value in vision.state_dict().items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--batch", type=int, default=6)
    parser.add_argument("--rate", type=float, default=4e-3)
    args = parser.parse_args()
    torch.set_num_threads(1)  # matrices are too small to share
    text = args.folder.with_name(f"{args.folder.name}-tokenizer")
    write_tokenizer(text)
    tensors = train(text, args.steps, args.batch, args.rate)
    write_checkpoint(args.folder, CONFIG, tensors.items(), torch.float16, sorted(text.iterdir()))


if __name__ == "__main__":
    main()
