"""Answers from the user's own files: read, cut into passages, index in one SQLite file, search it, quote what was found.

index_documents([folder], "library.db")          on the computer
library = open_library("library.db")             on the phone: sqlite3 and numpy
passages = library.search("When is the rent due?", k=5)
session.generate(grounded_messages(question, passages, history))
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from phi3mobile.retrieval.answer import grounded_messages
    from phi3mobile.retrieval.index import index_documents
    from phi3mobile.retrieval.library import Library, Passage, open_library

__all__ = ["Library", "Passage", "grounded_messages", "index_documents", "open_library"]

_HOMES = {
    "Library": "library",
    "Passage": "library",
    "open_library": "library",
    "grounded_messages": "answer",
    "index_documents": "index",
}


def __getattr__(name: str):
    """Imported on first use."""
    import importlib

    if name not in _HOMES:
        raise AttributeError(f"module 'phi3mobile.retrieval' has no attribute {name!r}")
    return getattr(importlib.import_module(f"phi3mobile.retrieval.{_HOMES[name]}"), name)
