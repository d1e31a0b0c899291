"""What a person sets: one frozen dataclass, checked as it is made, kept in the store as JSON."""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields, replace
from typing import Any

from phi3mobile.errors import InputError
from phi3mobile.session.defaults import MAX_TOKENS
from phi3mobile.session.sampling import Sampling

SAMPLING = ("temperature", "top_p", "top_k", "min_p", "repetition_penalty")
THEMES = ("light", "dark", "system")
TEXT_SCALES = (0.85, 1.0, 1.2, 1.5, 2.0)


@dataclass(frozen=True)
class Settings:
    """Raises InputError for a value out of range."""

    system_prompt: str = ""
    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    max_tokens: int = MAX_TOKENS
    own_sampling: bool = False  # the person chose; else each model brings its own
    theme: str = "system"
    text_scale: float = 1.0
    bundle: str = ""  # opened at the next start
    library: str = ""
    panel: bool = False  # the live panel is open

    def __post_init__(self) -> None:
        self.sampling()
        if not isinstance(self.max_tokens, int) or not 1 <= self.max_tokens <= 100_000:
            raise InputError(f"the longest answer is {self.max_tokens!r} tokens; it must be from 1 to 100000")
        if self.theme not in THEMES:
            raise InputError(f"the theme is {self.theme!r}; it must be one of {', '.join(THEMES)}")
        if self.text_scale not in TEXT_SCALES:
            raise InputError(f"the text size is {self.text_scale!r}; it must be one of {', '.join(map(str, TEXT_SCALES))}")
        for name in ("system_prompt", "bundle", "library"):
            if not isinstance(getattr(self, name), str):
                raise InputError(f"{name} is {getattr(self, name)!r}; it must be text")

    def sampling(self) -> Sampling:
        return Sampling(self.temperature, self.top_k, self.top_p, self.min_p, self.repetition_penalty)

    def changed(self, **changes: Any) -> Settings:
        """With what a person changed."""
        own = self.own_sampling or any(name in changes for name in SAMPLING)
        return replace(self, **{"own_sampling": own} | changes)

    def with_model(self, sampling: Sampling) -> Settings:
        """With a model's own sampling, unless the person chose one."""
        return self if self.own_sampling else replace(self, **{name: getattr(sampling, name) for name in SAMPLING})

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Any) -> Settings:
        """What to_dict gave. Keys of another version are left out; a value that is no longer allowed falls to its default."""
        known = {field.name for field in fields(cls)}
        settings = cls()
        for name, value in values.items() if isinstance(values, dict) else ():
            if name in known:
                try:
                    settings = replace(settings, **{name: value})
                except InputError:
                    continue
        return settings
