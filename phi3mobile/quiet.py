"""Keep the build tools' chatter off the user's screen; what they raise still arrives."""

from __future__ import annotations

import logging
import os
import sys
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def quiet() -> Iterator[None]:
    """Silence Python warnings, loggers and what native code writes to file descriptor 2; shown after all on an error.

    sys.stderr keeps working: progress bars and messages go on.
    """
    level = logging.root.manager.disable
    logging.disable(logging.ERROR)
    sys.stderr.flush()
    screen, visible = os.dup(2), sys.stderr
    with tempfile.TemporaryFile() as log, warnings.catch_warnings(), os.fdopen(screen, "w", buffering=1) as stream:
        warnings.simplefilter("ignore")
        os.dup2(log.fileno(), 2)
        if sys.stderr is sys.__stderr__:
            sys.stderr = stream
        try:
            yield
        except BaseException:
            log.seek(0)
            stream.write(log.read().decode(errors="replace"))
            raise
        finally:
            stream.flush()
            sys.stderr = visible
            os.dup2(screen, 2)
            logging.disable(level)
