"""Expected speed and memory of a bundle on a phone nobody has measured, and how wrong such predictions were so far.

Decode reads the weights and the KV cache once per token: a share of the memory bandwidth; what of the weights memory does not
hold comes from flash. Prefill computes two operations per weight and token, a picture what its views and rows take: a share of
the cores' int8 peak. The shares are medians over published figures (published.toml): of decode over those of ExecuTorch, whose
kernels our bundles run on; of prefill, of which there are few, over all CPU runtimes.
`errors` predicts each published CPU figure from the others.
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

from phi3mobile.bench.experts import FLASH, share_held
from phi3mobile.manifest import tower_bytes
from phi3mobile.models.vision import plan_crops
from phi3mobile.screen import size

HERE = Path(__file__).parent
# Of all memory: what one app in the foreground may hold. iOS ends it at about 3 GB on a 6 GB phone (pocketpal-ai 651,
# executorch 14474); Android has no fixed limit, but 4-bit 8B models did not load on 8 GB phones (executorch 5582, 3599).
RUNTIME = "ExecuTorch"  # whose published figures the predictions come from
APP_SHARE = 0.5
PAGES_SHARE = 0.6  # of all memory, for that and the weights' clean pages together; assumed


@dataclass(frozen=True)
class Range:
    """Median and the lowest and highest that the published shares give."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return " to ".join(f"{value:.0f}" if value >= 10 else f"{value:.1f}" for value in (self.low, self.high))


@dataclass(frozen=True)
class Prediction:
    """decode, prefill: tokens/s. Bytes: needs, that cannot be dropped; budget, that the system lets an app have; flash, that
    decoding a token reads from there."""

    phone: str
    context: int
    decode: Range
    prefill: Range
    needs: int
    budget: int
    flash: int = 0

    @property
    def fits(self) -> bool:
        return self.needs <= self.budget

    @property
    def verdict(self) -> str:
        if not self.fits:
            return f"does not fit: {self.needs / 1e9:.1f} GB of {self.budget / 1e9:.1f} GB"
        return f"its memory holds too little: {self.flash / 1e9:.2f} GB a token from flash" if self.flash else "fits"


def phones() -> dict[str, dict[str, Any]]:
    """Name -> entry of phones.toml."""
    return {one["name"]: one for one in tomllib.loads((HERE / "phones.toml").read_text("utf-8"))["phone"]}


def published() -> dict[str, list[dict[str, Any]]]:
    """published.toml: claim, peer, quality."""
    return tomllib.loads((HERE / "published.toml").read_text("utf-8"))


def peak_ops(phone: Mapping[str, Any]) -> float:
    """int8 operations a second of the cores that compute."""
    return sum(phone["ghz"]) * 1e9 * phone["ops"]


def decode_shares(rows: Sequence[Mapping[str, Any]]) -> list[float]:
    """Share of the bandwidth that each published figure of ExecuTorch on a CPU reached."""
    known = phones()
    told = [row for row in rows if _tells_decode(row) and _is_ours(row)]
    return [row["tokens_per_s"] * row["model_gb"] / known[row["device"]]["bandwidth_gb_s"] for row in told]


def prefill_shares(rows: Sequence[Mapping[str, Any]]) -> list[float]:
    """Share of the int8 peak."""
    known = phones()
    return [2e9 * row["parameters_b"] * row["prefill"] / peak_ops(known[row["device"]]) for row in rows if _tells_prefill(row)]


def _tells_decode(row: Mapping[str, Any]) -> bool:
    return bool(row.get("cpu")) and "model_gb" in row


def _is_ours(row: Mapping[str, Any]) -> bool:
    return RUNTIME in row["runtime"]


def _tells_prefill(row: Mapping[str, Any]) -> bool:
    return bool(row.get("cpu")) and "prefill" in row and "parameters_b" in row


def _range(shares: Sequence[float], per_share: float) -> Range:
    return Range(median(shares) * per_share, min(shares) * per_share, max(shares) * per_share)


def predict(manifest: Mapping[str, Any], phone: Mapping[str, Any], depth: int | None = None) -> Prediction:
    """For a bundle's manifest.json and a phone of phones.toml; depth: tokens before the decoded one (default: half)."""
    model, memory, recipe = manifest["model"], manifest["memory"], manifest["recipe"]
    depth = model["context"] // 2 if depth is None else depth
    rows = published()["peer"]
    table = model["vocab"] * model["hidden"] * recipe.get("embedding_bits", 8) / 8
    read = (
        memory["weights"]
        - tower_bytes(manifest)
        - table
        + memory["kv_per_token"] * min(depth, model.get("sliding_window") or depth)
    )
    if (mixture := manifest["runtime"].get("experts")) is not None:  # a token reads some of them
        read -= mixture["bytes"] * (1 - mixture["used"] / mixture["experts"])
    loaded = 0 if manifest["weights_mapped"] else memory["weights"]
    needs = memory["kv_per_token"] * model["context"] + memory["activations"] + loaded
    ram = phone["ram_gb"] * 1e9
    flash = _from_flash(manifest, PAGES_SHARE * ram - needs)
    decode = _range(decode_shares(rows), phone["bandwidth_gb_s"] * 1e9 / read)
    return Prediction(
        phone["name"],
        model["context"],
        Range(*(1 / (1 / rate + flash / FLASH) for rate in (decode.value, decode.low, decode.high))),
        _range(prefill_shares(rows), peak_ops(phone) / _token_operations(manifest)),
        int(needs),
        int(APP_SHARE * ram),
        int(flash),
    )


def _from_flash(manifest: Mapping[str, Any], room: float) -> float:
    """Bytes of a token's weights that `room` bytes of memory do not hold: dense weights go round and all are read again, of a
    mixture's experts uniform routing finds the share that is there."""
    if not manifest["weights_mapped"]:
        return 0
    weights, mixture = manifest["memory"]["weights"], manifest["runtime"].get("experts")
    if mixture is None:
        return weights if weights > room else 0
    dense, used = weights - mixture["bytes"], mixture["bytes"] * mixture["used"] / mixture["experts"]
    return (dense if dense > room else 0) + used * (1 - share_held(manifest, room))


def _token_operations(manifest: Mapping[str, Any]) -> int:
    """Two for each weight that a token is multiplied by."""
    model = manifest["model"]
    values = model["parameters"] - model["vocab"] * model["hidden"]
    if (mixture := manifest["runtime"].get("experts")) is not None:
        idle = 1 - mixture["used"] / mixture["experts"]
        values -= int(3 * mixture["hidden"] * mixture["inner"] * mixture["layers"] * mixture["experts"] * idle)
    return 2 * values


@dataclass(frozen=True)
class PicturePrediction:
    """first_token, tower: seconds from pixels to the answer's first token, and until the tower is done with all views."""

    tokens: int
    views: int
    first_token: Range
    tower: Range


def predict_picture(manifest: Mapping[str, Any], phone: Mapping[str, Any]) -> PicturePrediction | None:
    """Of a 4:3 photo with the bundle's own number of crops, at prefill's share of the cores' peak; None: it sees none, or its
    manifest does not say what a view takes."""
    about = manifest.get("vision") or {}
    if "view_operations" not in about:
        return None
    plan, shares = plan_crops(4, 3, about["num_crops"]), prefill_shares(published()["peer"])
    tower = plan.views * about["view_operations"] + plan.tokens * about["row_operations"]
    whole = tower + plan.tokens * _token_operations(manifest)

    def seconds(operations: int) -> Range:
        alone = operations / peak_ops(phone)
        return Range(alone / median(shares), alone / max(shares), alone / min(shares))

    return PicturePrediction(plan.tokens, plan.views, seconds(whole), seconds(tower))


@dataclass(frozen=True)
class Miss:
    """One published figure and what the others predict for it."""

    device: str
    model: str
    runtime: str
    published: float
    predicted: float

    @property
    def error(self) -> float:
        return self.predicted / self.published - 1


def errors() -> list[Miss]:
    """Leave-one-out: every published decode figure from the shares of all others."""
    rows = [row for row in published()["peer"] if _tells_decode(row)]
    known, found = phones(), []
    for number, row in enumerate(rows):
        share = median(decode_shares(rows[:number] + rows[number + 1 :]))
        found.append(
            Miss(
                row["device"],
                row["model"],
                row["runtime"],
                row["tokens_per_s"],
                share * known[row["device"]]["bandwidth_gb_s"] / row["model_gb"],
            )
        )
    return found


def card_rows(manifest: Mapping[str, Any]) -> dict[str, str]:
    """Rows for the card of `inspect`; none for a runtime that no published figure tells of."""
    if manifest["runtime"]["name"] != RUNTIME:
        return {}
    ours, others = ([abs(miss.error) for miss in errors() if (RUNTIME in miss.runtime) == ours] for ours in (True, False))
    rows = {}
    if manifest["engine"] == "native":
        rows["on a phone"] = (
            f"an app that links our kernels runs recipe {manifest['recipe']['name']}; prebuilt ExecuTorch packages run "
            "android-cpu and android-small (Android), ios-cpu (iPhone)"
        )
    for name in ("Galaxy S21", "Galaxy S24", "Pixel 6a", "iPhone 14", "iPhone 15 Pro"):
        found = predict(manifest, phones()[name])
        rows[f"expected, {name}"] = f"decode {found.decode} tokens/s, prefill {found.prefill}; {found.verdict}"
        if (picture := predict_picture(manifest, phones()[name])) is not None:
            rows[f"expected, a picture, {name}"] = (
                f"{picture.first_token} s to the first token ({picture.tokens} tokens), {picture.tower} s of them the tower's "
                f"({picture.views} views); {size(tower_bytes(manifest))} of the memory are the tower's"
            )
    rows["how sure"] = (
        f"not measured; predictions missed published figures of ExecuTorch by {median(ours):.0%} (worst "
        f"{max(ours):.0%}), of other runtimes by up to {max(others):.0%}"
    )
    return rows
