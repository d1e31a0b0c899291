"""p3m for an adb shell of arm64 phones, made without the NDK: glibc's own loader and libraries lie beside it.

    python runner.py TOOLS OUT     # TOOLS: the folder of build.sh, OUT: where `phi3mobile bench --device adb` looks

Android's C library is not needed by a program that brings its own. Never run on a phone: unverified there.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

LOADER = "ld-linux-aarch64.so.1"


def needed(program: Path) -> list[str]:
    """Names of the libraries that an ELF file asks for."""
    said = subprocess.run(["readelf", "-d", program], capture_output=True, text=True, check=True).stdout
    return re.findall(r"\(NEEDED\).*\[(.*)\]", said)


def collect(tools: Path, out: Path) -> None:
    """p3m, every library it needs, and the loader, stripped, in the new folder `out`."""
    places = [tools / "native", tools / "wheel/executorch/lib", tools / "root/usr/aarch64-linux-gnu/lib"]
    beside = os.environ | {"LD_LIBRARY_PATH": str(tools.absolute() / "root/usr/lib/x86_64-linux-gnu")}  # of strip itself
    strip = next((tools / "root/usr/bin").glob("aarch64-linux-gnu-strip*"))
    scratch = out.with_name(f"{out.name}.partial")
    shutil.rmtree(scratch, ignore_errors=True)
    scratch.mkdir(parents=True)
    wanted = ["p3m", LOADER]
    while wanted:
        name = wanted.pop()
        if (scratch / name).exists():
            continue
        found = next((place / name for place in places if (place / name).exists()), None)
        if found is None:
            raise SystemExit(f"{name} is in none of {', '.join(map(str, places))}: build again with build.sh")
        shutil.copy(found, scratch / name)  # what a link leads to
        if name != LOADER:
            subprocess.run([strip, "--strip-unneeded", scratch / name], check=True, env=beside)
        wanted += needed(found)
    shutil.rmtree(out, ignore_errors=True)
    scratch.rename(out)


if __name__ == "__main__":
    collect(*map(Path, sys.argv[1:]))
