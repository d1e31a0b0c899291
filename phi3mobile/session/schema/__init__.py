"""JSON schemas as llguidance can follow them to the end; what it lacks or gets wrong is refused before the first token.

document.py reads a schema: keywords, values, references; closed.py keeps invented keys out. places.py walks the places of an
answer and looks for those that llguidance takes and can't fill. pattern.py brings regular expressions from JSON Schema's
dialect to Rust's.
"""

from __future__ import annotations

import json
from typing import Any

from phi3mobile.errors import InputError
from phi3mobile.session.schema.document import read, wrong
from phi3mobile.session.schema.engine import OPTIONS, refusal
from phi3mobile.session.schema.places import check

__all__ = ["OPTIONS", "followed"]


def followed(schema: dict[str, Any] | str, additional_properties: bool = False) -> dict[str, Any]:
    """The schema (an object or its JSON text) for llguidance with OPTIONS: the same answers, or a few less.

    additional_properties: False adds `"additionalProperties": false` where a schema declares names and is silent on others.

    Raises InputError: no JSON, no object, a keyword or value that can't be followed, a place that nothing can fill.
    """
    try:
        document = json.loads(schema) if isinstance(schema, str) else json.loads(json.dumps(schema, allow_nan=False))
    except (TypeError, ValueError, RecursionError) as error:
        said = "is not JSON" if isinstance(schema, str) else "can't be written as JSON"
        raise InputError(f"the JSON schema {said}: {error}; correct it") from None
    if not isinstance(document, dict):
        found = type(document).__name__
        raise InputError(f'the JSON schema is a {found}; it must be an object such as {{"type": "object"}}')
    try:
        root, definitions, exclusive = read(document, additional_properties)
        if root is False:
            raise wrong("nothing satisfies it")
        root = {} if root is True else root
        made = {**root, "$defs": definitions} if definitions else root
        if reason := refusal(made):
            raise wrong(reason)
        check(root, definitions, exclusive)
    except RecursionError:
        raise InputError("the JSON schema is nested too deeply; simplify it") from None
    return made
