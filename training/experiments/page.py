"""RESULTS.md and its plots from the parts' result.json files. Numbers are read, never written by hand."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from phi3mobile.files import whole_file
from phi3mobile.training.long_eval import plot_lines, plot_needles
from phi3mobile.training.metrics import read_metrics


def write_page(folder: Path, page: Path, parts: list[str]) -> None:
    """The page over all parts that are there, and SVG plots in PAGE's folder under plots/."""
    found = {
        name: json.loads((folder / name / "result.json").read_text())
        for name in parts
        if (folder / name / "result.json").is_file()
    }
    plots = page.parent / "plots"
    scales = sorted({result["scale"] for result in found.values()})
    minutes = sum(result["seconds"] for result in found.values()) / 60
    text = ["# The whole line on a small machine", ""]
    text += [
        "Written by `training/experiments/tiny_line.py`; every number is a stage's own. "
        f"Parts: {', '.join(found)}. They took {minutes:.0f} minutes in all.",
        "",
    ]
    if scales != [1.0]:
        text += [
            "**Reduced run**, part by part: the full number of steps was multiplied by what stands behind each part, on a "
            "machine with other work. Where a comparison is close, the whole run (`--scale 1`) decides it.",
            "",
        ]
    writers = {
        "data": _data,
        "filters": _filters,
        "pretrain": _pretrain,
        "align": _align,
        "chat": _chat,
        "quantization": _quantization,
        "longrope": _longrope,
        "smollm2": _smollm2,
    }
    for name, result in found.items():
        text += [*writers[name](result, folder, plots), f"({result['seconds']} s, steps times {result['scale']:g})", ""]
    with whole_file(page) as partial:
        partial.write_text("\n".join(text))


def _data(result: dict[str, Any], folder: Path, plots: Path) -> list[str]:
    rows = [[name, f"{value['documents']:,}", f"{value['tokens']:,}"] for name, value in result["shards"].items()]
    return [
        "## Data",
        "",
        "Manuals of six Debian packages as a crawl would find them: HTML with its menus, sources, twelve "
        "translations of some. Held-out pages are in no form among the rest. `unfiltered` has the tags cut out; `filtered` "
        "is the same files through trafilatura, language, Gopher's rules and MinHash; `broad` and `strict` are the two "
        "phases.",
        "",
        *_table(["shards", "documents", "tokens"], rows),
        "",
    ]


def _filters(result: dict[str, Any], folder: Path, plots: Path) -> list[str]:
    loss = result["held_out_loss"]
    kinds = {"held-out": "sources as written (reStructuredText)", "held-out-pages": "pages as people read them"}
    rows = [
        [
            text,
            *(f"{loss[name][kind]:.4f}" for name in ("unfiltered", "filtered")),
            "filtered" if loss["filtered"][kind] < loss["unfiltered"][kind] else "unfiltered",
        ]
        for kind, text in kinds.items()
    ]
    return [
        "## Filtered against unfiltered",
        "",
        f"The same small model on {result['tokens_each']:,} tokens of each; loss on held-out pages in two forms.",
        "",
        *_table(["held-out", "unfiltered", "filtered", "better"], rows),
        "",
    ]


def _pretrain(result: dict[str, Any], folder: Path, plots: Path) -> list[str]:
    curve = {line["step"]: line["loss"] for line in read_metrics(folder / "pretrain")}
    plot_lines(plots / "pretrain.svg", {"training loss": curve}, "Two phases", "step", "loss")
    speed = sorted(line["tokens_per_s"] for line in read_metrics(folder / "pretrain"))
    return [
        "## Pretraining in two phases",
        "",
        f"{result['parameters']:,} parameters, {result['tokens']:,} tokens, "
        "broad then strict, "
        f"WSD schedule; median {speed[len(speed) // 2]:,.0f} tokens/s. Held-out loss "
        f"{result['held_out_loss']:.4f}, of the averaged "
        f"weights {result['held_out_loss_ema']:.4f}.",
        "",
        "![loss](plots/pretrain.svg)",
        "",
    ]


def _align(result: dict[str, Any], folder: Path, plots: Path) -> list[str]:
    rows = [[name, f"{v['answer_loss']:.3f}", f"{v['right_of_two']:.0%}"] for name, v in result["held_out"].items()]
    return [
        "## SFT and DPO",
        "",
        '"What is the package X for?" on Debian\'s package descriptions. On 200 packages '
        "never trained on: loss "
        "per token of the answer, and how often the right description is likelier than another package's.",
        "",
        *_table(["after", "loss of the answer", "right of two"], rows),
        "",
    ]


def _chat(result: dict[str, Any], folder: Path, plots: Path) -> list[str]:
    lines = [part for question, answer in result["talk"] for part in (f"> {question}", "", answer.strip() or "(nothing)", "")]
    return [
        "## Chatting",
        "",
        f"`phi3mobile export` of the aligned model: a bundle of {result['bundle_bytes'] / 1e6:.1f} MB.",
        "",
        *lines,
    ]


def _quantization(result: dict[str, Any], folder: Path, plots: Path) -> list[str]:
    loss = result["held_out_loss"]
    rows = [[label, "", f"{loss[key]:.4f}"] for label, key in (("as pretrained", "full"), ("trained on", "full_more_training"))]
    for bits in (4, 3):
        rows += [
            [label, str(bits), f"{loss[f'{key}_{bits}']:.4f}"]
            for label, key in (("PTQ", "ptq"), ("trained on, then PTQ", "ptq_more_training"), ("QAT", "qat"))
        ]
    return [
        "## QAT against PTQ",
        "",
        f"From the pretrained model, {result['tokens']:,} tokens more; held-out loss on "
        "the export's grid (groups "
        'of 32, int8 activations). "Trained on" has the same extra training without quantization in the loop.',
        "",
        *_table(["weights", "bits", "held-out loss"], rows),
        "",
    ]


def _longrope(result: dict[str, Any], folder: Path, plots: Path) -> list[str]:
    curves = {name: {int(length): value for length, value in curve.items()} for name, curve in result["perplexity"].items()}
    original, lengths = result["original"], sorted(next(iter(curves.values())))
    plot_lines(plots / "lengths.svg", curves, "Perplexity of the last 64 tokens", "context, tokens", "perplexity", [original])
    needles = {int(length): {float(d): v for d, v in row.items()} for length, row in result["needle_loss"]["searched"].items()}
    if needles:
        plot_needles(plots / "needles.svg", needles, "Needle in a haystack, searched factors, trained")
    rows = [[name, *(f"{curve[length]:.1f}" for length in lengths)] for name, curve in curves.items()]
    return [
        "## LongRoPE",
        "",
        f"A model trained at {original} positions, extended to {lengths[-1]}. Perplexity of the "
        "same last 64 tokens of held-out "
        'pages by how much context they see; "trained" is after the same mixed-window training.',
        "",
        *_table(["factors", *map(str, lengths)], rows),
        "",
        "![perplexity](plots/lengths.svg)",
        "",
        "![needles](plots/needles.svg)",
        "",
        f"Searched: {', '.join(f'{f:.3g}' for f in result['searched'])}",
        "",
    ]


def _smollm2(result: dict[str, Any], folder: Path, plots: Path) -> list[str]:
    rows = [[name, f"{value:.0%}"] for name, value in result["right"].items()]
    return [
        "## SmolLM2-135M with LoRA",
        "",
        f"Which section of Debian a description belongs to, in one word, of six "
        f"({result['chance']:.0%} by chance). "
        f"Exact answers of the exported 4-bit bundle on {result['questions']} packages never trained on.",
        "",
        *_table(["LoRA", "right"], rows),
        "",
    ]


def _table(head: list[str], rows: list[list[str]]) -> list[str]:
    return [f"| {' | '.join(head)} |", f"|{'---|' * len(head)}", *(f"| {' | '.join(row)} |" for row in rows)]
