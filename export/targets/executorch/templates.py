"""Lowered segments, kept in the user's cache: most of an export's time is theirs, and weights don't change them.

A template's name is the SHA-256 of all that went into the lowering: torch's graph, its shapes and ranges, every constant, the
versions of torch and ExecuTorch. So nothing else can bring back a template than what would lower to the same one.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from importlib.metadata import version

import torch
from torch.export import ExportedProgram

from phi3mobile.errors import InputError
from phi3mobile.files import cache_folder, whole_file


@dataclass(frozen=True)
class Template:
    """A lowered segment whose weights are stand-ins."""

    kind: str
    attention: str
    payload: bytes
    keys: dict[str, list[str]]  # matrix's name -> its keys in the payload, in the order of stamp.named_data
    shared: dict[str, tuple[bytes, int]]  # key -> bytes and alignment of the named data that every copy has (1/K, eps)
    order: tuple[int, ...]  # which of the segment's inputs the delegate takes, in its order


def kept(name: str, lower: Callable[[], Template]) -> Template:
    """The template of this name; if the cache has none it is made and, where the cache can be written, stays there."""
    with contextlib.suppress(OSError, InputError, ValueError, LookupError, TypeError):
        return _read((cache_folder() / "lowered" / f"{name}.json").read_text("utf-8"))
    template = lower()
    with contextlib.suppress(OSError, InputError):
        path = cache_folder() / "lowered" / f"{name}.json"
        path.parent.mkdir(exist_ok=True)
        with whole_file(path) as file:
            file.write_text(_written(template), "utf-8")
    return template


def name_of(exported: ExportedProgram, *more: object) -> str:
    """What its lowering depends on, as one name; `more`: of the caller's own."""
    digest = hashlib.sha256()
    facts = [more, version("torch"), version("executorch"), exported.graph_signature, exported.range_constraints]
    nodes = ((node.format_node(), node.meta.get("val")) for node in exported.graph.nodes)
    for fact in (*facts, *nodes):
        digest.update(f"{fact}\n".encode())
    for name, value in sorted({**exported.state_dict, **exported.constants}.items()):
        digest.update(f"{name} {getattr(value, 'dtype', '')} {getattr(value, 'shape', value)}\n".encode())
        if isinstance(value, torch.Tensor):
            digest.update(value.detach().contiguous().view(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _written(template: Template) -> str:
    shared = {key: (base64.b64encode(data).decode(), alignment) for key, (data, alignment) in template.shared.items()}
    return json.dumps(asdict(template) | {"payload": base64.b64encode(template.payload).decode(), "shared": shared})


def _read(text: str) -> Template:
    about = json.loads(text)
    about["payload"] = base64.b64decode(about["payload"], validate=True)
    about["shared"] = {key: (base64.b64decode(data, validate=True), size) for key, (data, size) in about["shared"].items()}
    about["order"] = tuple(about["order"])
    return Template(**about)
