"""The vocabulary of a GGUF file as an HF tokenizer: tokenizer.json, tokenizer_config.json, generation_config.json.

Sources: GGUF specification (tokenizer.ggml.* keys); llama.cpp's src/llama-vocab.cpp (pre-tokenizer of each "pre" type).
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from phi3mobile.errors import InputError
from phi3mobile.files import whole_file
from phi3mobile.models.gguf_names import special_id

if TYPE_CHECKING:
    import gguf

_NORMAL, _UNKNOWN, _CONTROL, _USER_DEFINED, _UNUSED, _BYTE = range(1, 7)  # tokenizer.ggml.token_type
# Chat models end a turn with one of these, whether or not the file names it as its eot token.
_TURN_ENDS = ("<|end|>", "<|im_end|>", "<|eot_id|>", "<end_of_turn>")

_GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
_CL100K = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}%s| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_SHORT = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
_O200K = (
    rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}*{_LOWER}+{_SHORT}|[^\r\n\p{{L}}\p{{N}}]?{_UPPER}+{_LOWER}*{_SHORT}"
    r"|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_TEKKEN = (
    rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}*{_LOWER}+|[^\r\n\p{{L}}\p{{N}}]?{_UPPER}+{_LOWER}*"
    r"|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
# "pre" type -> the patterns that cut a text, one after the other, into words.
_DIGIT = r"\p{N}"  # written as the stage Digits: ExecuTorch's own tokenizer loses text at a Split on digits alone
_PRE_TYPES: dict[str, tuple[str, ...]] = {
    "gpt-2": (_GPT2,),
    "smollm": (_DIGIT, _GPT2),
    "llama-bpe": (_CL100K % "{1,3}",),
    "dbrx": (_CL100K % "{1,3}",),
    "qwen2": (_CL100K % "",),
    "gpt-4o": (_O200K,),  # phi-4-mini
    "tekken": (_TEKKEN,),  # Mistral's newer vocabularies
    "default": (r"[\p{P}\$\+<=>\^~\|]+", _GPT2, r"\p{N}+", "[0-9][0-9][0-9]"),
}
# Other names of the same types, in llama.cpp's converter.
_SAME = {
    "gpt-2": """phi-2 jina-es jina-de jina-v2-es jina-v2-de gigachat a.x-4.0 mellum modern-bert mpt olmo jais trillion
        granite-docling exaone4""",
    "smollm": "starcoder refact command-r codeshell exaone minerva-7b mellum2",
    "llama-bpe": "llama3 llama-v3 falcon3 falcon-h1 pixtral midm-2.0 lfm2 jina-v5-nano",
    "dbrx": "smaug-bpe glm4 chatglm-bpe",
    "qwen2": "deepseek-r1-qwen megrez stablelm2 hunyuan solar-open grok-2 kormo f2llmv2",
    "gpt-4o": "llama4 kanana2 talkie minimax-m2",
}
_ALIASES = {alias: name for name, aliases in _SAME.items() for alias in aliases.split()} | {"": "default"}
# These begin texts with the bos token, if the file does not say, and take a word that is in the vocabulary as it is, even where
# no merge leads to it.
_WHOLE_WORDS = ("llama-bpe", "tekken")


def write_tokenizer(reader: gguf.GGUFReader, folder: Path) -> None:
    """Write the vocabulary of `reader` as tokenizer.json, tokenizer_config.json and generation_config.json in `folder`.

    Control tokens keep their ids. chat_template is written if the file has one (else see chat.guess_template), eos ids
    are the file's eos, eot and eom and the usual turn ends among its control tokens. InputError for a vocabulary that
    is not supported or contradicts itself; then nothing is written.
    """
    model = _get(reader, "model")
    kinds = {"gpt2": _byte_level, "llama": _sentencepiece}
    if model not in kinds:
        raise InputError(f"GGUF vocabulary model {model!r} is not supported; allowed: {', '.join(kinds)}")
    tokens, types = _get(reader, "tokens"), _get(reader, "token_type", None)
    types = [_NORMAL] * len(tokens) if types is None else types[: len(tokens)]  # llama.cpp, too, leaves what is more unread
    if len(types) != len(tokens) or len(set(tokens)) != len(tokens):
        raise InputError(
            f"GGUF vocabulary has {len(tokens)} tokens ({len(set(tokens))} different) and {len(types)} token types; "
            "the numbers must be equal: download or convert the file again"
        )
    tokenizer = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": _added_tokens(reader, model, tokens, types),
        "post_processor": None,
        **kinds[model](reader, tokens, types),
    }

    def text_of(which: str) -> str | None:
        token = special_id(_get(reader, f"{which}_token_id", None), model, which, len(tokens))
        return None if token is None else tokens[token]

    begins = _get(reader, "add_bos_token", None)
    if begins and text_of("bos") is None:
        raise InputError("GGUF vocabulary adds a bos token and names none: it needs tokenizer.ggml.bos_token_id")
    if begins is None:
        begins = text_of("bos") is not None and (model == "llama" or _pre_type(reader) in _WHOLE_WORDS)
    config: dict[str, Any] = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": text_of("bos"),
        "eos_token": text_of("eos"),
        "pad_token": text_of("padding"),
        "add_bos_token": bool(begins),
        "clean_up_tokenization_spaces": False,
    }
    template = reader.get_field("tokenizer.chat_template")
    if template is not None:
        config["chat_template"] = template.contents()
    ends = [text_of("eos"), text_of("eot"), text_of("eom")]
    ends += [text for text, kind in zip(tokens, types, strict=True) if kind != _NORMAL and text in _TURN_ENDS]
    eos = list(dict.fromkeys(tokens.index(text) for text in ends if text is not None))
    if not eos:
        raise InputError("GGUF vocabulary names no end: it needs tokenizer.ggml.eos_token_id; convert the file again")
    generation: dict[str, Any] = {"eos_token_id": eos}
    if config["bos_token"] is not None:
        generation["bos_token_id"] = tokens.index(config["bos_token"])

    folder.mkdir(parents=True, exist_ok=True)
    files = {"tokenizer.json": tokenizer, "tokenizer_config.json": config, "generation_config.json": generation}
    for name, content in files.items():
        indent = None if name == "tokenizer.json" else 2
        with whole_file(folder / name) as partial:
            partial.write_text(json.dumps(content, ensure_ascii=False, indent=indent), "utf-8")


def _added_tokens(reader: gguf.GGUFReader, model: str, tokens: list[str], types: list[int]) -> list[dict[str, Any]]:
    field = reader.get_field("tokenizer.chat_template")
    template = field.contents() if field is not None else ""

    def is_special(text: str, kind: int) -> bool:
        # Early conversions wrote the chat's tags as user-defined words.
        tag = text in _TURN_ENDS or (text.startswith("<|") and text.endswith("|>") and text in template)
        return kind != _USER_DEFINED or tag

    # Phi-3's released tokenizer swallows the whitespace after these (rstrip), which a GGUF can't say.
    phi3 = model == "llama" and {"<|user|>", "<|assistant|>", "<|end|>"} <= set(tokens)
    return [
        {
            "id": i,
            "content": text,
            "single_word": False,
            "lstrip": False,
            "rstrip": phi3 and text not in ("<unk>", "<s>", "<|endoftext|>"),
            "normalized": False,
            "special": is_special(text, kind),
        }
        for i, (text, kind) in enumerate(zip(tokens, types, strict=True))
        if kind in (_UNKNOWN, _CONTROL, _USER_DEFINED)
    ]


def _byte_level(reader: gguf.GGUFReader, tokens: list[str], types: list[int]) -> dict[str, Any]:
    pre = _pre_type(reader)
    merges = [merge.split(" ") for merge in _get(reader, "merges")]
    vocab = _model_vocab(tokens, types)
    _check_merges(merges, vocab)
    splits = [
        {"type": "Digits", "individual_digits": True}
        if pattern == _DIGIT
        else {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}
        for pattern in _PRE_TYPES[pre]
    ]
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
    return {
        "normalizer": None,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [*splits, byte_level]},
        "decoder": byte_level,
        "model": _bpe(vocab, merges, ignore_merges=pre in _WHOLE_WORDS),
    }


def _pre_type(reader: gguf.GGUFReader) -> str:
    """A key of _PRE_TYPES. InputError for a name that means none of them."""
    name = _get(reader, "pre", "default")
    pre = _ALIASES.get(name, name)
    if pre not in _PRE_TYPES:
        raise InputError(f"GGUF pre-tokenizer {name!r} is not supported; allowed: {', '.join((*_PRE_TYPES, *_ALIASES))}")
    return pre


def _sentencepiece(reader: gguf.GGUFReader, tokens: list[str], types: list[int]) -> dict[str, Any]:
    scores = _get(reader, "scores")[: len(tokens)]
    if any(score != score for score in scores):
        raise InputError("GGUF vocabulary has scores that are NaN: no order of merges follows; convert the file again")
    if len(scores) != len(tokens):
        raise InputError(f"GGUF vocabulary has {len(tokens)} tokens and {len(scores)} scores; convert the file again")
    vocab = _model_vocab(tokens, types)
    normal = {text for i, text in enumerate(tokens) if types[i] == _NORMAL}
    missing = [byte for byte in range(256) if f"<0x{byte:02X}>" not in vocab]
    if missing:
        raise InputError(f"GGUF vocabulary lacks {len(missing)} byte tokens (<0x{missing[0]:02X}>); convert it again")
    # sentencepiece joins the neighbours whose joined piece scores best: each way to split a piece is a merge, ranked by
    # the piece's score; within a piece by its parts' ids, as HF's converter does.
    merges = [
        (scores[vocab[piece]], vocab[piece[:cut]], vocab[piece[cut:]], [piece[:cut], piece[cut:]])
        for piece in normal
        for cut in range(1, len(piece))
        if piece[:cut] in normal and piece[cut:] in normal
    ]
    merges.sort(key=lambda merge: (-merge[0], merge[1], merge[2]))
    space = bool(_get(reader, "add_space_prefix", True))
    prepend = [{"type": "Prepend", "prepend": "▁"}] if space else []
    strip = [{"type": "Strip", "content": " ", "start": 1, "stop": 0}] if space else []
    replace = {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}
    back = {"type": "Replace", "pattern": {"String": "▁"}, "content": " "}
    unknown = next((text for i, text in enumerate(tokens) if types[i] == _UNKNOWN), None)
    return {
        "normalizer": {"type": "Sequence", "normalizers": [*prepend, replace]},
        "pre_tokenizer": None,
        "decoder": {"type": "Sequence", "decoders": [back, {"type": "ByteFallback"}, {"type": "Fuse"}, *strip]},
        "model": _bpe(vocab, [merge[3] for merge in merges], byte_fallback=True, unk_token=unknown),
    }


def _model_vocab(tokens: list[str], types: list[int]) -> dict[str, int]:
    """Every token (an added token that is not here gets a new id), less the unused ones that only pad the embedding."""
    size = max((i + 1 for i, kind in enumerate(types) if kind != _UNUSED), default=0)
    return {text: i for i, text in enumerate(tokens[:size])}


def _bpe(vocab: dict[str, int], merges: list[list[str]], **options: Any) -> dict[str, Any]:
    model: dict[str, Any] = {"type": "BPE", "dropout": None, "unk_token": None, "continuing_subword_prefix": None}
    model |= {"end_of_word_suffix": None, "fuse_unk": True, "byte_fallback": False, "ignore_merges": False}
    return model | options | {"vocab": vocab, "merges": merges}


def _check_merges(merges: Iterable[list[str]], vocab: dict[str, int]) -> None:
    for merge in merges:
        if len(merge) != 2 or any(text not in vocab for text in (*merge, "".join(merge))):
            raise InputError(f"GGUF merge {' '.join(merge)!r} is not of two tokens that make a third; convert it again")


_REQUIRED = object()


def _get(reader: gguf.GGUFReader, key: str, default: Any = _REQUIRED) -> Any:
    field = reader.get_field(f"tokenizer.ggml.{key}")
    if field is not None:
        try:
            return field.contents()
        except UnicodeDecodeError as error:
            raise InputError(f"GGUF vocabulary: tokenizer.ggml.{key} holds text that is not UTF-8 ({error})") from None
    if default is _REQUIRED:
        raise InputError(f"GGUF file has no tokenizer.ggml.{key}; use a file that holds its tokenizer")
    return default
