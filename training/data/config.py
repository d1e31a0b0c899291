"""What `phi3mobile data build` reads: one TOML table per step; a step without its table is left out."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from phi3mobile.errors import InputError

FILTERS = ("gopher_repetition", "gopher_quality", "c4", "fineweb")


@dataclass(frozen=True)
class Input:
    """Files of one format. `path` is a folder (or anything fsspec opens); `glob` chooses files in it, all folders deep."""

    path: str
    format: Literal["jsonl", "parquet", "text", "warc"]
    glob: str = ""
    text_key: str = "text"
    id_key: str = "id"
    limit: int = -1  # documents per task; -1: all


@dataclass(frozen=True)
class Extract:
    """HTML to text with trafilatura; other documents pass as they are. `timeout`: seconds a document."""

    favour_precision: bool = True
    timeout: float = 5.0


@dataclass(frozen=True)
class Language:
    """Keep documents in these languages. `model`: py3langid (its weights come with it), or ft176 / glotlid (downloaded)."""

    keep: tuple[str, ...] = ("en",)
    threshold: float = 0.65
    model: Literal["py3langid", "ft176", "glotlid"] = "py3langid"


@dataclass(frozen=True)
class Education:
    """Keep documents whose educational value, 0 to 5, is in [minimum, below). `model`: made by `data train-classifier`."""

    model: Path
    minimum: float = 3.0
    below: float = 6.0  # of two builds with bounds that touch, no document is in both: phases stay disjoint


@dataclass(frozen=True)
class Deduplicate:
    """MinHash over n-grams of words: similar documents share all hashes of a bucket. FineWeb's values."""

    n_grams: int = 5
    buckets: int = 14
    hashes_per_bucket: int = 8


@dataclass(frozen=True)
class Decontaminate:
    """Drop documents that share `n_grams` words in a row with an evaluation set: jsonl lines with the fields below."""

    files: tuple[Path, ...]
    n_grams: int = 12
    question: str = "question"
    answer: str = "answer"


@dataclass(frozen=True)
class Mask:
    """Replace addresses of people and machines."""

    emails: bool = True
    ips: bool = True


@dataclass(frozen=True)
class Executor:
    """Where tasks run. `tasks` splits the input files; `workers` of them run at once. `options`: datatrove's own, e.g. Slurm's
    time, partition, mem_per_cpu_gb, or Ray's cpus_per_task. `address`: a running Ray cluster, else one starts here."""

    kind: Literal["local", "ray", "slurm"] = "local"
    tasks: int = 1
    workers: int = 1
    address: str = ""
    options: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Build:
    """Raw files to one folder of packed shards. `tokenizer`: a folder with tokenizer files; `eos`: ends each document."""

    out: Path
    tokenizer: Path
    inputs: tuple[Input, ...]
    eos: str = "<|endoftext|>"
    shard_tokens: int = 1 << 27
    word_language: str = "eng"  # whose word rules the filters use (ISO 639-3)
    samples: int = 20  # removed documents shown per step and task
    extract: Extract | None = None
    language: Language | None = None
    gopher_repetition: dict[str, Any] | None = None  # the keys of datatrove's filters; {}: their defaults
    gopher_quality: dict[str, Any] | None = None
    c4: dict[str, Any] | None = None
    fineweb: dict[str, Any] | None = None
    education: Education | None = None
    deduplicate: Deduplicate | None = None
    decontaminate: Decontaminate | None = None
    mask: Mask | None = None
    executor: Executor = Executor()

    def __post_init__(self) -> None:
        if not self.inputs:
            raise InputError("inputs is empty; give at least one [[inputs]] table")
        if self.executor.tasks < 1 or self.executor.workers < 1:
            raise InputError("executor: tasks and workers must be 1 or more")
        if self.samples < 0 or self.shard_tokens < 1:
            raise InputError("samples must be 0 or more, shard_tokens 1 or more")
