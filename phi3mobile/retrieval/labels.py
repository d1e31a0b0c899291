"""Names of encodings, as browsers take them, and the packages of the extra [library]."""

from __future__ import annotations

import importlib
from typing import Any

from phi3mobile import extras
from phi3mobile.retrieval.document import Unreadable


def codec_of(label: str) -> str | None:
    """The codec that browsers use for an encoding's name; None for a name they do not know, or none."""
    if label.lower() in ("", "utf-8"):  # needs no package
        return label.lower() or None
    encoding = need("webencodings").lookup(label)
    if encoding is None or encoding.name in ("replacement", "x-user-defined"):
        return None
    # A name that can be read as bytes is not in UTF-16, whatever it says.
    other = {"gbk": "gb18030", "utf-16le": "utf-8", "utf-16be": "utf-8"}
    return other.get(encoding.name) or encoding.codec_info.name


def need(module: str) -> Any:
    """A module of the extra [library]. Raises Unreadable if it is not installed."""
    try:
        return importlib.import_module(module)
    except ImportError:
        package = module.partition(".")[0].replace("_", "-")
        raise Unreadable(f"this needs the package {package} ({extras.command('library')})") from None
