"""lm-eval (EleutherAI's harness, package lm_eval 0.4) over any Engine: its tasks and metrics, our forwards."""

from __future__ import annotations

from collections import Counter
from itertools import groupby
from typing import Any

from lm_eval import utils
from lm_eval.api.instance import Instance
from lm_eval.api.model import TemplateLM
from lm_eval.models.utils import handle_stop_sequences, normalize_gen_kwargs

from phi3mobile.bench.evaluate.answers import Answers
from phi3mobile.bench.evaluate.forwards import Reader
from phi3mobile.bench.evaluate.model import Model
from phi3mobile.errors import InputError
from phi3mobile.progress import Progress, silent
from phi3mobile.session.sampling import GREEDY, Sampling

Scored = tuple[float, bool]
SAMPLING = ("temperature", "top_k", "top_p", "min_p")


class EngineLM(TemplateLM):
    """A Model as the harness's LM: one sequence at a time, in an order in which shared prefixes are prefilled once.

    What was answered before comes from `answers`. A prompt that does not fit the context raises InputError before anything
    runs, or with `truncate` loses its beginning, as in the harness's own models; `truncated` counts these.
    """

    def __init__(self, model: Model, answers: Answers, progress: Progress = silent, truncate: bool = False) -> None:
        super().__init__()
        self.model, self.answers, self.progress, self.truncate = model, answers, progress, truncate
        self.reader = Reader(model.engine)
        self.truncated = 0

    @property
    def max_length(self) -> int:
        return self.model.engine.info.max_context

    @property
    def max_gen_toks(self) -> int:
        """Tokens of an answer where a task does not say: the harness's own default."""
        return 256

    @property
    def eot_token_id(self) -> int:
        return self.model.eos_id

    @property
    def prefix_token_id(self) -> int:
        """What a text without a context is conditioned on."""
        return self.model.eos_id if self.model.bos_id is None else self.model.bos_id

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **_: Any) -> list[int]:
        """With what the tokenizer's own post-processor adds, unless the text, such as a chat's, starts with the BOS."""
        tokenizer = self.model.tokenizer
        ids = tokenizer.encode(string)
        started = string.startswith(tokenizer.decode([self.prefix_token_id]))
        if add_special_tokens is False or (add_special_tokens is None and started):
            return ids
        before, after = tokenizer.around
        return [*before, *ids, *after]

    # Chat

    @property
    def tokenizer_name(self) -> str:
        return self.model.identity

    def chat_template(self, chat_template: bool | str = False) -> str:
        return self.model.chat.template if chat_template and self.model.chat else ""

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        """The prompt; without `add_generation_prompt` the last message is the beginning of the answer."""
        if self.model.chat is None:
            raise InputError(f"{self.model.about['name']} has no chat template: run without --chat")
        if add_generation_prompt:
            return self.model.chat.render(chat_history)
        return self.model.chat.render(chat_history[:-1]) + chat_history[-1]["content"]

    # Requests

    def loglikelihood(self, requests: list[Instance], disable_tqdm: bool = True) -> list[Scored]:
        return super().loglikelihood(requests, disable_tqdm=True)

    def loglikelihood_rolling(self, requests: list[Instance], disable_tqdm: bool = True) -> list[float]:
        """Of whole texts, in windows of the context; every token is predicted once."""
        windows = []
        for number, request in enumerate(requests):
            tokens = self.tok_encode(request.args[0])
            found = utils.get_rolling_token_windows(tokens, self.prefix_token_id, self.max_length, context_len=1)
            windows += [(number, *utils.make_disjoint_window(window)) for window in found]
        scored = self._loglikelihood_tokens([(("", ""), context, following) for _, context, following in windows])
        totals = [0.0] * len(requests)
        for (number, *_), (value, _) in zip(windows, scored, strict=True):
            totals[number] += value
        return totals

    def _loglikelihood_tokens(self, requests, **_: Any) -> list[Scored]:
        """Log probability of each (_, context, continuation), and whether greedy decoding would say the continuation."""
        jobs = []  # (what is run, where the continuation starts, its last token, index)
        results: list[Scored | None] = [None] * len(requests)
        for index, (_, context, continuation) in enumerate(requests):
            whole = self._fit([*context, *continuation], self.max_length + 1, len(continuation) + 1)
            known = self.answers.get(["loglikelihood", whole, len(continuation)])
            if known is not None:
                results[index] = (known[0], known[1])
            else:
                jobs.append((whole[:-1], len(whole) - len(continuation), whole[-1], index))
        jobs.sort(key=lambda job: job[0])
        done = len(requests) - len(jobs)
        for tokens, group in groupby(jobs, key=lambda job: job[0]):
            # Alternatives of one token, as in MMLU, are all read from one forward.
            group = list(group)
            first = min(start for _, start, _, _ in group) - 1
            scores = self.reader.score(tokens, first, {last for _, _, last, _ in group})
            for _, start, last, index in group:
                skipped = start - 1 - first
                value, greedy = scores.last[last]
                results[index] = (sum(scores.following[skipped:]) + value, all(scores.greedy[skipped:]) and greedy)
                self.answers.put(["loglikelihood", [*tokens, last], len(tokens) + 1 - start], results[index])
            done += len(group)
            self.progress("choices", done, len(requests))
        return results

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = True) -> list[str]:
        """Greedy, or sampled where the task says so: then with the number of the repetition as seed."""
        results: list[str | None] = [None] * len(requests)
        jobs, seen = [], Counter()
        for index, request in enumerate(requests):
            context, options = request.args
            sampling, stop, most = self._options(options)
            tokens = self._fit(self.tok_encode(context), self.max_length - most, 1)
            key = ["generate", tokens, sampling, stop, most]
            if sampling:
                key.append(seen[str(key)])
                seen[str(key[:-1])] += 1
            results[index] = self.answers.get(key)
            if results[index] is None:
                jobs.append((tokens, index, key))
        jobs.sort()
        for done, (tokens, index, key) in enumerate(jobs):
            self.progress("answers", len(requests) - len(jobs) + done, len(requests))
            _, _, sampling, stop, most, *repetition = key
            chosen = Sampling(**sampling, seed=repetition[0]) if sampling else GREEDY
            model = self.model
            results[index] = self.reader.generate(tokens, model.tokenizer, model.eos_ids, chosen, most, stop)
            self.answers.put(key, results[index])
        self.progress("answers", len(requests), len(requests))
        return results

    def _options(self, given: dict[str, Any]) -> tuple[dict[str, float], list[str], int]:
        """Sampling (empty: greedy), stop strings and most tokens of a task's generation_kwargs."""
        options = dict(normalize_gen_kwargs(given, self.max_gen_toks))
        stop = handle_stop_sequences(options.pop("until", None), eos=None)
        most, sampled = options.pop("max_gen_toks"), options.pop("do_sample", False)
        sampling = {name: options.pop(name) for name in SAMPLING if name in options}
        if options:
            raise InputError(
                f"generation_kwargs {', '.join(options)}: allowed are do_sample, until, max_gen_toks and "
                f"{', '.join(SAMPLING)}; change the task"
            )
        if most >= self.max_length:
            raise InputError(
                f"an answer of {most} tokens was asked for, the context has {self.max_length}; export with a larger --context"
            )
        return sampling if sampled and sampling.get("temperature") != 0 else {}, [text for text in stop if text], most

    def _fit(self, tokens: list[int], room: int, least: int) -> list[int]:
        """The last `room` tokens; at least `least` must fit."""
        if len(tokens) <= room:
            return tokens
        if not self.truncate or room < least:
            raise InputError(
                f"a prompt has {len(tokens)} tokens where {room} fit the context of {self.max_length}: export with a larger "
                "--context, take fewer --shots, or give --truncate to drop the beginning (scores fall)"
            )
        self.truncated += 1
        return tokens[-room:]
