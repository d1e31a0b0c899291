"""The steps that datatrove lacks: plain text files, offline language id, a decontamination index, samples, packing."""

from __future__ import annotations

import json
import re
from collections import Counter
from pathlib import Path

import numpy as np
from datatrove.data import Document, DocumentsPipeline
from datatrove.io import get_datafolder
from datatrove.pipeline.base import PipelineStep
from datatrove.pipeline.decont.n_grams import NGramsDecontConfig
from datatrove.pipeline.extractors import Trafilatura
from datatrove.pipeline.readers import JsonlReader
from datatrove.pipeline.readers.base import BaseDiskReader
from datatrove.pipeline.writers.jsonl import JsonlWriter
from datatrove.utils.hashing import create_hash_func
from datatrove.utils.lid import LID
from datatrove.utils.text import ngrams, simplify_text
from datatrove.utils.typeshelper import StatHints
from datatrove.utils.word_tokenizers import load_word_tokenizer

from phi3mobile.errors import InputError
from phi3mobile.files import sha256
from phi3mobile.models.companions import vocabulary_file
from phi3mobile.text.vocabularies import load_tokenizer
from phi3mobile.training.data.jsonl import read_jsonl
from phi3mobile.training.data.shards import ShardWriter, Vocabulary
from phi3mobile.training.data.statistics import UNREADABLE
from phi3mobile.unicode import printable, valid_values

SAMPLE_CHARACTERS = 1200
_HTML = re.compile(r"<(!doctype html|html|head|body|div|p)\b", re.IGNORECASE)


class TextReader(BaseDiskReader):
    """A document a file, compressed or not. Files that are not UTF-8 are counted and left out."""

    name = "📄 Text"

    def read_file(self, filepath: str) -> DocumentsPipeline:
        with self.data_folder.open(filepath, "rb", compression="infer") as file:
            data = file.read()
        try:
            text = data.decode("utf-8-sig")
        except UnicodeDecodeError:
            self.stat_update(UNREADABLE)
            return
        document = self.get_document_from_dict({"text": text}, printable(filepath), 0)
        if document:
            yield document


class LineReader(JsonlReader):
    """A document a line of jsonl, its texts valid Unicode. Lines that are not UTF-8 or no JSON object are counted and left out.

    datatrove's own reader leaves out the rest of a file at its first byte that is not UTF-8, and counts nothing.
    """

    name = "🐿 Lines"

    def read_file(self, filepath: str) -> DocumentsPipeline:
        with self.data_folder.open(filepath, "rb", compression=self.compression) as file:
            for number, line in enumerate(file):
                try:
                    entry = valid_values(json.loads(line.decode("utf-8-sig")))
                except (ValueError, RecursionError):
                    entry = None
                if not line.strip():
                    continue
                if not isinstance(entry, dict):
                    self.stat_update(UNREADABLE)
                elif document := self.get_document_from_dict(entry, printable(filepath), number):
                    yield document


class ExtractHtml(Trafilatura):
    """datatrove's trafilatura step for the documents that are HTML; others pass as they are."""

    def extract(self, text: str) -> str:
        return super().extract(text) if _HTML.search(text[:5000]) else text


class OfflineLID(LID):
    """py3langid behind datatrove's interface: [0, 1] probabilities of two-letter codes."""

    _model = None

    def predict(self, doc: Document) -> tuple[tuple[str, float], dict[str, float]]:
        if self._model is None:
            from py3langid.langid import MODEL_FILE, LanguageIdentifier

            self._model = LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)
        scores = {language: float(score) for language, score in self._model.rank(doc.text[:20_000])}
        best = max(scores.items(), key=lambda pair: pair[1])
        return best, {language: scores.get(language, 0.0) for language in self.languages} if self.languages else scores


class SampleWriter(JsonlWriter):
    """An exclusion writer that keeps the first `limit` documents of each reason and task, cut short."""

    name = "🔎 Samples"

    def __init__(self, folder: str, limit: int) -> None:
        super().__init__(folder, compression=None)
        self._limit, self._written = limit, Counter()

    def write(self, document: Document, rank: int = 0, **kwargs) -> None:
        reason = document.metadata.get("filter_reason", "")
        self._written[reason] += 1
        if self._written[reason] <= self._limit:
            keep = {k: v for k, v in document.metadata.items() if isinstance(v, str | int | float | bool)}
            super().write(Document(document.text[:SAMPLE_CHARACTERS], document.id, metadata=keep), rank, **kwargs)


class DecontaminationIndex(PipelineStep):
    """Writes the n-gram hashes that NGramsDecontFilter reads, of questions joined to their answers.

    datatrove's own indexer hashes lighteval's tasks only, and needs that package.
    """

    type, name = "🦠 - DECONT", "💥 Evaluation n-grams"

    def __init__(
        self, files: tuple[Path, ...], fields: tuple[str, str], folder: str, config: NGramsDecontConfig, language: str
    ) -> None:
        super().__init__()
        self._files, self._fields, self._config, self._language = files, fields, config, language
        self._folder = get_datafolder(folder)

    def run(self, data: DocumentsPipeline = None, rank: int = 0, world_size: int = 1) -> None:
        words, hash_of = load_word_tokenizer(self._language), create_hash_func(self._config.hash_config)
        for file in self._files:
            hashes = set()
            for text in evaluation_texts(file, self._fields):
                tokens = words.word_tokenize(simplify_text(text, self._config.norm_config))
                hashes.update(hash_of(" ".join(gram)) for gram in ngrams(tokens, self._config.n_grams))
            self.stat_update("n_grams", value=len(hashes))
            with self._folder.open(f"{file.stem}.index.hashes", "wb") as out:
                out.write(np.array(sorted(hashes), dtype=self._config.hash_config.np_descr).tobytes())


def evaluation_texts(file: Path, fields: tuple[str, str]) -> list[str]:
    """Question and answer of each jsonl line, joined."""
    texts = []
    for number, entry in enumerate(read_jsonl(file), 1):
        parts = [entry[field] for field in fields if isinstance(entry.get(field), str)]
        if not parts:
            raise InputError(f"{file}, object {number}, has neither {fields[0]} nor {fields[1]} as text; name its fields")
        texts.append(" ".join(parts))
    return texts


class Pack(PipelineStep):
    """Documents to token shards, one series a task. Text is never read as control tokens."""

    type, name = "🔢 - TOKENIZER", "📦 Packed shards"

    def __init__(self, folder: Path, tokenizer: Path, eos: str, shard_tokens: int) -> None:
        super().__init__()
        self._folder, self._tokenizer, self._eos, self._shard_tokens = folder, tokenizer, eos, shard_tokens

    def run(self, data: DocumentsPipeline, rank: int = 0, world_size: int = 1) -> None:
        tokenizer = load_tokenizer(self._tokenizer)
        writer = ShardWriter(self._folder, vocabulary(self._tokenizer, self._eos), f"{rank:05d}", self._shard_tokens)
        done = writer.documents  # of a run that was killed
        for number, document in enumerate(data):
            if number >= done:
                with self.track_time():
                    tokens = tokenizer.encode(document.text, special=False)
                    writer.add(tokens, text_key(document.text))
                self.stat_update("tokens", value=len(tokens) + 1)
            self.stat_update(StatHints.total)
            self.update_doc_stats(document)
        writer.close()


def text_key(text: str) -> int:
    """64-bit hash by which documents are told apart across folders."""
    import xxhash

    return xxhash.xxh64_intdigest(text.encode("utf-8", "replace"))


def vocabulary(folder: Path, eos: str) -> Vocabulary:
    """The Vocabulary of a tokenizer folder, hashed by its file. Raises InputError if it does not know `eos`."""
    tokenizer = load_tokenizer(folder)
    end = tokenizer.id_of(eos)
    if end is None:
        known = ", ".join(list(tokenizer.special_ids)[:8])
        raise InputError(f"the tokenizer in {folder} has no {eos}; set eos to a token that ends documents: {known}")
    file = vocabulary_file(folder)
    assert file is not None  # load_tokenizer read it
    return Vocabulary(tokenizer.vocab_size, end, sha256(file))
