"""What went wrong, for a person: a sentence, what the program knows about it, and a button that helps."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Problem:
    sentence: str
    detail: str  # the library's own line, or ""
    button: str
    action: str  # what State.solve does: pick_bundle, pick_library, no_library, pick_picture, new_chat, retry, new_store, copy


def no_bundle() -> Problem:
    return Problem("No model is open yet.", "", "Choose a model", "pick_bundle")


def bundle_failed(detail: str) -> Problem:
    """A bundle that did not open: the reason is in the library's line."""
    if "memory" in detail and " GB" in detail:
        return Problem("There is not enough memory for this model.", detail, "Choose another model", "pick_bundle")
    if any(word in detail for word in ("damaged", "lacks", "bytes, the manifest", "can't be read", "can't be ")):
        return Problem("This model's files are damaged or incomplete.", detail, "Choose another model", "pick_bundle")
    return Problem("This model can't be opened.", detail, "Choose another model", "pick_bundle")


def library_failed(detail: str) -> Problem:
    return Problem("Your document library can't be opened.", detail, "Go on without it", "no_library")


def search_failed(detail: str) -> Problem:
    return Problem("Searching your documents failed.", detail, "Go on without them", "no_library")


def document_failed(detail: str) -> Problem:
    return Problem("A document can't be added.", detail, "Choose other files", "pick_library")


def answer_refused(detail: str) -> Problem:
    if "context" in detail and "tokens" in detail:
        return Problem("This conversation is too long for the model.", detail, "Start a new chat", "new_chat")
    return Problem("The model can't answer this.", detail, "Try again", "retry")


def picture_failed(detail: str) -> Problem:
    """A picture that was picked, pasted or dropped and can't be opened or kept."""
    return Problem("This picture can't be opened.", detail, "Choose another picture", "pick_picture")


def sees_nothing() -> Problem:
    return Problem("This model reads text only: it sees no pictures.", "", "Choose another model", "pick_bundle")


def picture_gone() -> Problem:
    return Problem("A picture of this conversation is no longer on this device.", "", "Start a new chat", "new_chat")


def bug(error: BaseException) -> Problem:
    detail = f"{type(error).__name__}: {error}"[:400]
    return Problem("Something went wrong inside the app. Your conversation is saved.", detail, "Copy the details", "copy")


def store_failed(detail: str) -> Problem:
    return Problem("Your conversations can't be read.", detail, "Set them aside and start new", "new_store")
