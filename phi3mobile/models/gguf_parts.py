"""GGUF files opened: one, or all the parts of a split model as one."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gguf

from phi3mobile.errors import InputError
from phi3mobile.models.gguf_names import models_among, part_of


@dataclass(frozen=True)
class GgufFile:
    """An open model. reader: of the metadata, which a split model has in its first part."""

    path: Path
    reader: gguf.GGUFReader
    tensors: dict[str, gguf.ReaderTensor]
    paths: list[Path]  # of the parts


def gguf_in(folder: Path) -> Path | None:
    """The GGUF model in a folder, a split one by its first part; None if there is none. InputError: several."""
    names = models_among(path.name for path in folder.glob("*.gguf"))
    if len(names) > 1:
        listed = ", ".join(names[:8]) + (", ..." if len(names) > 8 else "")
        raise InputError(f"{folder} holds {len(names)} GGUF models ({listed}); give one of the files")
    return folder / names[0] if names else None


def open_file(path: Path) -> GgufFile:
    """Open the file, or the split model that it is a part of. Reads headers only.

    InputError: missing, not GGUF, truncated; a part that is missing, or parts of two splits.
    """
    reader = _open_reader(path)
    count = value_of(path, reader, "split.count") or 1
    if count == 1:
        return GgufFile(path, reader, {tensor.name: tensor for tensor in reader.tensors}, [path])
    paths = _all_parts(path, count)
    readers = [reader if one == path else _open_reader(one) for one in paths]
    tensors: dict[str, gguf.ReaderTensor] = {}
    for number, (one, its) in enumerate(zip(paths, readers, strict=True)):
        _refuse_stranger(one, its, {"split.no": number, "split.count": count}, paths[0], readers[0])
        for tensor in its.tensors:
            if tensor.name in tensors:
                raise InputError(f"{one} has the tensor {tensor.name}, which another part has as well: parts of two splits?")
            tensors[tensor.name] = tensor
    stated = value_of(paths[0], readers[0], "split.tensors.count")
    if stated is not None and stated != len(tensors):
        raise InputError(f"the parts of {paths[0]} have {len(tensors)} tensors where it says {stated}: parts of two splits?")
    return GgufFile(paths[0], readers[0], tensors, paths)


def _all_parts(path: Path, count: Any) -> list[Path]:
    """The files of the split model that `path` is one of `count` parts of."""
    part = part_of(path.name)
    if part is None or part.total != count:
        raise InputError(
            f"{path} is one of {count} parts of a split model and is not named so; give the parts their names back: "
            f"NAME-00001-of-{count!s:0>5}.gguf and so on"
        )
    paths = [path.with_name(name) for name in part.names]
    if missing := [one.name for one in paths if not one.is_file()]:
        raise InputError(f"{path} is one of {count} parts of a split model; download {', '.join(missing[:6])} beside it")
    return paths


def _refuse_stranger(
    path: Path, reader: gguf.GGUFReader, expected: dict[str, Any], first_path: Path, first: gguf.GGUFReader
) -> None:
    """InputError if a part's metadata are not as `expected`, or not what the first part says of the split and the model."""
    for key in ("split.tensors.count", *(key for key in reader.fields if key.startswith("general."))):
        if key in first.fields:  # later parts seldom have more than split's own keys
            expected[key] = value_of(first_path, first, key)
    for key, value in expected.items():
        if (found := value_of(path, reader, key)) != value:
            raise InputError(f"{path}: {key} is {found!r} where {value!r} belongs: parts of two splits or models?")


def _open_reader(path: Path) -> gguf.GGUFReader:
    if not path.is_file():
        raise InputError(f"{path} {'is a folder' if path.is_dir() else 'does not exist'}; give a .gguf file")
    with path.open("rb") as file:
        if file.read(4) != b"GGUF":
            raise InputError(f"{path} is not a GGUF file: it does not start with GGUF")
    try:
        return gguf.GGUFReader(path)
    except Exception as error:  # the reader parses whatever lies there: any exception means damage
        raise _damaged(path, error) from None


def value_of(path: Path, reader: gguf.GGUFReader, key: str) -> Any:
    """The value of a metadata key, None without it. InputError for text that is none."""
    field = reader.fields.get(key)
    try:
        return None if field is None else field.contents()
    except (ValueError, IndexError, TypeError) as error:
        raise _damaged(path, error) from None


def _damaged(path: Path, error: Exception) -> InputError:
    reason = " ".join(str(error).split()) or type(error).__name__
    return InputError(f"{path} is truncated or damaged ({reason}); download it again")
