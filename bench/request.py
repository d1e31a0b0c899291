"""What the host asks the installed app to do in one fresh process: the contract of android_app.py and ios.py with the app.

Everything lies in the folder `bench` of the app's shared storage, and nothing outside of it is read or removed:
    bench/models/NAME    the bundle, as pushed
    bench/run/OUT        the answer: JSON lines of bench/steps.py; first one of kind `app`, last one of kind `exit` with `code`
Android: extra `bench` of the intent that starts the activity. iOS: `--bench TEXT` among the process's arguments.
"""

from __future__ import annotations

import json
import re
from dataclasses import asdict, dataclass
from pathlib import Path

from phi3mobile.errors import InputError

EXTRA = "bench"
FOLDER = "bench"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
_STEP = re.compile(r"[a-z]{1,20}(:[0-9.,]{1,60000}){0,4}")


@dataclass(frozen=True)
class Request:
    """`sample_s`: between the app's own readings of battery and heat, 0: none. `remove`: the folder `bench`, at the end."""

    out: str
    bundle: str = ""
    steps: tuple[str, ...] = ()
    threads: int = 0
    cold: bool = False
    sample_s: float = 0.0
    remove: bool = False

    def text(self) -> str:
        return json.dumps(asdict(self), separators=(",", ":"))

    def answer(self, shared: Path) -> Path:
        return shared / FOLDER / "run" / self.out

    def model(self, shared: Path) -> Path:
        return shared / FOLDER / "models" / self.bundle


def parse_request(text: str) -> Request:
    """Raises InputError: any app on a phone may start ours with any text."""
    try:
        values = json.loads(text)
        if not isinstance(values.get("steps"), list):
            raise ValueError("steps are a list")
        given = Request(**values | {"steps": tuple(values["steps"])})
    except (ValueError, TypeError, AttributeError, RecursionError):
        raise InputError("the benchmark's request can't be read: use the phi3mobile that this app was built from") from None
    names = (
        isinstance(given.out, str)
        and _NAME.fullmatch(given.out)
        and isinstance(given.bundle, str)
        and (not given.bundle or _NAME.fullmatch(given.bundle))
    )
    steps = all(isinstance(step, str) and _STEP.fullmatch(step) for step in given.steps)
    threads = type(given.threads) is int and 0 <= given.threads <= 256
    sample = type(given.sample_s) in (int, float) and 0 <= given.sample_s <= 3600
    if not (names and steps and threads and sample and type(given.cold) is bool and type(given.remove) is bool):
        raise InputError("the benchmark's request holds a value that is not allowed: names of files, steps, 0 to 256 threads")
    return given
