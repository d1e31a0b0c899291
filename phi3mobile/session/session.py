"""Session: messages or a prompt in, streamed text and statistics out, over any Engine."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Sequence
from pathlib import Path
from threading import Event
from typing import TYPE_CHECKING, Any, Literal, Protocol

from phi3mobile.engines import Engine
from phi3mobile.engines.tower import Tower
from phi3mobile.errors import InputError
from phi3mobile.session.content import checked_messages, encode, see
from phi3mobile.session.conversation import Window
from phi3mobile.session.decoding import Decoder, Rows
from phi3mobile.session.defaults import MAX_TOKENS, chosen_sampling
from phi3mobile.session.guidance import Guide
from phi3mobile.session.repetition import Repetition
from phi3mobile.session.sampling import GREEDY, Sampling
from phi3mobile.session.statistics import Statistics, statistics_of
from phi3mobile.session.stops import StopGate
from phi3mobile.session.tools import CONTROL, CallGate, ToolCall, Tools, results_as_messages, spans

if TYPE_CHECKING:
    from phi3mobile.session.pictures import Pictures

Overflow = Literal["stop", "slide"]


class Parts(Protocol):
    """What a Session takes from a bundle."""

    @property
    def tokenizer(self) -> Any: ...  # encode(text) -> list[int]; stream() -> push(id) -> str, finish() -> str

    @property
    def chat(self) -> Any: ...  # encode(tokenizer, messages) -> list[int], up to where the answer starts

    @property
    def eos_ids(self) -> frozenset[int]: ...


class Session:
    """Text generation over one KV cache; a conversation's next turn prefills only what is new.

    `bundle` is a path or an opened Bundle; `engine` replaces the bundle's own, and must be given with other Parts, as must
    a `tower` if these see pictures. num_crops: of each picture at most, default the model's; features: a folder where what
    the tower saw is kept for other sessions.
    One generation runs at a time: starting another ends the one before. `cancel` may come from any thread.
    """

    def __init__(
        self,
        bundle: str | Path | Parts,
        engine: Engine | None = None,
        *,
        experts_memory: int | None = None,
        tower: Tower | None = None,
        num_crops: int | None = None,
        features: Path | None = None,
        on_event: Callable[[str], None] = lambda event: None,
    ) -> None:
        from phi3mobile.bundle import Bundle, open_bundle  # here: with Parts given, a Session needs no files

        self.parts: Parts = open_bundle(bundle) if isinstance(bundle, str | Path) else bundle
        if engine is None:
            from phi3mobile.engines.registry import open_engine

            if not isinstance(self.parts, Bundle):
                raise TypeError("a Session over other parts than a bundle's must be given its engine")
            engine = open_engine(self.parts, experts_memory=experts_memory)
        self.engine = engine
        if tower is None and getattr(self.parts, "vision", None) is not None:
            from phi3mobile.engines.registry import open_tower

            assert isinstance(self.parts, Bundle)
            tower = open_tower(self.parts)
        self.pictures: Pictures | None = None  # None: the model sees none
        if tower is not None:
            from phi3mobile.session.pictures import Pictures

            self.pictures = Pictures(tower, num_crops, features, on_event)
        elif num_crops is not None:
            raise InputError(f"num_crops is {num_crops}: this model sees no pictures; leave it out")
        self.statistics: Statistics | None = None  # of the last answer that ended
        self.calls: tuple[ToolCall, ...] = ()  # that the last answer was, which then had no text
        self._rows = Rows(self.engine, self.pictures.embeddings if self.pictures else None)
        self._on_event = on_event
        self._cancel = Event()
        self._running: Generator[str] | None = None

    @property
    def experts(self) -> dict[str, Any] | None:
        """What the engine counted of a mixture's experts since it was opened (engines/expert_file.py); None: no mixture."""
        return getattr(self.engine, "experts", None)

    def generate(
        self,
        messages: Sequence[dict[str, Any]],
        *,
        sampling: Sampling | None = None,
        max_tokens: int | None = MAX_TOKENS,
        stop: Sequence[str] = (),
        overflow: Overflow = "stop",
        lookup: bool = False,
        guide: Guide | None = None,
        tools: Sequence[dict[str, Any]] | None = None,
        repetition: bool = False,
        temperature: float | None = None,
        top_k: int | None = None,
        top_p: float | None = None,
        min_p: float | None = None,
        repetition_penalty: float | None = None,
        seed: int | None = None,
    ) -> Iterator[str]:
        """Stream the answer to `messages` ({"role", "content"} each; a content is a text, or a list of texts and images).

        `sampling`, or its fields by name (Sampling says what they mean). What is not given is the bundle's: as its checkpoint
        asks, else greedy, with a repetition penalty of 1.1 for models below 1e9 parameters; guided answers are greedy.
        `max_tokens`: None for no limit. `repetition`: an answer may repeat one block of tokens for ever; else it is ended.
        `overflow`: when the context is full, "stop", or "slide": keep the system message, drop the oldest turns, go on.
        `lookup`: draft by quoting prompt and answer; the text is the same, faster where the answer quotes.
        `guide`: only an answer that it allows, complete within max_tokens and the context; a stop string or a cancel
        still cuts it short. What cannot be completed raises GuideError while streaming.
        `tools`: functions that the answer may ask for (session/tools.py): `calls` then, and no text; their arguments are valid
        under each tool's schema. What they gave goes into `messages` as {"role": "tool", "name", "content"}, and may
        stay there without `tools`: they are told as the user's.
        Raises InputError at the call: no messages, an empty user message, a prompt that does not fit, a bad argument,
        a guide whose shortest answer does not fit.
        """
        if overflow not in ("stop", "slide"):
            raise InputError(f'overflow is {overflow!r}; it must be "stop" or "slide"')
        messages = checked_messages(messages, self.pictures is not None)
        toolbox = self._toolbox(tools, guide)
        window = Window(
            messages,
            encode=lambda kept: self._encoded(kept, toolbox),
            max_context=self.engine.info.max_context,
            common=self._rows.common,
            on_event=self._on_event,
        )
        if overflow == "stop":
            tokens = window.encode(messages)
        else:
            kept = window.tokens([])
            if kept is None:
                raise self._too_long(len(window.smallest()), "the system message and the last turn alone have")
            tokens = kept
        sliding = window if overflow == "slide" else None
        chosen = self._sampling(
            sampling,
            guide,
            temperature=temperature,
            top_k=top_k,
            top_p=top_p,
            min_p=min_p,
            repetition_penalty=repetition_penalty,
            seed=seed,
        )
        return self._start(tokens, chosen, max_tokens, stop, lookup, sliding, guide, repetition, True, toolbox)

    def complete(
        self,
        prompt: str,
        *,
        sampling: Sampling | None = None,
        max_tokens: int | None = MAX_TOKENS,
        stop: Sequence[str] = (),
        lookup: bool = False,
        guide: Guide | None = None,
        repetition: bool = False,
        temperature: float | None = None,
        top_k: int | None = None,
        top_p: float | None = None,
        min_p: float | None = None,
        repetition_penalty: float | None = None,
        seed: int | None = None,
    ) -> Iterator[str]:
        """Stream the continuation of `prompt`, raw as given: no chat template, no bos. Arguments and errors as in generate.

        `prompt` and the streamed text are one text: "The capital is" is continued by " Paris".
        """
        if not prompt:
            raise InputError("the prompt is empty; write some text")
        tokens = self.parts.tokenizer.encode(prompt)
        chosen = self._sampling(
            sampling,
            guide,
            temperature=temperature,
            top_k=top_k,
            top_p=top_p,
            min_p=min_p,
            repetition_penalty=repetition_penalty,
            seed=seed,
        )
        return self._start(tokens, chosen, max_tokens, stop, lookup, None, guide, repetition, False, None)

    def cancel(self) -> None:
        """End the running answer within one token (or one prefill chunk); its text so far stands."""
        self._cancel.set()

    def reset(self) -> None:
        """End the running answer and forget the KV cache."""
        self._end_running()
        self._rows.tokens.clear()
        self.engine.reset()

    def save(self, path: str | Path) -> int:
        """End the running answer and write the KV cache to `path`, whole or not at all: bytes of the file.

        A later session over the same bundle goes on from it (`restore`) without prefilling. Pages of the cache that were never
        used take no space. Raises InputError: it can't be written, or the engine can't keep its cache (the native one can).
        """
        from phi3mobile.session.state import save_state

        self._end_running()
        return save_state(self._rows, self.parts, Path(path))

    def restore(self, path: str | Path) -> int:
        """Fill the KV cache with what `save` wrote: how many tokens it holds.

        Raises InputError: no such file, a damaged one, another bundle's or runtime's; then the cache is empty.
        """
        from phi3mobile.session.state import restore_state

        self._end_running()
        return restore_state(self._rows, self.parts, Path(path))

    def close(self) -> None:
        """Give the engine's memory back."""
        self._end_running()
        self.engine.close()
        if self.pictures is not None:
            self.pictures.close()

    def __enter__(self) -> Session:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def _toolbox(self, tools: Sequence[dict[str, Any]] | None, guide: Guide | None) -> Tools | None:
        if tools is None:
            return None
        if guide is not None:
            raise InputError("tools and a guide both say what the answer may be: give one of them")
        return Tools(tools)

    def _encoded(self, messages: list[dict[str, Any]], toolbox: Tools | None) -> list[int]:
        """The prompt's ids; of a model that sees pictures, with theirs."""
        chat, tokenizer, pictures = self.parts.chat, self.parts.tokenizer, self.pictures
        if toolbox:
            control = all(text in tokenizer.special_ids for text in CONTROL)
            segments = chat.segments()
            messages, mark = toolbox.told(messages, system=segments is None or segments["system"] is not None, control=control)
            if mark:
                return tokenizer.encode_spans(spans(chat.spans(messages, tokenizer.special_ids), mark))
        else:
            messages = results_as_messages(messages)
        if pictures is None:
            return chat.encode(tokenizer, messages)
        seen = see(messages)
        return encode(chat, tokenizer, seen.messages, lambda number: pictures.ids(seen.images[number - 1]))

    def _sampling(self, sampling: Sampling | None, guide: Guide | None, **given: float | None) -> Sampling:
        return chosen_sampling(GREEDY if guide else getattr(self.parts, "sampling", GREEDY), sampling, given)

    def _start(
        self,
        tokens: list[int],
        sampling: Sampling,
        max_tokens: int | None,
        stop: Sequence[str],
        lookup: bool,
        window: Window | None,
        guide: Guide | None,
        repetition: bool,
        at_start: bool,
        toolbox: Tools | None,
    ) -> Iterator[str]:
        if max_tokens is not None and (not isinstance(max_tokens, int) or max_tokens < 1):
            raise InputError(f"max_tokens is {max_tokens!r}; it must be an integer, 1 or more, or None for no limit")
        if isinstance(stop, str) or not all(isinstance(text, str) and text for text in stop):
            raise InputError(f"stop is {stop!r}; it must be a list of strings, none of them empty")
        if not tokens:
            raise InputError("the prompt has no tokens; write some text")
        if len(tokens) >= self.engine.info.max_context:
            raise self._too_long(len(tokens), "the prompt has", tokens)
        self._end_running()
        free = guide is None  # where a guide knows the answer's end, a repeated block may be what was asked for
        if toolbox:
            guide = Guide(toolbox.grammar(), self.parts.tokenizer)
        if guide:
            # A slid window keeps the last turn and the answer: the answer has all the other room.
            room = self.engine.info.max_context - len(window.smallest() if window else tokens)
            guide.start(room if max_tokens is None else min(room, max_tokens), at_start)
        self._cancel.clear()
        self.statistics, self.calls = None, ()
        decoder = Decoder(
            self._rows,
            list(tokens),
            self.parts.eos_ids,
            sampling,
            max_tokens,
            lookup,
            self._cancel.is_set,
            window.tokens if window else lambda answer: None,
            self._on_event,
            guide,
            Repetition() if free and not repetition else None,
        )
        self._running = self._stream(decoder, tuple(stop), window, at_start, toolbox)
        return self._running

    def _stream(
        self, decoder: Decoder, stop: tuple[str, ...], window: Window | None, at_start: bool, toolbox: Tools | None
    ) -> Generator[str]:
        text, gate, tokens = self.parts.tokenizer.stream(at_start=at_start), StopGate(stop), decoder.run()
        words = CallGate() if toolbox else None
        try:
            for token in tokens:
                shown = gate.push(text.push(token))
                if shown := words.push(shown) if words else shown:
                    yield shown
                if gate.hit:
                    break
            shown = gate.push(text.finish()) + gate.finish()
            if gate.hit:
                decoder.finish_reason = "stop_string"
            if toolbox and words:
                shown = words.push(shown) + words.finish()
                if not words.opened and (calls := toolbox.read(shown)):
                    self.calls, shown, decoder.finish_reason = calls, "", "tool_calls"
            if shown:
                yield shown
        except Exception:
            decoder.finish_reason = "error"
            raise
        finally:
            tokens.close()
            self.statistics = statistics_of(decoder, window.dropped if window else 0)

    def _end_running(self) -> None:
        if self._running is not None:
            try:
                self._running.close()
            except ValueError:
                raise RuntimeError("this session is generating in another thread: cancel() it and wait first") from None
            self._running = None

    def _too_long(self, length: int, what: str, tokens: Sequence[int] = ()) -> InputError:
        limit = self.engine.info.max_context
        too_long = f"{what} {length} tokens; the context holds {limit}, of which the answer needs at least 1: "
        of_pictures = sum(token < 0 for token in tokens)
        if self.pictures and of_pictures:
            fits = self.pictures.smaller(tokens, limit - 1)
            todo = f"{of_pictures} are of pictures, " + (f"num_crops {fits} would fit" if fits else "show fewer of them")
            return InputError(too_long + todo)
        return InputError(too_long + "shorten it, drop older messages, or export with a larger context")
