"""Small checkpoints that can talk: tiny random models with a real tokenizer and chat template, and how exact a copy is."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from tiny import random_tensors, stored, tiny, write_folder

VOCAB = 304
SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")  # ids 0, 1, 2
CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message.role + '\n' + message.content + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
LINES = [
    "the cat sat on the mat and the rat ate the cat",
    "hello there, what is the name of the sea?",
    "12 + 34 = 46",
    "over the hills and far away",
    "a small model answers in no time",
    "please repeat that once more",
]


def write_tokenizer(folder: Path, vocab: int = VOCAB) -> None:
    """A trained byte-level BPE vocabulary with ChatML's control tokens, and its chat template."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    native = Tokenizer(models.BPE())
    native.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    native.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab, special_tokens=list(SPECIAL), initial_alphabet=alphabet, show_progress=False
    )
    native.train_from_iterator(LINES * 3, trainer)
    native.save(str(folder / "tokenizer.json"))
    config = {"bos_token": SPECIAL[1], "eos_token": SPECIAL[2], "chat_template": CHATML}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))


def talking_checkpoint(folder: Path, name: str = "tiny-gqa", **changes) -> Path:
    """A random checkpoint of a tiny preset with tokenizer, template and generation config, written to `folder`."""
    config = tiny(name, vocab_size=VOCAB, **changes)
    write_folder(folder, config.to_hf(), stored(config, random_tensors(config), config.family))
    write_tokenizer(folder)
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": [2, 0]}))
    if config.vision is not None:
        (folder / "preprocessor_config.json").write_text(json.dumps({"num_crops": 4, "num_img_tokens": 144}))
    return folder


def rounded_demo(checkpoint: Path, bundle: Path, recipe: str) -> Path:
    """A bundle of the demo's model, rounded to nearest from its checkpoint in float16, which is made if it is not there."""
    from phi3mobile.export.build import export
    from phi3mobile.export.checkpoint import import_checkpoint
    from phi3mobile.export.demo_model import demo_gguf

    if not checkpoint.exists():
        import_checkpoint(demo_gguf(), checkpoint)
    return export(checkpoint, bundle, recipe, method="rtn", accept_quality=True)


def psnr_of_rows(reference: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Of each row: what lies between two codes may be rounded otherwise, which shows in its row and later ones."""
    return np.array([psnr(*pair) for pair in zip(reference, values, strict=True)])


def psnr(reference: np.ndarray, values: np.ndarray) -> float:
    """Peak signal to noise ratio in dB, the peak being the reference's greatest magnitude."""
    error = np.square(np.asarray(reference, np.float64) - values).mean()
    return float(10 * np.log10(np.abs(reference).max() ** 2 / error)) if error else float("inf")
