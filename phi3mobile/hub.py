"""A model's name to a folder on this machine: an existing path, or a repository of the Hugging Face hub."""

from __future__ import annotations

import re
from pathlib import Path

from phi3mobile.errors import InputError
from phi3mobile.files import require_utf8
from phi3mobile.models.companions import CHECKPOINT_FILES

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")


def resolve(source: str | Path) -> Path:
    """The path `source` if it exists, else the local copy of the hub repository `org/name`, downloaded if need be.

    The hub's own settings hold: HF_HOME, HF_TOKEN, HF_HUB_OFFLINE and its cache. Raises InputError if there is neither.
    """
    path = Path(source).expanduser()
    if path.exists():
        require_utf8(path)
        return path
    name = str(source)
    if not _HUB_ID.fullmatch(name):
        raise InputError(f"{name} does not exist; give a file, a folder, or a hub id (organisation/name)")
    import huggingface_hub
    from huggingface_hub import errors

    try:
        return Path(huggingface_hub.snapshot_download(name, allow_patterns=list(CHECKPOINT_FILES)))
    except errors.GatedRepoError:
        todo = "accept its licence on the hub, then log in (hf auth login) or set HF_TOKEN"
        raise InputError(f"{name} is gated: {todo}") from None
    except errors.RepositoryNotFoundError:
        todo = "check the name, or log in (hf auth login) if it is private"
        raise InputError(f"{name} is neither a path nor a hub repository you can read; {todo}") from None
    except errors.LocalEntryNotFoundError:
        offline = huggingface_hub.constants.HF_HUB_OFFLINE
        reason = "HF_HUB_OFFLINE is set: unset it" if offline else "the hub can't be reached: check the network"
        raise InputError(f"{name} is not a path, and is not in the hub's cache; {reason} or give a folder") from None
    except (errors.HfHubHTTPError, errors.HFValidationError, OSError) as error:
        reason = " ".join(str(error).split())[:200]
        raise InputError(f"{name} could not be downloaded ({reason}); try again or give a folder") from None
