"""How an answer is made where nobody says: as the checkpoint's generation_config asks, else greedily; and never for ever."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from phi3mobile.errors import InputError
from phi3mobile.session.sampling import GREEDY, Sampling

MAX_TOKENS = 512  # of an answer
SMALL = 1_000_000_000  # below so many parameters, greedy decoding repeats itself without a guard
GUARD = 1.1  # the repetition penalty that a small model gets, on its answer alone: on the prompt it would spoil quoting

_DRAWN = ("temperature", "top_k", "top_p", "min_p")  # without effect on greedy decoding


def generation_section(config: Mapping[str, Any]) -> dict[str, Any]:
    """What a bundle keeps of a checkpoint's generation_config.json: how to sample. InputError for values out of range."""
    kept = {name: config[name] for name in (*_DRAWN, "repetition_penalty") if config.get(name) is not None}
    section = {"do_sample": bool(config.get("do_sample")), **kept}
    if section.get("top_k") == -1:  # some tools' "off"
        section["top_k"] = 0
    try:
        default_sampling(section, SMALL)
    except InputError as error:
        raise InputError(f"generation_config.json: {error}; correct it") from None
    return section


def default_sampling(generation: Mapping[str, Any], parameters: int) -> Sampling:
    """The Sampling of a manifest's `generation` section (empty: nothing was said) for a model of so many parameters."""
    if generation.get("do_sample") and generation.get("temperature") != 0:
        drawn = {name: generation[name] for name in _DRAWN if name in generation}
        penalty = generation.get("repetition_penalty", 1.0)
        return Sampling(**({"temperature": 1.0} | drawn), repetition_penalty=penalty)
    if "repetition_penalty" in generation or parameters >= SMALL:
        return Sampling(repetition_penalty=generation.get("repetition_penalty", 1.0))
    return Sampling(repetition_penalty=GUARD, penalize_prompt=False)


def chosen_sampling(default: Sampling, sampling: Sampling | None, given: Mapping[str, Any]) -> Sampling:
    """`sampling`, or `default` with what is `given` by name (None: not given).

    Raises InputError: both were given, a value out of range, or one without effect because the answer is greedy.
    """
    given = {name: value for name, value in given.items() if value is not None}
    if sampling is not None:
        if given:
            raise InputError(f"{', '.join(given)} and sampling say the same thing twice: leave one of them out")
        return sampling
    if given.get("temperature") == 0:
        default = replace(GREEDY, repetition_penalty=default.repetition_penalty, penalize_prompt=default.penalize_prompt)
    if "repetition_penalty" in given:
        default = replace(default, penalize_prompt=True)
    chosen = replace(default, **given)
    if chosen.temperature == 0 and (idle := [name for name in (*_DRAWN[1:], "seed") if name in given]):
        raise InputError(f"{', '.join(idle)} has no effect at temperature 0 (greedy): give a temperature too, such as 0.7")
    return chosen
