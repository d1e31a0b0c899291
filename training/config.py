"""Training configurations: TOML files as frozen dataclasses (settings.py reads them), one class a stage."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from phi3mobile.errors import InputError
from phi3mobile.training.data.mixture import Mixture
from phi3mobile.training.settings import read_settings

LORA_TARGETS = ("qkv_proj", "o_proj", "gate_up_proj", "down_proj")  # Phi-3's fused linears


@dataclass(frozen=True)
class Model:
    """What is trained: a checkpoint `folder`, or random weights of `shape` (keys of a phi3 config.json)."""

    folder: str = ""
    shape: dict[str, Any] = field(default_factory=dict)
    tokenizer: str = ""  # folder with tokenizer files; default: `folder`
    attention: Literal["sdpa", "eager", "flex_attention", "flash_attention_2"] = "sdpa"
    checkpoint_activations: bool = False
    mup_base_width: int = 0  # hidden size of the proxy that lr and initial spread were tuned on; 0: standard
    init_std: float = 0.02  # at the base width under muP

    def __post_init__(self) -> None:
        if bool(self.folder) == bool(self.shape):
            raise InputError("model: give either folder (a checkpoint) or shape (random weights)")
        _above(self, "init_std")


@dataclass(frozen=True)
class Optimizer:
    """AdamW; matrices decay, norms don't."""

    lr: float = 3e-4
    betas: tuple[float, ...] = (0.9, 0.95)
    eps: float = 1e-8
    weight_decay: float = 0.1
    clip: float = 1.0  # greatest gradient norm

    def __post_init__(self) -> None:
        _above(self, "lr", "eps", "clip")


@dataclass(frozen=True)
class Schedule:
    """Steps of the learning rate: warm-up, then cosine to `floor` x lr, or wsd: flat, then linear over the last part."""

    steps: int
    kind: Literal["cosine", "wsd"] = "cosine"
    warmup: int = 0
    decay: float = 0.2  # wsd: fraction of the steps
    floor: float = 0.1

    def __post_init__(self) -> None:
        _above(self, "steps")
        _fraction(self, "decay", "floor")
        if not 0 <= self.warmup <= self.steps:
            raise InputError(f"schedule: warmup {self.warmup}; it must be from 0 to steps {self.steps}")


@dataclass(frozen=True)
class Batch:
    """One optimizer step reads `rows` rows of `length` tokens over all processes, `micro` rows at a time in each."""

    rows: int
    length: int
    micro: int = 0  # 0: all at once

    def __post_init__(self) -> None:
        _above(self, "rows", "length")
        if self.micro < 0:
            raise InputError(f"batch: micro {self.micro}; it must be 0 (all rows at once) or more")


@dataclass(frozen=True)
class Run:
    """Machine, precision, checkpoints, logs. None of it changes what is learned, so a resumed run may change it,
    except seed, dtype and ema."""

    seed: int = 0
    dtype: Literal["float32", "bfloat16"] = "float32"  # bfloat16: of products; weights and optimizer stay float32
    ema: float = 0.0  # decay of the averaged weights, such as 0.999; 0: none
    device: str = "auto"
    engine: Literal["auto", "torch", "fsdp2", "deepspeed"] = "auto"  # auto: fsdp2 under torchrun, else torch
    zero_stage: Literal[1, 2, 3] = 2  # of deepspeed
    checkpoint_every: int = 500
    keep: int = 2
    tensorboard: bool = False
    save_dtype: Literal["float32", "bfloat16", "float16"] = "bfloat16"  # of the finished folder
    log_every: int = 1

    def __post_init__(self) -> None:
        _above(self, "checkpoint_every", "keep", "log_every")
        _fraction(self, "ema")


@dataclass(frozen=True)
class Chats:
    """jsonl files, one conversation {"messages": [...]} or preference {"messages", "chosen", "rejected"} a line."""

    files: tuple[str, ...]
    template: str = ""  # name in phi3mobile.text.chat.KNOWN_TEMPLATES; default: the checkpoint's own


@dataclass(frozen=True)
class Lora:
    """rank 0 trains all weights. qlora: the frozen base in 4-bit NF4."""

    rank: int = 0
    alpha: float = 16.0
    dropout: float = 0.0
    dora: bool = False
    rslora: bool = False
    qlora: bool = False
    targets: tuple[str, ...] = LORA_TARGETS

    def __post_init__(self) -> None:
        if self.rank < 0 or (self.rank == 0 and (self.dora or self.qlora or self.rslora)):
            raise InputError(f"lora: rank {self.rank}; it must be above 0 for LoRA, DoRA and QLoRA")


@dataclass(frozen=True)
class Pretrain:
    out: str
    model: Model
    data: Mixture
    optimizer: Optimizer
    schedule: Schedule
    batch: Batch
    run: Run = field(default_factory=Run)


@dataclass(frozen=True)
class Sft:
    out: str
    model: Model
    data: Chats
    optimizer: Optimizer
    schedule: Schedule
    batch: Batch
    lora: Lora = field(default_factory=Lora)
    run: Run = field(default_factory=Run)


@dataclass(frozen=True)
class Dpo:
    out: str
    model: Model
    data: Chats
    optimizer: Optimizer
    schedule: Schedule
    batch: Batch
    beta: float = 0.1
    sft_weight: float = 0.0  # adds this much of the chosen answers' mean loss per token
    lora: Lora = field(default_factory=Lora)
    run: Run = field(default_factory=Run)


@dataclass(frozen=True)
class Quant:
    """The grid that is trained for: a recipe of `phi3mobile export`, or with bits 3, an experiment of ours."""

    recipe: str = "android-cpu"
    bits: Literal[3, 4] = 4
    distill: float = 0.0  # weight of the KL term towards the unquantized start


@dataclass(frozen=True)
class Qat:
    out: str
    model: Model
    optimizer: Optimizer
    schedule: Schedule
    batch: Batch
    data: Mixture | None = None
    chats: Chats | None = None  # conversations in place of data
    quant: Quant = field(default_factory=Quant)
    run: Run = field(default_factory=Run)


@dataclass(frozen=True)
class Search:
    """Evolution of the long factors, one list per population member. Lengths in tokens."""

    length: int  # the context to reach
    text: str  # token shards of long documents that fitness is measured on
    start: Literal["yarn", "interpolate", "none"] = "yarn"  # with iterations 0 it is what training takes: a baseline
    mscale: Literal["derived", "one"] = "derived"  # factor on cos and sin: Phi-3's by the lengths' ratio, or 1
    samples: int = 5
    population: int = 64
    iterations: int = 40
    mutations: int = 16
    crossovers: int = 16
    parents: int = 32
    gene_probability: float = 0.3
    step: float = 0.01
    fitness: Literal["perplexity", "needle"] = "perplexity"  # needle: loss on the answer's tokens only
    tail: int = 256  # perplexity: tokens at the end of each sample that count

    def __post_init__(self) -> None:
        _above(self, "length", "samples", "population", "parents", "step", "tail")
        _fraction(self, "gene_probability")
        if self.parents > self.population:
            raise InputError(f"search: {self.parents} parents of a population of {self.population}")


@dataclass(frozen=True)
class Finetune:
    """Mixed windows after the search: of every `long_every` steps one reads rows at the new length, the others short."""

    long_every: int = 2

    def __post_init__(self) -> None:
        _above(self, "long_every")


@dataclass(frozen=True)
class LongRope:
    out: str
    model: Model
    data: Mixture
    search: Search
    optimizer: Optimizer
    schedule: Schedule
    batch: Batch
    finetune: Finetune = field(default_factory=Finetune)
    run: Run = field(default_factory=Run)


@dataclass(frozen=True)
class Rounds:
    """Break-fix rounds. Prompts: jsonl as training/safety_prompts/prompts.jsonl; general: jsonl of ordinary preferences."""

    rounds: int = 3
    prompts: str = ""  # default: the prompts that come with phi3mobile
    general: tuple[str, ...] = ()
    general_share: float = 0.5  # of the examples in SFT and in DPO
    max_tokens: int = 48
    target_refusal: float = 0.95
    target_over_refusal: float = 0.05

    def __post_init__(self) -> None:
        _above(self, "rounds", "max_tokens")
        _fraction(self, "general_share", "target_refusal", "target_over_refusal")


@dataclass(frozen=True)
class Safety:
    out: str
    model: Model
    safety: Rounds
    optimizer: Optimizer
    schedule: Schedule  # of each round's SFT and of its DPO
    batch: Batch
    dpo_lr: float = 1e-5
    beta: float = 0.1
    template: str = ""
    lora: Lora = field(default_factory=Lora)
    run: Run = field(default_factory=Run)


STAGES: dict[str, type] = {"pretrain": Pretrain, "sft": Sft, "dpo": Dpo, "safety": Safety, "qat": Qat, "longrope": LongRope}


def read_config(path: str | Path, stage: str) -> Any:
    """The TOML file of a stage. Raises InputError for a stage, key or value that is not known."""
    if stage not in STAGES:
        raise InputError(f"stage {stage!r}; known are {', '.join(STAGES)}")
    return read_settings(path, STAGES[stage])


def as_dict(config: Any) -> dict[str, Any]:
    """The resolved config as JSON values, for the log and for the check at resuming."""
    return _plain(dataclasses.asdict(config))


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return str(value) if isinstance(value, Path) else value


def _above(table: Any, *names: str) -> None:
    for name in names:
        if not getattr(table, name) > 0:
            raise InputError(f"{type(table).__name__.lower()}: {name} is {getattr(table, name)}; it must be above 0")


def _fraction(table: Any, *names: str) -> None:
    for name in names:
        if not 0 <= getattr(table, name) <= 1:
            raise InputError(f"{type(table).__name__.lower()}: {name} is {getattr(table, name)}; it must be from 0 to 1")
