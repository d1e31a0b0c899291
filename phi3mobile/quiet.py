"""Keep the build tools' chatter off the user's screen; what they raise still arrives."""

from __future__ import annotations

import logging
import os
import sys
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

from phi3mobile.errors import InputError


@contextmanager
def quiet() -> Iterator[None]:
    """Silence Python warnings, loggers, sys.stderr and what native code writes there; shown after all if there is a bug."""
    level, visible, screen, bug = logging.root.manager.disable, sys.stderr, os.dup(2), False
    logging.disable(logging.ERROR)
    visible.flush()
    with tempfile.TemporaryFile("w+", buffering=1, errors="replace") as log, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        os.dup2(log.fileno(), 2)
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
            os.dup2(screen, 2)
            os.close(screen)
            logging.disable(level)
            if bug:
                log.seek(0)
                visible.write(log.read())
