"""The model's thread: bundle, library and answers; the window only puts orders in and takes events out."""

from __future__ import annotations

import contextlib
import logging
import queue
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import asdict, is_dataclass
from pathlib import Path
from typing import Any

from phi3mobile.assistant import problems
from phi3mobile.assistant.device import open_engine
from phi3mobile.assistant.events import Event, Failed, Finished, LibraryOpened, Loaded, Loading, Notice, Piece, Sources
from phi3mobile.assistant.history import images_of, text_of, with_pictures
from phi3mobile.assistant.meters import Metered
from phi3mobile.assistant.problems import Problem
from phi3mobile.errors import InputError
from phi3mobile.session.sampling import GREEDY, Sampling

PASSAGES = 4  # given to the model with a question
_log = logging.getLogger("phi3mobile.assistant")


class Worker:
    """Orders run one after another in one daemon thread. `stop` acts at once.

    `open_bundle`, `open_library`, `ground` (grounded_messages), `open_engine` and `open_tower` replace phi3mobile's own in
    tests; open_tower gives None where the session is to open the bundle's own, if it has one.
    """

    def __init__(
        self,
        open_bundle: Callable[[str | Path], Any] | None = None,
        open_library: Callable[[str | Path], Any] | None = None,
        ground: Callable[..., list[dict[str, Any]]] | None = None,
        open_engine: Callable[[Any], Any] = open_engine,
        open_tower: Callable[[Any], Any] = lambda bundle: None,
        kept: Path | None = None,
    ) -> None:
        """kept: file of the open chat's KV cache, so that the next start does not prefill it again; None: it is not kept."""
        self.events: queue.SimpleQueue[Event] = queue.SimpleQueue()
        self.engine: Metered | None = None  # of the open bundle; its counters may be read from any thread
        self._open_bundle, self._open_library = open_bundle or _open_bundle, open_library or _open_library
        self._ground, self._open_engine, self._open_tower = ground or _ground, open_engine, open_tower
        self._orders: queue.SimpleQueue[tuple[str, Callable[[], None]] | None] = queue.SimpleQueue()
        self._session: Any = None
        self._kept = kept
        self._library: Any = None
        self._looking = False  # the last notice says that pictures are looked at
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="model", daemon=True)
        self._thread.start()

    def load(self, path: str | Path) -> None:
        """Open a bundle in place of the one that is open. Events: Loading..., then Loaded or Failed."""
        self.stop()
        self._orders.put(("load", lambda: self._load(Path(path))))

    def use_library(self, path: str | Path | None) -> None:
        """Answer from this library of documents; None: from none. Events: LibraryOpened or Failed."""
        self._orders.put(("library", lambda: self._use_library(path)))

    def index(self, documents: Iterable[Path], library: Path) -> None:
        """Make the library at `library` hold these documents (files, folders), then use it."""
        documents = list(documents)
        self._orders.put(("library", lambda: self._index(documents, library)))

    def answer(self, messages: list[dict[str, Any]], sampling: Sampling, max_tokens: int) -> None:
        """Answer the last message (contents as session.content has them; an image is a file). Events: Sources (with a
        library), Notice (with pictures), Piece..., then Finished or Failed."""
        self._stopping.clear()
        self._orders.put(("answer", lambda: self._answer(messages, sampling, max_tokens)))

    def keep(self) -> None:
        """Write the KV cache to its file now: the system may end the app without a word. No events."""
        self._orders.put(("keep", self._keep))

    def stop(self) -> None:
        """End the running answer within one token."""
        self._stopping.set()
        if (session := self._session) is not None:
            session.cancel()

    def close(self, timeout_s: float = 10.0) -> None:
        """Stop, give the model's memory back and end the thread."""
        self.stop()
        self._orders.put(None)
        self._thread.join(timeout_s)

    def _run(self) -> None:
        while (order := self._orders.get()) is not None:
            at, action = order
            try:
                action()
            except InputError as error:
                kind = {"load": problems.bundle_failed, "library": problems.library_failed}.get(at, problems.answer_refused)
                self.events.put(Failed(at, kind(" ".join(str(error).split()))))
            except MemoryError as error:
                detail = f"The system gave no more memory ({error})" if str(error) else ""
                self.events.put(Failed(at, Problem("There is not enough memory.", detail, "Choose a model", "pick_bundle")))
            except Exception as error:  # a bug: the person's window and conversation go on
                _log.exception("%s failed", at)
                self.events.put(Failed(at, problems.bug(error)))
        self._close_session()
        self._close_library()

    def _load(self, path: Path) -> None:
        from phi3mobile.session.session import Session

        start = time.perf_counter()
        self._close_session()  # first: two models rarely fit
        self.events.put(Loading("Checking the files", 0.1))
        bundle = self._open_bundle(path)
        self.events.put(Loading("Reading the vocabulary", 0.4))
        bundle.tokenizer.encode("warm")
        self.events.put(Loading("Loading the model", 0.6))
        engine = Metered(self._open_engine(bundle))
        try:
            self._session = Session(bundle, engine=engine, tower=self._open_tower(bundle), on_event=self._notice)
        except BaseException:
            engine.close()
            raise
        self.engine = engine
        if self._kept is not None:
            with contextlib.suppress(InputError):  # none yet, or another model's: it is prefilled
                engine.used = self._session.restore(self._kept)
        name = getattr(bundle, "manifest", {}).get("name", path.name)
        seconds = time.perf_counter() - start
        sampling, sees = getattr(bundle, "sampling", GREEDY), self._session.pictures is not None
        self.events.put(Loaded(path, name, engine.info.max_context, seconds, sampling, sees))

    def _notice(self, text: str) -> None:
        """What the session is at, for people."""
        self._looking = text.startswith("looking at a picture")
        self.events.put(Notice("Looking at the picture…" if self._looking else text))

    def _looked(self) -> None:
        if self._looking:
            self._looking = False
            self.events.put(Notice(""))

    def _keep(self) -> None:
        if self._kept is not None and self._session is not None and self.engine is not None and self.engine.used:
            with contextlib.suppress(InputError):  # an engine that can't, a full disk: it is prefilled
                self._session.save(self._kept)

    def _close_session(self) -> None:
        self._keep()
        session, self._session, self.engine = self._session, None, None
        if session is not None:
            session.close()

    def _use_library(self, path: str | Path | None) -> None:
        self._close_library()
        if path is None:
            self.events.put(LibraryOpened(None))
            return
        self._library = self._open_library(path)
        self.events.put(LibraryOpened(Path(path)))

    def _index(self, documents: list[Path], library: Path) -> None:
        from phi3mobile.retrieval import index_documents

        def progress(stage: str, done: int, total: int) -> None:
            self.events.put(Notice(f"Reading your documents: {stage}, {done} of {total}"))

        progress("start", 0, len(documents))
        try:
            files = None if library.exists() else _embedder_files(progress)
            report = index_documents(
                documents, library, embedder_files=files and (lambda: files), skip_damaged=True, progress=progress
            )
        except InputError as error:
            self.events.put(Notice(""))
            self.events.put(Failed("documents", problems.document_failed(str(error))))
            return
        if report.damaged:
            more = f" (and {len(report.damaged) - 1} more)" if len(report.damaged) > 1 else ""
            self.events.put(Failed("documents", problems.document_failed(report.damaged[0] + more)))
        self._close_library()
        self._library = self._open_library(library)
        self.events.put(LibraryOpened(library, tuple(map(str, documents))))

    def _close_library(self) -> None:
        library, self._library = self._library, None
        if hasattr(library, "close"):
            with contextlib.suppress(Exception):
                library.close()

    def _answer(self, messages: list[dict[str, Any]], sampling: Sampling, max_tokens: int) -> None:
        if self._session is None:
            self.events.put(Failed("answer", problems.no_bundle()))
            return
        if any(not Path(image).is_file() for message in messages for image in images_of(message)):
            self.events.put(Failed("answer", problems.picture_gone()))
            return
        given = self._with_sources(messages) if self._library is not None else messages
        if given is None:
            from phi3mobile.retrieval.answer import NOTHING_FOUND

            self.events.put(Piece(NOTHING_FOUND))
            self.events.put(Finished(None))
            return
        quotes = given is not messages  # answers from passages repeat them: drafts by lookup are often right
        sampling = GREEDY if quotes else sampling  # and what is quoted must not be drawn or slurred
        pieces = self._session.generate(given, sampling=sampling, max_tokens=max_tokens, overflow="slide", lookup=quotes)
        if self._stopping.is_set():  # asked for before generate forgot earlier cancels
            self._session.cancel()
        try:
            for text in pieces:
                self._looked()
                self.events.put(Piece(text))
        finally:
            self._looked()
        self.events.put(Finished(asdict(self._session.statistics)))

    def _with_sources(self, messages: list[dict[str, Any]]) -> list[dict[str, Any]] | None:
        """The messages with what the library says to the last one, and its Sources event; None if it says nothing and there
        are no pictures: the model, asked all the same, would invent."""
        question = text_of(messages[-1])
        if not question:  # pictures alone
            return messages
        try:
            passages = self._library.search(question, k=PASSAGES)
        except InputError as error:
            self.events.put(Failed("library", problems.search_failed(str(error))))
            return messages
        self.events.put(Sources(tuple(_plain(passage) for passage in passages)))
        if not passages:
            return messages if any(map(images_of, messages)) else None
        *history, grounded = self._ground(question, passages, messages[:-1])
        if images := images_of(messages[-1]):
            text = grounded["content"].replace("<|image_", "<image_")  # a document must not place pictures
            grounded = grounded | {"content": with_pictures(images, text)}
        return [*history, grounded]


def _plain(passage: Any) -> dict[str, Any]:
    """A passage as JSON can hold it."""
    fields = asdict(passage) if is_dataclass(passage) else dict(passage)
    plain = {name: str(fields.get(name, "") or "") for name in ("text", "title", "source", "location")}
    return plain | {"score": float(fields.get("score", 0.0) or 0.0)}


def _open_bundle(path: str | Path) -> Any:
    from phi3mobile.bundle import open_bundle

    return open_bundle(path)


def _embedder_files(progress: Callable[[str, int, int], None]) -> tuple[bytes, bytes] | None:
    """The sentence embedder for a new library; None where it is not installed: then words are searched, not meanings."""
    from phi3mobile.export.verbs.index import embedder_files

    try:
        return embedder_files(progress)
    except (InputError, ImportError):
        return None


def _ground(question: str, passages: list[Any], history: list[dict[str, Any]]) -> list[dict[str, Any]]:
    from phi3mobile.retrieval.answer import grounded_messages

    return grounded_messages(question, passages, history)


def _open_library(path: str | Path) -> Any:
    try:
        from phi3mobile.retrieval.library import open_library
    except ImportError as error:
        raise InputError(f"this installation can't search documents ({error}); install phi3mobile[library]") from None
    return open_library(path)
