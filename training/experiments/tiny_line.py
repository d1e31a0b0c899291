"""The whole line on this machine, from raw text to a chatting bundle, and what each stage is worth.

    .venv/bin/python training/experiments/tiny_line.py --folder build/tiny-line            # about an hour on 2 idle cores
    .venv/bin/python training/experiments/tiny_line.py --folder build/quick --scale 0.05   # minutes: that it works

Every part writes FOLDER/PART/result.json and is skipped where that is there; a part cut off resumes. --only PART runs one.
The last part writes training/experiments/RESULTS.md (--page FILE) and plots beside it.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import time
from pathlib import Path

import corpus
import torch
from page import write_page

from phi3mobile.errors import InputError
from phi3mobile.training.config import STAGES
from phi3mobile.training.settings import from_table

VOCAB = 4096


class Line:
    """The folder, and how long everything trains: steps are multiplied by `scale`."""

    def __init__(self, folder: Path, scale: float) -> None:
        self.folder, self.scale = folder, scale

    def steps(self, full: int) -> int:
        return max(4, round(full * self.scale))

    def documents(self) -> int:
        """How many documents the filters read: all, or some in a quick run."""
        return -1 if self.scale >= 0.5 else 300

    def path(self, *names: str) -> str:
        return str(self.folder.joinpath(*names))

    def train(self, stage: str, out: str, steps: int, lr: float, rows: int, length: int, **more) -> dict:
        """One stage by its config, as the command line would."""
        import importlib

        run = {"checkpoint_every": max(50, steps // 4), "keep": 1, "save_dtype": "float32", "log_every": 5}
        run |= more.pop("run", {})
        table = {
            "out": self.path(out),
            "optimizer": {"lr": lr, "weight_decay": more.pop("decay", 0.0)},
            "schedule": {"steps": steps, "warmup": min(steps, max(2, steps // 20)), **more.pop("schedule", {})},
            "batch": {"rows": rows, "length": length},
            "run": run,
            **more,
        }
        module = importlib.import_module(f"phi3mobile.training.{stage}")
        return getattr(module, stage)(from_table(table, STAGES[stage], out))

    def shape(self, hidden: int, layers: int, context: int) -> dict:
        return {
            "hidden_size": hidden,
            "intermediate_size": hidden * 8 // 3 // 32 * 32,
            "num_hidden_layers": layers,
            "num_attention_heads": hidden // 32,
            "num_key_value_heads": hidden // 64,
            "vocab_size": VOCAB,
            "max_position_embeddings": context,
            "original_max_position_embeddings": context,
            "bos_token_id": 0,
            "eos_token_id": 0,
            "pad_token_id": 0,
            "tie_word_embeddings": True,
        }

    def held_out_loss(self, folder: str, shards: str = "held-out", length: int = 256, rows: int = 64) -> float:
        from phi3mobile.training.loop import mean_loss
        from phi3mobile.training.model import load_hf
        from phi3mobile.training.sources import held_out

        return mean_loss(load_hf(folder)[0], held_out(self.path("data", "shards", shards), length, rows))


def data(line: Line) -> dict:
    """Corpus, tokenizer, shards: unfiltered, filtered in two phases, held out; conversations."""
    from phi3mobile.training.data.build import build
    from phi3mobile.training.data.config import Build

    texts, shards = line.folder / "data" / "texts", line.folder / "data" / "shards"
    manuals = corpus.download(line.folder / "data" / "debian")
    translations = corpus.download(line.folder / "data" / "translations", corpus.TRANSLATIONS)
    counts = corpus.write_corpus(manuals, translations, texts)
    counts["held-out-pages"] = corpus.write_pages(manuals, texts / "held-out-pages")
    corpus.write_tokenizer(line.folder / "data" / "tokenizer", texts, VOCAB)
    corpus.write_chats(line.folder / "data" / "chats", 6000)
    corpus.write_sections(line.folder / "data" / "chats", 1500)
    # Manuals have more punctuation than the web: Gopher's own 0.8 of words with a letter removes most of them. They are longer
    # too, so more of their n-grams come twice.
    quality, ngrams = {"max_non_alpha_words_ratio": 0.6}, [[5, 0.3], [6, 0.28], [7, 0.26], [8, 0.24], [9, 0.22], [10, 0.2]]
    filters = {"gopher_quality": quality, "gopher_repetition": {}, "deduplicate": {}}
    cleaning = {
        "extract": {"timeout": 60.0},
        "language": {},
        "gopher_quality": quality,
        "gopher_repetition": {"dup_n_grams": ngrams},
        "deduplicate": {},
    }
    found = {}
    for name in ("unfiltered", "held-out", "held-out-pages"):
        source = texts / ("raw" if name == "unfiltered" else name)
        corpus.write_shards(source, line.folder / "data" / "tokenizer", shards / name)
    for name, source, steps in (
        ("filtered", "crawl", cleaning),
        ("broad", "broad", filters),
        ("strict", "strict", {"gopher_repetition": {}, "deduplicate": {}}),
    ):
        if not (shards / name / "index.json").exists():
            table = {
                "out": str(shards / name),
                "tokenizer": line.path("data", "tokenizer"),
                **steps,
                "inputs": [{"path": str(texts / source), "format": "jsonl", "limit": line.documents()}],
            }
            build(from_table(table, Build, name))
    for name in ("unfiltered", "filtered", "broad", "strict", "held-out", "held-out-pages"):
        from phi3mobile.training.data.shards import open_shards

        opened = open_shards(shards / name)
        found[name] = {"documents": opened.documents, "tokens": opened.tokens}
    return {"documents": counts, "shards": found}


def phases(line: Line, *sources: tuple[str, float]) -> dict:
    """A mixture of one phase each; as many epochs as the steps need."""
    return {
        "phases": [
            {"tokens": int(tokens), "name": name, "sources": [{"path": line.path("data", "shards", name), "epochs": 40.0}]}
            for name, tokens in sources
        ]
    }


def filters(line: Line) -> dict:
    """Equal tokens of unfiltered and of filtered text; loss on held-out pages, as their sources and as people read them."""
    steps, found = line.steps(500), {}
    for name in ("unfiltered", "filtered"):
        result = line.train(
            "pretrain",
            f"filters/{name}",
            steps,
            3e-3,
            16,
            256,
            decay=0.1,
            data=phases(line, (name, 0)),
            model={"shape": line.shape(128, 4, 512), "tokenizer": line.path("data", "tokenizer")},
        )
        found[name] = {kind: line.held_out_loss(result["out"], kind) for kind in ("held-out", "held-out-pages")}
    return {"tokens_each": steps * 16 * 256, "held_out_loss": found}


def pretrain(line: Line) -> dict:
    """The tiny Phi-3 in two phases: broad text, then strict."""
    steps, row = line.steps(800), 16 * 257
    first = math.ceil(steps * 0.6) * row
    result = line.train(
        "pretrain",
        "pretrain",
        steps,
        2e-3,
        16,
        256,
        decay=0.1,
        schedule={"kind": "wsd"},
        model={"shape": line.shape(192, 6, 1024), "tokenizer": line.path("data", "tokenizer")},
        data=phases(line, ("broad", first), ("strict", (steps + 1) * row - first)),
        run={"ema": 0.99},
    )
    folder = Path(result["out"])
    ema = line.held_out_loss(str(folder.with_name("final-ema")))
    own = line.held_out_loss(result["out"])
    return {**result, "tokens": steps * 16 * 256, "held_out_loss": own, "held_out_loss_ema": ema}


def align(line: Line) -> dict:
    """SFT and DPO on package descriptions; loss and preference on held-out packages before and after each."""
    chats = line.folder / "data" / "chats"
    found = {"pretrained": _aligned(line, line.path("pretrain", "final"))}
    start = {"folder": line.path("pretrain", "final")}
    tuned = line.train(
        "sft", "align/sft", line.steps(400), 1e-3, 16, 256, model=start, data={"files": [str(chats / "chats.jsonl")]}
    )
    found["sft"] = _aligned(line, tuned["out"])
    liked = line.train(
        "dpo",
        "align/dpo",
        line.steps(80),
        1e-4,
        16,
        256,
        sft_weight=0.2,
        model={"folder": tuned["out"]},
        data={"files": [str(chats / "pairs.jsonl")]},
    )
    found["dpo"] = _aligned(line, liked["out"])
    return {"final": liked["out"], "held_out": found}


def _aligned(line: Line, folder: str) -> dict:
    """Loss of held-out answers, and how often the right answer of two is likelier."""
    from phi3mobile.training.batches import pack
    from phi3mobile.training.chats import conversations, open_encoder, preferences
    from phi3mobile.training.config import Chats
    from phi3mobile.training.dpo import per_document
    from phi3mobile.training.loop import mean_loss, token_losses
    from phi3mobile.training.model import load_hf

    chats, encoder, model = line.folder / "data" / "chats", open_encoder(folder), load_hf(folder)[0].eval()
    asked = pack(conversations(Chats((str(chats / "held-out-chats.jsonl"),)), encoder, 256), 256, 0)
    pairs = pack(preferences(Chats((str(chats / "held-out-pairs.jsonl"),)), encoder, 256), 256, 0)
    with torch.no_grad():
        sides = torch.cat([per_document(-token_losses(model, part), part) for part in pairs.micro(8)])
    return {"answer_loss": mean_loss(model, asked), "right_of_two": float((sides[0::2] > sides[1::2]).float().mean())}


def chat(line: Line) -> dict:
    """Export the aligned model and talk to the bundle."""
    from phi3mobile.export.build import export
    from phi3mobile.session.session import Session

    final = json.loads((line.folder / "align" / "result.json").read_text())["final"]
    bundle = line.folder / "chat" / "tiny.bundle"
    if not bundle.exists():
        export(final, bundle, context=256, method="rtn")
    talk = []
    for name in ("python3-yaml", "libtext-csv-perl", "fonts-noto", "gnome-mines"):
        session = Session(bundle)
        question = f"What is the package {name} for?"
        talk.append([question, "".join(session.generate([{"role": "user", "content": question}], max_tokens=32))])
    return {"bundle_bytes": sum(p.stat().st_size for p in bundle.rglob("*") if p.is_file()), "talk": talk}


def quantization(line: Line) -> dict:
    """QAT against PTQ at 4 and 3 bits, from the same pretrained weights; loss on held-out pages on the quantized grid."""
    from phi3mobile.export.recipe import find_recipe
    from phi3mobile.training.loop import mean_loss
    from phi3mobile.training.model import load_hf
    from phi3mobile.training.qat import add_fake_quant
    from phi3mobile.training.sources import held_out

    start, steps = line.path("pretrain", "final"), line.steps(150)
    rows = held_out(line.path("data", "shards", "held-out"), 256, 32)
    tokens = (steps + 1) * 8 * 257
    shared = {"model": {"folder": start}, "data": phases(line, ("strict", tokens))}
    # What the same extra training gives without quantization: QAT must win by more than that.
    more = line.train("pretrain", "quantization/more", steps, 3e-4, 8, 256, schedule={"floor": 0.0}, **shared)["out"]
    found = {"full": mean_loss(load_hf(start)[0], rows), "full_more_training": mean_loss(load_hf(more)[0], rows)}
    for bits in (4, 3):
        trained = line.train(
            "qat", f"quantization/qat{bits}", steps, 3e-4, 8, 256, schedule={"floor": 0.0}, quant={"bits": bits}, **shared
        )["out"]
        for name, folder in (("ptq", start), ("ptq_more_training", more), ("qat", trained)):
            model = add_fake_quant(*load_hf(folder), find_recipe("android-cpu"), bits)
            found[f"{name}_{bits}"] = mean_loss(model, rows)
    return {"tokens": tokens, "held_out_loss": found}


def longrope(line: Line) -> dict:
    """A model of 128 positions extended 8 times: searched factors against interpolation, YaRN and nothing, before and
    after the same mixed-window training."""
    from phi3mobile.training.config import Search
    from phi3mobile.training.long_eval import long_rows, perplexity_by_length
    from phi3mobile.training.longrope import extended, search_factors, start_factors, with_factors
    from phi3mobile.training.model import load_hf

    original, length = 128, 1024
    base = line.train(
        "pretrain",
        "longrope/short",
        line.steps(1200),
        3e-3,
        32,
        original,
        decay=0.1,
        data=phases(line, ("filtered", 0)),
        model={"shape": line.shape(128, 4, original), "tokenizer": line.path("data", "tokenizer")},
    )["out"]
    shards = line.path("data", "shards", "held-out")
    options = {
        "length": length,
        "text": line.path("data", "shards", "strict"),
        "samples": 4,
        "population": 24,
        "parents": 12,
        "mutations": 8,
        "crossovers": 8,
        "iterations": max(3, round(14 * min(1, line.scale))),
        "tail": 512,
        "mscale": "one",
    }
    texts, lengths = long_rows(shards, length, 8), (64, 128, 256, 512, 1024)
    found, curves = {}, {}
    model, config = load_hf(base)
    starts = {"extrapolation": "none", "interpolation": "interpolate", "YaRN": "yarn"}
    factors = {name: start_factors(config, Search(**options | {"start": kind})) for name, kind in starts.items()}
    state = line.folder / "longrope" / "search.json"
    factors["searched"], history = search_factors(model, config, Search(**options), "", 0, state)
    for name, values in factors.items():
        probe = with_factors(model, extended(config, length, values, "one"))
        curves[name] = perplexity_by_length(probe, texts, lengths, 64)
    for name, kind in (("extrapolation", "none"), ("interpolation", "interpolate"), ("searched", "yarn")):
        search = {**options, "start": kind, **({} if name == "searched" else {"iterations": 0})}
        if name == "searched":  # the same search: not twice
            target = line.folder / "longrope" / name / "search.json"
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_text(state.read_text())
        result = line.train(
            "longrope",
            f"longrope/{name}",
            line.steps(200),
            5e-4,
            16,
            original,
            model={"folder": base},
            search=search,
            data=phases(line, ("filtered", 0)),
        )
        curves[f"{name}, trained"] = perplexity_by_length(load_hf(result["out"])[0], texts, lengths, 64)
        found[name] = json.loads((line.folder / "longrope" / name / "long.json").read_text())["needle_loss"]
    return {
        "original": original,
        "perplexity": curves,
        "needle_loss": found,
        "searched": factors["searched"],
        "history": history,
    }


def smollm2(line: Line) -> dict:
    """SmolLM2-135M, LoRA on naming a package's section; exact answers of the exported bundle before and after."""
    from phi3mobile.export.demo_model import checkpoint_path, demo_gguf

    folder = line.folder / "smollm2"
    if not checkpoint_path(folder).exists():
        from phi3mobile.export.checkpoint import import_checkpoint

        folder.mkdir(parents=True, exist_ok=True)
        import_checkpoint(demo_gguf(), checkpoint_path(folder))
    start = str(checkpoint_path(folder))
    tuned = line.train(
        "sft",
        "smollm2/lora",
        line.steps(80),
        1e-3,
        4,
        256,
        model={"folder": start},
        lora={"rank": 8, "alpha": 16.0},
        data={"files": [line.path("data", "chats", "sections.jsonl")]},
        run={"save_dtype": "bfloat16", "log_every": 1},
    )["out"]
    limit = max(12, round(96 * min(1, line.scale)))
    scores = {
        name: _sections(line, folder / f"{name}.bundle", checkpoint, limit)
        for name, checkpoint in (("before", start), ("after", tuned))
    }
    return {"questions": limit, "right": scores, "chance": 1 / len(corpus.SECTIONS)}


def _sections(line: Line, bundle: Path, checkpoint: str, limit: int) -> float:
    from phi3mobile.export.build import export
    from phi3mobile.session.session import Session

    if not bundle.exists():
        export(checkpoint, bundle, context=256, method="rtn")
    lines = (line.folder / "data" / "chats" / "held-out-sections.jsonl").read_text().splitlines()[:limit]
    right = 0
    session = Session(bundle)
    for text in lines:
        question, answer = json.loads(text)["messages"]
        session.reset()
        said = "".join(session.generate([question], max_tokens=8))
        right += said.strip().lower().rstrip(".") == answer["content"]
    return right / len(lines)


PARTS = {
    "data": data,
    "filters": filters,
    "pretrain": pretrain,
    "align": align,
    "chat": chat,
    "quantization": quantization,
    "longrope": longrope,
    "smollm2": smollm2,
}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=Path("build/tiny-line"))
    parser.add_argument("--scale", type=float, default=1.0, help="steps of every stage are multiplied by this")
    parser.add_argument("--only", choices=list(PARTS), action="append")
    parser.add_argument("--page", type=Path, default=Path(__file__).with_name("RESULTS.md"))
    args = parser.parse_args()
    line = Line(args.folder.absolute(), args.scale)
    try:
        for name in args.only or PARTS:
            result = line.folder / name / "result.json"
            if not result.exists():
                start = time.perf_counter()
                found = PARTS[name](line)
                found |= {"scale": args.scale, "seconds": round(time.perf_counter() - start)}
                result.parent.mkdir(parents=True, exist_ok=True)
                result.write_text(json.dumps(found, indent=1))
            print(f"{name}: {result}", file=sys.stderr, flush=True)
        write_page(line.folder, args.page, list(PARTS))
    except InputError as error:
        print(f"tiny_line: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
