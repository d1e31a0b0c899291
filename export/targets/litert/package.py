"""A .litertlm package for LiteRT-LM: the program with tokenizer, chat template and stop ids in one file."""

from __future__ import annotations

from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from phi3mobile.errors import InputError

PACKAGE = "model.litertlm"
# LiteRT-LM hands a message's text over as a list of parts, which templates written for strings can't add to one.
_PARTS_TO_TEXT = """\
{%- set plain = namespace(messages=[]) -%}
{%- for message in messages -%}
{%- if message.content is string -%}
{%- set plain.messages = plain.messages + [message] -%}
{%- else -%}
{%- set text -%}{%- for part in message.content -%}{{- part.text -}}{%- endfor -%}{%- endset -%}
{%- set plain.messages = plain.messages + [{"role": message.role, "content": text}] -%}
{%- endif -%}
{%- endfor -%}
{%- set messages = plain.messages -%}
"""


def require_importable() -> None:
    """InputError with what to do if the installed package builder does not import beside what else is installed."""
    try:
        from litert_lm_builder import litertlm_builder  # noqa: F401
    except Exception as error:  # protobuf has exceptions of its own for code made by another version
        reason = " ".join(str(error).split())[:200]
        raise InputError(
            f"litert-lm-builder does not import beside protobuf {version('protobuf')} ({reason}); "
            "install 'phi3mobile[litert]' into an environment without the other extras"
        ) from None


def write_package(bundle: Path, program: Path, template: str | None, eos: list[int], limit: int) -> Path:
    """Write model.litertlm into the folder `bundle` from its tokenizer and `program`, which goes away.

    limit: positions that a conversation may take. The package stays within LongRoPE's original context, because LiteRT-LM
    does not compute a sequence again when it grows past: there the other factors would meet keys turned by these.
    InputError if the tokenizer is of a kind that LiteRT-LM doesn't read.
    """
    from litert_lm_builder import litertlm_builder
    from litert_lm_builder.runtime.proto import llm_metadata_pb2

    about = llm_metadata_pb2.LlmMetadata(max_num_tokens=limit)
    about.llm_model_type.generic_model.SetInParent()
    for token in eos:
        about.stop_tokens.add().token_ids.ids.append(token)
    if template is not None:
        about.jinja_prompt_template = _PARTS_TO_TEXT + template
    path = bundle / PACKAGE
    builder = litertlm_builder.LitertLmFileBuilder()
    builder.add_system_metadata(
        litertlm_builder.Metadata(key="Authors", value="phi3mobile", dtype=litertlm_builder.DType.STRING)
    )
    with TemporaryDirectory(dir=bundle, prefix=".package-") as scratch:
        metadata = Path(scratch) / "metadata.pb"
        metadata.write_bytes(about.SerializeToString())
        builder.add_llm_metadata(str(metadata))
        _add_tokenizer(builder, bundle)
        builder.add_tflite_model(str(program), litertlm_builder.TfLiteModelType.PREFILL_DECODE)
        with path.open("wb") as file:
            builder.build(file)
    program.unlink()
    return path


def _add_tokenizer(builder: Any, bundle: Path) -> None:
    if (bundle / "tokenizer.json").is_file():
        builder.add_hf_tokenizer(str(bundle / "tokenizer.json"))
    elif (bundle / "tokenizer.model").is_file():
        builder.add_sentencepiece_tokenizer(str(bundle / "tokenizer.model"))
    else:
        raise InputError("LiteRT-LM reads tokenizer.json or tokenizer.model; put one of them into the checkpoint's folder")
