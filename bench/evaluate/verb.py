"""phi3mobile eval BUNDLE --tasks ...: benchmark tasks on the very file that ships, beside the paper's numbers."""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

from phi3mobile.errors import InputError

JUDGING = ("questions", "references", "judge_url", "judge_model", "judge_path", "judge_prompts")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("bundle", help="folder made by `phi3mobile export`, or a checkpoint folder (float32 in torch)")
    parser.add_argument(
        "--tasks",
        default="local",
        help="names with commas between: lm-eval's tasks, humaneval, mt_bench, pictures (for models that see); report: the "
        "paper's; local: the texts that ship (default; no network)",
    )
    parser.add_argument("--tasks-folder", type=Path, help="folder with lm-eval task files (.yaml) and their data (.jsonl)")
    parser.add_argument("--limit", type=int, help="documents per task (default: all)")
    parser.add_argument("--shots", type=int, help="examples in the prompt (default: the paper's, or the task's)")
    parser.add_argument("--chat", action="store_true", help="ask in the model's chat format")
    parser.add_argument("--truncate", action="store_true", help="cut the beginning of prompts that don't fit the context")
    parser.add_argument("--context", type=int, help="with a checkpoint folder: positions of its KV cache")
    parser.add_argument("--out", type=Path, help="results.jsonl to add to; `phi3mobile report` reads it")
    parser.add_argument("--answers", type=Path, help="where answers are kept, so that a run can go on (default: the cache)")
    parser.add_argument("--unguarded", action="store_true", help="humaneval: run programs where they can't be held back")
    judge = parser.add_argument_group("mt_bench")
    judge.add_argument("--questions", type=Path, help="FastChat's question.jsonl")
    judge.add_argument("--references", type=Path, help="its reference answers (for math, reasoning, coding)")
    judge.add_argument("--judge-url", help="an OpenAI-compatible API (key: OPENAI_API_KEY)")
    judge.add_argument("--judge-model", help="the judge's name there")
    judge.add_argument("--judge-path", help="instead: a bundle that judges")
    judge.add_argument("--judge-prompts", type=Path, help="FastChat's judge_prompts.jsonl (default: this project's words)")


def run(args: argparse.Namespace) -> None:
    from phi3mobile.bench.evaluate.answers import Answers
    from phi3mobile.bench.evaluate.results import append_result, quality_table, result_line
    from phi3mobile.bench.evaluate.tasks import MT_BENCH, OWN, PICTURES, Library, require_harness, wanted
    from phi3mobile.files import cache_folder
    from phi3mobile.quiet import quiet
    from phi3mobile.screen import print_card, print_json, progress_bar

    tasks = wanted(args.tasks.split(","), args.shots)
    check(args, [one.name for one in tasks])
    lines, path = [], args.answers or cache_folder() / "evaluation.sqlite"
    with progress_bar("Eval") as report, quiet():
        harness = [one.task for one in tasks if one.name not in OWN]
        library = None
        if harness:
            require_harness()
            report("tasks", 0, 1)
            library = Library(args.tasks_folder, harness)
        conversations = _conversations(args) if any(one.name == MT_BENCH for one in tasks) else {}
        report("load", 0, 1)
        from phi3mobile.bench.evaluate.model import open_model

        model = open_model(args.bundle, args.context)
        if any(one.name == PICTURES for one in tasks):
            from phi3mobile.bench.evaluate.pictures import check_sees

            check_sees(model)
        answers = Answers(path, model.identity)
        for one in tasks:
            started, fresh = time.perf_counter(), answers.fresh
            found = _measure(args, one, model, answers, library, conversations, _named(report, one.name))
            how = {
                "limit": args.limit,
                "chat": args.chat or one.name in (MT_BENCH, PICTURES),
                "answered_before": answers.fresh == fresh,
            }
            line = result_line(
                one.name, found, model.about, model.identity, **how, seconds=round(time.perf_counter() - started, 2)
            )
            if args.out:
                append_result(args.out, line)
            lines.append(line)
        answers.close()
    table = quality_table(lines)
    print_card(
        f"{args.bundle}: {model.about['name']} ({model.about['recipe']})",
        {row[0].text: row[2].text + (f"   paper: {row[1].text}" if row[1].text else "") for row in table.rows if row[2].text},
    )
    shown = ("task", "metric", "score", "stderr", "n", "shots", "seconds")
    print_json(
        {
            "bundle": args.bundle,
            "out": args.out and str(args.out),
            "answers": str(path),
            "results": [{key: line.get(key) for key in shown} for line in lines],
        }
    )


def check(args: argparse.Namespace, names: list[str]) -> None:
    """Raises InputError for arguments that contradict each other or the tasks."""
    for name, least in (("limit", 1), ("shots", 0), ("context", 1)):
        value = getattr(args, name)
        if value is not None and value < least:
            raise InputError(f"--{name} {value}: give {least} or more")
    given = [f"--{name.replace('_', '-')}" for name in JUDGING if getattr(args, name)]
    if "mt_bench" not in names:
        if given:
            raise InputError(f"{given[0]} goes with --tasks mt_bench")
        return
    if not args.questions:
        raise InputError("--tasks mt_bench needs --questions FILE, FastChat's question.jsonl (it is not part of this package)")
    if bool(args.judge_path) == bool(args.judge_url) or bool(args.judge_url) != bool(args.judge_model):
        raise InputError("--tasks mt_bench needs a judge: give --judge-url and --judge-model, or --judge-path BUNDLE")


def _conversations(args: argparse.Namespace) -> dict[str, Any]:
    """Questions, prompts and the judge; unreadable files stop the run before it starts."""
    from phi3mobile.bench.evaluate.mt_bench import JUDGE_PROMPTS, open_judge, read_prompts, read_questions
    from phi3mobile.files import cache_folder

    where = {"path": args.judge_path} if args.judge_path else {"url": args.judge_url, "model": args.judge_model}
    name = "-".join("".join(c if c.isalnum() else "_" for c in part) for part in where.values())
    return {
        "questions": read_questions(args.questions, args.references),
        "prompts": read_prompts(args.judge_prompts or JUDGE_PROMPTS),
        "judge": open_judge(cache_folder() / "judgments" / f"{name[-120:]}.jsonl", **where),
    }


def _measure(args, one, model, answers, library, conversations, report) -> dict[str, Any]:
    from phi3mobile.bench.evaluate.tasks import HUMAN_EVAL, MT_BENCH, PICTURES

    if one.name == HUMAN_EVAL:
        from phi3mobile.bench.evaluate.programs import measure_programs

        return measure_programs(model, answers, limit=args.limit, chat=args.chat, unguarded=args.unguarded, progress=report)
    if one.name == MT_BENCH:
        from phi3mobile.bench.evaluate.mt_bench import measure_conversations

        return measure_conversations(model, answers, limit=args.limit, progress=report, **conversations)
    if one.name == PICTURES:
        from phi3mobile.bench.evaluate.pictures import measure_pictures

        return measure_pictures(model, answers, limit=args.limit, progress=report)
    from phi3mobile.bench.evaluate.harness import EngineLM

    lm = EngineLM(model, answers, report, args.truncate)
    found = library.run(lm, one, args.limit, args.chat)
    return found | {"truncated": lm.truncated, "run_tokens": lm.reader.run_tokens, "reused_tokens": lm.reader.reused_tokens}


def _named(report, name: str):
    """The progress line says the task; what it is doing is seen from the count."""
    return lambda stage, done, total: report(name, done, total)
