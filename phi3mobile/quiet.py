"""Keep the build tools' chatter off the user's screen; what they raise still arrives."""

from __future__ import annotations

import logging
import os
import re
import sys
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, TextIO

from phi3mobile.errors import InputError


@contextmanager
def quiet() -> Iterator[None]:
    """Silence Python warnings, loggers, sys.stderr and what native code writes there; shown after all if there is a bug."""
    level, visible, bug = logging.root.manager.disable, sys.stderr, False
    logging.disable(logging.ERROR)
    with (
        tempfile.TemporaryFile("w+", buffering=1, errors="replace") as log,
        warnings.catch_warnings(),
        _stderr_to(log) as shown,
    ):
        warnings.simplefilter("ignore")
        sys.stderr = log  # ExecuTorch's bindings write here
        try:
            yield
        except InputError:
            raise  # one line says it all
        except Exception:
            bug = True
            raise
        finally:
            sys.stderr = visible
            logging.disable(level)
            if bug and shown is not None:
                log.seek(0)
                shown.write(log.read())


@contextmanager
def without(line: re.Pattern[str]) -> Iterator[None]:
    """Keep the lines off stderr that native code writes there and that `line` matches; others come when the block ends."""
    with tempfile.TemporaryFile("w+", errors="replace") as log, _stderr_to(log) as shown:
        try:
            yield
        finally:
            if shown is not None:
                log.seek(0)
                shown.writelines(one for one in log if not line.match(one))


@contextmanager
def _stderr_to(log: TextIO) -> Iterator[TextIO | None]:
    """While the block runs, file 2 is `log`. Gives what file 2 was; None: it is closed, and stays so."""
    if sys.stderr is not None:
        sys.stderr.flush()
    try:
        screen = os.dup(2)
    except OSError:
        yield None
        return
    with os.fdopen(screen, "w", errors="replace") as shown:
        os.dup2(log.fileno(), 2)
        try:
            yield shown
        finally:
            os.dup2(screen, 2)


class _End:
    """Deleted with the modules, after all handlers of atexit."""

    def __del__(self, open_: Any = os.open, dup2: Any = os.dup2, null: str = os.devnull, mode: int = os.O_WRONLY) -> None:
        with_null = open_(null, mode)
        dup2(with_null, 2)


_end: list[_End] = []


def at_the_end() -> None:
    """What native code tells while the process is taken down, after the last of Python's, is not shown."""
    if not _end:
        _end.append(_End())
