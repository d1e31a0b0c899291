"""The weight files of a checkpoint folder: one, or several that an index lists; and what in them is no weight."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from phi3mobile.errors import InputError

EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"
# Buffers that old tools stored beside the weights, all computed from the config: rope tables, masks, positions.
_BUFFER = re.compile(
    r"(^|\.)(rotary_emb|rotary_pos_emb|rope)\.\w+$"
    r"|(^|\.)(masked_bias|causal_mask|position_ids|inv_freq|cos_cached|sin_cached)$"
    r"|(^|\.)(self_)?attn\.bias$|(^|\.)attention\.bias$"
)


def is_spare(name: str, tied: bool) -> bool:
    """Whether a model is whole without the tensor: a buffer, or one of the two names of a `tied` table."""
    return bool(_BUFFER.search(name)) or (tied and name in (EMBEDDING, HEAD))


def open_files(folder: Path, tied: bool) -> dict[Path, Any]:
    """Path -> open safetensors file, all that the folder's weights are in. Reads headers only.

    An index may list spare tensors that no file holds. InputError: no weights, a damaged file, a bad or broken index.
    """
    index, single = folder / "model.safetensors.index.json", folder / "model.safetensors"
    if single.exists():  # before an index, as in transformers: one may be left from other files
        return {single: _open_file(single)}
    if index.exists():
        return _open_shards(folder, index, tied)
    if any(folder.glob("pytorch_model*.bin")):
        raise InputError(f"{folder} holds pytorch_model.bin only; save it again as safetensors (save_pretrained does)")
    raise InputError(f"{folder} has no model.safetensors and no model.safetensors.index.json: it is not a checkpoint")


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object of a checkpoint folder."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError(f"{path.parent} has no {path.name}: it is not a checkpoint folder") from None
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path} is not JSON: {error}") from None
    if not isinstance(value, dict):
        raise InputError(f"{path} must hold a JSON object")
    return value


def _open_file(path: Path) -> Any:
    try:
        return safe_open(path, framework="pt")
    except (SafetensorError, OSError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise InputError(f"{path} is truncated or damaged ({reason}); download or write it again") from None


def _open_shards(folder: Path, index: Path, tied: bool) -> dict[Path, Any]:
    weight_map = read_json(index).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map or not all(isinstance(v, str) for v in weight_map.values()):
        raise InputError(f"{index} must map tensor names to files under weight_map")
    shards = sorted(set(weight_map.values()))
    if strange := [shard for shard in shards if Path(shard).name != shard]:
        raise InputError(f"{index} names {strange[0]!r}; shards must lie in the same folder")
    if missing := [shard for shard in shards if not (folder / shard).is_file()]:
        raise InputError(f"{index} names files that are not there: {', '.join(missing)}; download them")
    files = {folder / shard: _open_file(folder / shard) for shard in shards}
    seen: dict[str, Path] = {}
    for path, file in files.items():
        for name in file.keys():  # noqa: SIM118
            if name in seen and (name == EMBEDDING or not is_spare(name, tied)):
                raise InputError(f"tensor {name} is in two shards, {seen[name].name} and {path.name}; keep one")
            seen[name] = path
    for name, shard in weight_map.items():  # a tensor in another shard than the one it is said to be in is found all the same
        if name not in seen and not is_spare(name, tied):
            raise InputError(f"{index} says {name} is in {shard}, and it is not; download the folder again")
    return files
