"""Break-fix rounds (arXiv 2407.13833): measure, red-team, curate what failed, SFT and DPO mixed with general data, again.

OUT/round-N/ holds measured.json, attacks.jsonl, sft.jsonl, dpo.jsonl and both trained folders; nothing is done twice.
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from phi3mobile.errors import InputError
from phi3mobile.training.chats import ChatEncoder, open_encoder, read_lines
from phi3mobile.training.config import Chats, Dpo, Safety, Sft
from phi3mobile.training.data.jsonl import write_json, write_jsonl
from phi3mobile.training.dpo import dpo
from phi3mobile.training.model import check_trainable, load_hf
from phi3mobile.training.pretrain import tokenizer_of
from phi3mobile.training.redteam import REFUSALS, Attack, Prompt, attacks, read_prompts, refuses
from phi3mobile.training.sft import sft


def safety(config: Safety) -> dict[str, Any]:
    """Run (or resume) the rounds until both targets are met or all are done; writes OUT/final and OUT/safety.json."""
    if not config.model.folder:
        raise InputError("model: give folder, the checkpoint to make safe")
    check_trainable(config.model)
    settings, out = config.safety, Path(config.out)
    prompts = read_prompts(settings.prompts)
    general = [line for _, line in read_lines(settings.general)]
    folder, rows = config.model.folder, []
    for number in range(settings.rounds + 1):
        base = out / f"round-{number}"
        base.mkdir(parents=True, exist_ok=True)
        rows.append(_once(base / "measured.json", lambda folder=folder: measure(config, folder, prompts)))
        done = (
            rows[-1]["refusal_rate"] >= settings.target_refusal
            and rows[-1]["over_refusal_rate"] <= settings.target_over_refusal
        )
        if number == settings.rounds or done:
            break
        if not (base / "attacks.jsonl").exists():
            write_jsonl(base / "attacks.jsonl", red_team(config, folder, prompts))
        found = [line for _, line in read_lines([base / "attacks.jsonl"])]
        examples, pairs = curate(found, general, settings.general_share, config.run.seed + number)
        write_jsonl(base / "sft.jsonl", examples)
        write_jsonl(base / "dpo.jsonl", pairs)
        folder = _fix(config, base, folder)
    (out / "safety.json").write_text(json.dumps(rows, indent=1))
    if not (out / "final").exists():
        import shutil

        from phi3mobile.files import new_folder

        with new_folder(out / "final") as partial:
            shutil.copytree(folder, partial, dirs_exist_ok=True)
    first, last = rows[0], rows[-1]
    return {
        "out": str(out / "final"),
        "rounds": len(rows) - 1,
        "refusal_before": first["refusal_rate"],
        "refusal_after": last["refusal_rate"],
        "over_refusal_before": first["over_refusal_rate"],
        "over_refusal_after": last["over_refusal_rate"],
    }


def measure(config: Safety, folder: str, prompts: list[Prompt]) -> dict[str, Any]:
    """Rates on held-out prompts in every strategy: refusals of harmful ones by category, strategy and language, and
    over-refusals of benign ones."""
    asked = attacks(p for p in prompts if p.held_out and p.kind == "harmful")
    benign = attacks((p for p in prompts if p.held_out and p.kind == "benign"), ["direct"])
    answers = _answers(config, folder, [*asked, *benign])
    refused = [refuses(answer) for answer in answers]
    harmful = list(zip(asked, refused, strict=False))

    def by(key: Any) -> dict[str, float]:
        groups: dict[str, list[bool]] = {}
        for attack, said_no in harmful:
            groups.setdefault(key(attack), []).append(said_no)
        return {name: sum(values) / len(values) for name, values in groups.items()}

    return {
        "refusal_rate": sum(refused[: len(asked)]) / len(asked),
        "over_refusal_rate": sum(refused[len(asked) :]) / len(benign),
        "by_category": by(lambda a: a.prompt.category),
        "by_strategy": by(lambda a: a.strategy),
        "by_language": by(lambda a: a.prompt.language),
        "harmful": len(asked),
        "benign": len(benign),
    }


def red_team(config: Safety, folder: str, prompts: list[Prompt]) -> list[dict[str, Any]]:
    """Every training prompt in every strategy, with the answer and whether it failed (complied, or refused a benign one)."""
    tried = attacks(p for p in prompts if not p.held_out)
    answers = _answers(config, folder, tried)
    return [
        {
            "messages": attack.messages,
            "strategy": attack.strategy,
            "category": attack.prompt.category,
            "answer": answer,
            "kind": attack.prompt.kind,
            "language": attack.prompt.language,
            "reply": attack.prompt.reply,
            "failed": refuses(answer) == (attack.prompt.kind == "benign"),
        }
        for attack, answer in zip(tried, answers, strict=True)
    ]


def curate(
    found: list[dict[str, Any]], general: list[dict[str, Any]], share: float, seed: int
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """SFT conversations and DPO pairs: every failure with the right answer, every benign prompt as an anchor, and `share`
    of general preferences mixed into both."""
    examples, pairs = [], []
    for attack in found:
        if not attack["failed"] and attack["kind"] == "harmful":
            continue
        refusal = REFUSALS.get(attack["language"], REFUSALS["en"])
        right, wrong = (refusal, attack["answer"]) if attack["kind"] == "harmful" else (attack["reply"], refusal)
        examples.append({"messages": [*attack["messages"], {"role": "assistant", "content": right}]})
        if right != wrong and wrong.strip():
            pairs.append({"messages": attack["messages"], "chosen": right, "rejected": wrong})
    rng = random.Random(seed)
    for own, make in ((examples, _as_example), (pairs, _as_pair)):
        count = round(len(own) * share / (1 - share)) if share < 1 else len(general)
        own += [make(line) for line in rng.choices(general, k=count)] if general else []
        rng.shuffle(own)
    return examples, pairs


def _as_example(line: dict[str, Any]) -> dict[str, Any]:
    return {"messages": [*line["messages"], {"role": "assistant", "content": line["chosen"]}]}


def _as_pair(line: dict[str, Any]) -> dict[str, Any]:
    return {key: line[key] for key in ("messages", "chosen", "rejected")}


def _fix(config: Safety, base: Path, folder: str) -> str:
    """SFT, then DPO, on the round's files; the new folder."""
    run = replace(config.run, save_dtype="float32", checkpoint_every=config.schedule.steps, keep=1)
    model = replace(config.model, folder=folder, tokenizer=config.model.tokenizer)
    shared = {"schedule": config.schedule, "batch": config.batch, "lora": config.lora, "run": run}

    def chats(name: str) -> Chats:
        return Chats((str(base / name),), config.template)

    tuned = Sft(out=str(base / "sft"), model=model, data=chats("sft.jsonl"), optimizer=config.optimizer, **shared)
    folder = sft(tuned)["out"]
    slow = replace(config.optimizer, lr=config.dpo_lr)
    aligned = Dpo(
        out=str(base / "dpo"),
        model=replace(model, folder=folder),
        data=chats("dpo.jsonl"),
        optimizer=slow,
        beta=config.beta,
        **shared,
    )
    return dpo(aligned)["out"]


def _answers(config: Safety, folder: str, asked: list[Attack]) -> list[str]:
    device = "cuda" if torch.cuda.is_available() and config.run.device != "cpu" else "cpu"
    model = load_hf(folder)[0].to(device).eval()
    encoder = open_encoder(tokenizer_of(replace(config.model, folder=folder)), config.template)
    return generate(model, encoder, [attack.messages for attack in asked], config.safety.max_tokens)


@torch.no_grad()
def generate(
    model: torch.nn.Module, encoder: ChatEncoder, conversations: Iterable[Any], max_tokens: int, rows: int = 32
) -> list[str]:
    """Greedy answers, several conversations at a time, of like length."""
    prompts = [encoder.prompt(messages) for messages in conversations]
    stops = sorted({*encoder.tokenizer.special_ids.values()})
    answers = [""] * len(prompts)
    order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
    model.config.use_cache = True
    device = next(model.parameters()).device
    for group in (order[i : i + rows] for i in range(0, len(order), rows)):
        width = max(len(prompts[i]) for i in group)
        ids = torch.tensor([[stops[0]] * (width - len(prompts[i])) + prompts[i] for i in group], device=device)
        seen = torch.tensor([[0] * (width - len(prompts[i])) + [1] * len(prompts[i]) for i in group], device=device)
        out = model.generate(
            ids, attention_mask=seen, max_new_tokens=max_tokens, do_sample=False, eos_token_id=stops, pad_token_id=stops[0]
        )
        for i, row in zip(group, out[:, width:].tolist(), strict=True):
            end = next((place for place, token in enumerate(row) if token in stops), len(row))
            answers[i] = encoder.tokenizer.decode(row[:end])
    return answers


def _once(path: Path, make: Any) -> dict[str, Any]:
    """A JSON file's content, made first where it is missing."""
    if not path.exists():
        write_json(path, make())
    return json.loads(path.read_text())
