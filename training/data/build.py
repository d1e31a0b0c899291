"""Raw files to packed shards: read, extract, filter -> MinHash signatures -> buckets -> clusters -> pack -> index.

Each stage is a datatrove pipeline whose finished tasks are remembered in OUT.work: run again, and what was done stays done.
"""

from __future__ import annotations

import dataclasses
import inspect
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from datatrove.pipeline.base import PipelineStep
from datatrove.pipeline.decont.n_grams import NGramsDecontConfig, NGramsDecontFilter
from datatrove.pipeline.dedup.minhash import (
    MinhashConfig,
    MinhashDedupBuckets,
    MinhashDedupCluster,
    MinhashDedupFilter,
    MinhashDedupSignature,
)
from datatrove.pipeline.filters import (
    C4QualityFilter,
    FineWebQualityFilter,
    GopherQualityFilter,
    GopherRepetitionFilter,
    LanguageFilter,
)
from datatrove.pipeline.formatters import PIIFormatter
from datatrove.pipeline.readers import JsonlReader, ParquetReader, WarcReader
from datatrove.pipeline.writers import JsonlWriter

from phi3mobile import extras
from phi3mobile.errors import InputError
from phi3mobile.files import refuse_existing
from phi3mobile.training.data.config import FILTERS, Build, Input
from phi3mobile.training.data.shards import write_index
from phi3mobile.training.data.statistics import collect, write_page
from phi3mobile.training.data.steps import (
    DecontaminationIndex,
    ExtractHtml,
    LineReader,
    OfflineLID,
    Pack,
    SampleWriter,
    TextReader,
    evaluation_texts,
    vocabulary,
)

READERS = {"jsonl": LineReader, "parquet": ParquetReader, "text": TextReader, "warc": WarcReader}
RULES = {
    "gopher_repetition": GopherRepetitionFilter,
    "gopher_quality": GopherQualityFilter,
    "c4": C4QualityFilter,
    "fineweb": FineWebQualityFilter,
}


@dataclasses.dataclass(frozen=True)
class Stage:
    """One pipeline: its steps, into how many tasks it is split."""

    name: str
    steps: list[PipelineStep]
    tasks: int


def build(config: Build, progress: Callable[[str, int, int], None] = lambda stage, done, total: None) -> dict[str, Any]:
    """Write `config.out` (shards, index.json, statistics.json, statistics.html); returns the statistics.

    Raises InputError: files or settings that are wrong, nothing left after the filters (with what each removed), another
    config than the one that an unfinished OUT.work was begun with.
    """
    config = absolute(config)
    work = begin(config)
    run = _runner(config, work)
    plan = stages(config, work)
    with _cluster(config):
        for number, stage in enumerate(plan):
            progress(stage.name, number, len(plan))
            run(stage)
            if stage.name == "filter" and config.executor.kind != "slurm":
                _refuse_empty(work)
    if config.executor.kind == "slurm":
        return {"out": str(config.out), "submitted": [stage.name for stage in plan]}
    return json.loads((config.out / "statistics.json").read_text())


def absolute(config: Build) -> Build:
    """Local paths made absolute: a cluster's workers have other working folders."""
    inputs = (dataclasses.replace(i, path=i.path if "://" in i.path else str(Path(i.path).absolute())) for i in config.inputs)
    return dataclasses.replace(config, out=config.out.absolute(), tokenizer=config.tokenizer.absolute(), inputs=tuple(inputs))


def begin(config: Build) -> Path:
    """OUT.work, made or found, after everything that can be checked was: the tokenizer, the inputs, the steps' settings."""
    work = config.out.with_name(f"{config.out.name}.work")
    if (config.out / "index.json").exists() or not work.exists():
        refuse_existing(config.out)
    vocabulary(config.tokenizer, config.eos)
    for entry in config.inputs:
        _reader(entry).data_folder.list_files(glob_pattern=entry.glob or None) or _no_files(entry)
    stages(config, work)
    if config.decontaminate:
        for file in config.decontaminate.files:
            evaluation_texts(file, (config.decontaminate.question, config.decontaminate.answer))
    text = json.dumps(dataclasses.asdict(config), default=str, indent=1)
    begun = work / "config.json"
    if begun.is_file() and begun.read_text() != text:
        raise InputError(f"{work} was begun with another config; restore that, or remove {work} and {config.out}")
    work.mkdir(parents=True, exist_ok=True)
    begun.write_text(text)
    return work


def stages(config: Build, work: Path) -> list[Stage]:
    """All pipelines in order."""
    tasks = config.executor.tasks
    plan = []
    if config.decontaminate:
        plan.append(Stage("evaluations", [_decontamination_index(config, work)], 1))
    plan.append(Stage("filter", [*map(_reader, config.inputs), *_filters(config, work), _keep(work)], tasks))
    keep_one = []
    if config.deduplicate:
        minhash = MinhashConfig(config.deduplicate.n_grams, config.deduplicate.buckets, config.deduplicate.hashes_per_bucket)
        signatures, buckets, remove = (str(work / "minhash" / name) for name in ("signatures", "buckets", "remove"))
        sign = MinhashDedupSignature(signatures, minhash, config.word_language)
        plan += [
            Stage("minhash", [_kept(work), sign], tasks),
            Stage("buckets", [MinhashDedupBuckets(signatures, buckets, config=minhash)], minhash.num_buckets),
            Stage("clusters", [MinhashDedupCluster(buckets, remove, minhash)], 1),
        ]
        keep_one = [MinhashDedupFilter(remove, _samples(config, work, "deduplicate"))]
    mask = [PIIFormatter(config.mask.emails, config.mask.ips)] if config.mask else []
    pack = Pack(config.out, config.tokenizer, config.eos, config.shard_tokens)
    plan.append(Stage("pack", [_kept(work), *keep_one, *mask, pack], tasks))
    plan.append(Stage("finish", [Finish(config, work)], 1))
    return plan


class Finish(PipelineStep):
    """The index over all shards and the statistics page; a step, so that a cluster's scheduler can run it last."""

    type, name = "📊 - STATS", "Index and statistics"

    def __init__(self, config: Build, work: Path) -> None:
        super().__init__()
        self._config, self._work = config, work

    def run(self, data: Any = None, rank: int = 0, world_size: int = 1) -> None:
        statistics = collect(self._work)
        shards = write_index(self._config.out, {"inputs": [entry.path for entry in self._config.inputs]})
        statistics |= {"out": str(self._config.out), "tokens": shards.tokens, "documents": shards.documents}
        write_page(self._config.out, statistics)


def _reader(entry: Input) -> PipelineStep:
    more = {} if entry.format in ("text", "warc") else {"text_key": entry.text_key, "id_key": entry.id_key}
    return READERS[entry.format](entry.path, glob_pattern=entry.glob or None, limit=entry.limit, **more)


def _no_files(entry: Input) -> None:
    raise InputError(f"{entry.path} has no files{f' like {entry.glob}' if entry.glob else ''}; correct path or glob")


def _keep(work: Path) -> PipelineStep:
    return JsonlWriter(str(work / "kept"))


def _kept(work: Path) -> PipelineStep:
    return JsonlReader(str(work / "kept"), glob_pattern="*.jsonl.gz")


def _samples(config: Build, work: Path, name: str) -> SampleWriter:
    return SampleWriter(str(work / "removed" / name), config.samples)


def _filters(config: Build, work: Path) -> Iterator[PipelineStep]:
    if config.extract:
        yield ExtractHtml(config.extract.favour_precision, timeout=config.extract.timeout)
    if config.language:
        keep = list(config.language.keep)
        backend = "ft176" if config.language.model == "py3langid" else config.language.model
        step = LanguageFilter(keep, config.language.threshold, _samples(config, work, "language"), backend)
        if config.language.model == "py3langid":
            step.model = OfflineLID(keep)
        yield step
    for name in FILTERS:
        if (options := getattr(config, name)) is not None:
            rule = RULES[name]
            allowed = [key for key in inspect.signature(rule).parameters if key not in ("exclusion_writer", "language")]
            if unknown := [key for key in options if key not in allowed]:
                raise InputError(f"{name}: unknown key {unknown[0]}; allowed: {', '.join(allowed)}")
            yield rule(**options, exclusion_writer=_samples(config, work, name), language=config.word_language)
    if config.education:
        from phi3mobile.training.data.education import EducationFilter

        yield EducationFilter(config.education, _samples(config, work, "education"))
    if config.decontaminate:
        grams = NGramsDecontConfig(n_grams=config.decontaminate.n_grams)
        samples = _samples(config, work, "decontaminate")
        yield NGramsDecontFilter(str(work / "evaluations"), grams, samples, config.word_language)


def _decontamination_index(config: Build, work: Path) -> PipelineStep:
    chosen = config.decontaminate
    fields = chosen.question, chosen.answer
    grams = NGramsDecontConfig(n_grams=chosen.n_grams)
    return DecontaminationIndex(chosen.files, fields, str(work / "evaluations"), grams, config.word_language)


def _runner(config: Build, work: Path) -> Callable[[Stage], None]:
    """A function that runs a stage to its end (Slurm: submits it, after the one before)."""
    where, previous = config.executor, []

    def run(stage: Stage) -> None:
        common = {"pipeline": stage.steps, "tasks": stage.tasks, "logging_dir": str(work / "logs" / stage.name)}
        try:
            if where.kind == "slurm":
                from datatrove.executor import SlurmPipelineExecutor

                logs = str(work / "logs" / stage.name / "slurm")
                options = {"job_name": stage.name, "slurm_logs_folder": logs} | where.options
                executor = SlurmPipelineExecutor(
                    **common, workers=where.workers, depends=previous[-1] if previous else None, **options
                )
                previous.append(executor)
            elif where.kind == "ray":
                from datatrove.executor import RayPipelineExecutor

                executor = RayPipelineExecutor(**common, workers=where.workers, **where.options)
            else:
                from datatrove.executor import LocalPipelineExecutor

                executor = LocalPipelineExecutor(**common, workers=min(where.workers, stage.tasks), **where.options)
        except TypeError as error:
            raise InputError(f"executor: options {error}; give what datatrove's {where.kind} executor takes") from None
        try:
            executor.run()
        except FileNotFoundError as error:
            if error.filename != "sbatch":
                raise
            raise InputError("executor slurm: there is no sbatch here; run on a login node of the cluster") from None
        if where.kind != "slurm" and (left := executor.get_incomplete_ranks(skip_completed=True)):
            raise InputError(f"{stage.name}: tasks {left} failed; see {work / 'logs' / stage.name / 'logs'} and run again")

    return run


@contextmanager
def _cluster(config: Build) -> Iterator[None]:
    """A Ray cluster for as long as it is needed: the one at `address`, or one on this machine."""
    if config.executor.kind != "ray":
        yield
        return
    try:
        import ray
    except ModuleNotFoundError:
        raise InputError(f"executor ray needs the package ray; run: {extras.command('cluster')}") from None
    own = {} if config.executor.address else {"num_cpus": config.executor.workers, "include_dashboard": False}
    ray.init(config.executor.address or None, **own)
    try:
        yield
    finally:
        ray.shutdown()


def _refuse_empty(work: Path) -> None:
    statistics = collect(work)
    if not statistics["kept"]:
        removed = ", ".join(f"{step['name']} removed {step['removed']}" for step in statistics["steps"] if step["removed"])
        raise InputError(f"no document is left of {statistics['read']}: {removed or 'all were empty'}; loosen these steps")
