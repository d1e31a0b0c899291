"""How fast the core's tokenizer is beside the compiled library that Python uses, in one thread: one JSON line.

    python -m phi3mobile.bench.tokenizer FOLDER [--text FILE] [--library libphi3mobile.so] [--rounds 5]

FOLDER holds tokenizer.json or *.tiktoken. Megabytes of UTF-8 a second; `first`: no word is known yet, `again`: the same text
once more, as in a process that goes on. Both sides are opened anew for each round and take turns; medians over the rounds.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import os
import time
from collections.abc import Callable
from pathlib import Path

from phi3mobile.bench.measure import median
from phi3mobile.engines.native import native_library
from phi3mobile.errors import InputError
from phi3mobile.text.vocabularies import load_tokenizer

ENGLISH = Path(__file__).parent / "text" / "jargon.txt"
Encode = Callable[[], int]  # encodes the whole text -> how many ids


def core(library: ctypes.CDLL, folder: Path, data: bytes) -> Encode:
    """The core's tokenizer through its C border, opened. InputError: it refuses the folder."""
    open_, encode = library.p3m_tokenizer_open, library.p3m_encode
    open_.restype, encode.restype = ctypes.c_void_p, ctypes.c_int64
    error, ids = ctypes.create_string_buffer(500), (ctypes.c_int64 * (len(data) + 16))()
    tokenizer = ctypes.c_void_p(open_(os.fsencode(folder), error, ctypes.c_size_t(500)))
    if not tokenizer.value:
        raise InputError(error.value.decode())
    size, capacity = ctypes.c_size_t(len(data)), ctypes.c_size_t(len(ids))

    def run() -> int:
        return encode(tokenizer, data, size, 1, ids, capacity, error, ctypes.c_size_t(500))

    return run


def measure(library: Path, folder: Path, text: str, rounds: int = 5) -> dict[str, object]:
    """Speeds of both, seconds to open each, and whether their counts of ids agree."""
    os.environ["TOKENIZERS_PARALLELISM"], os.environ["RAYON_NUM_THREADS"] = "false", "1"
    loaded, data = ctypes.CDLL(str(library)), text.encode()

    def python() -> Encode:
        tokenizer = load_tokenizer(folder)
        return lambda: len(tokenizer.encode(text))

    seconds: dict[str, list[float]] = {}
    counts = set()
    for _ in range(rounds):
        for name, make in (("core", lambda: core(loaded, folder, data)), ("python", python)):
            started = time.perf_counter()
            encode = make()
            seconds.setdefault(f"{name}_open", []).append(time.perf_counter() - started)
            for when in ("first", "again"):
                started = time.perf_counter()
                counts.add(encode())
                seconds.setdefault(f"{name}_{when}", []).append(time.perf_counter() - started)
    opened = {f"{name}_s": round(median(taken), 4) for name, taken in seconds.items() if name.endswith("open")}
    speeds = {
        f"{name}_mb_s": round(len(data) / 1e6 / median(taken), 2) for name, taken in seconds.items() if "open" not in name
    }
    return {
        "folder": folder.name,
        "bytes": len(data),
        "tokens": max(counts),
        "same_count": len(counts) == 1,
        **opened,
        **speeds,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--text", type=Path, default=ENGLISH)
    parser.add_argument("--library", type=Path, default=native_library())
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()
    if args.library is None:
        parser.error("the core is not built: run `make native`, or name a library with --library")
    try:
        print(json.dumps(measure(args.library, args.folder, args.text.read_text("utf-8"), args.rounds)))
    except (InputError, OSError) as error:
        parser.error(str(error))


if __name__ == "__main__":
    main()
