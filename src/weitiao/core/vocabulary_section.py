"""The section `vocabulary:` of a recipe: new merges of the tokenizer, and where their embeddings start."""

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, field_validator

from weitiao.core.errors import InvalidValue
from weitiao.core.recipe_sections import OneOrMore, Sources
from weitiao.core.registry import Settings, nearest

SCRIPTS = (
    "latin", "han", "kana", "hangul", "cyrillic", "arabic", "thai", "devanagari", "greek", "hebrew", "other",
)  # fmt: skip
"""Scripts by which new tokens are chosen."""


def _listed(value: Any) -> Any:
    return [value] if isinstance(value, str) else value


class Vocabulary(Settings):
    """New tokens: true merges behind the tokenizer's own, learnt from texts. Text that has none of them keeps its ids."""

    add: int = Field(ge=1)
    """Number of new tokens; `weitiao data vocab` measures what a number gives."""
    data: Sources | None = None
    """Texts that the merges are learnt from, one or more sources; default: the training rows."""
    scripts: Annotated[tuple[str, ...], BeforeValidator(_listed), OneOrMore()] = ()
    """Each new token holds a character of one of these scripts (han, kana, hangul, cyrillic, arabic, thai, devanagari,
    greek, hebrew, latin, other); default: the scripts that the texts are written in, but Latin."""
    min_frequency: int = Field(default=2, ge=1)
    """A pair that occurs less often is not merged."""
    init: Literal["mean", "global_mean", "random"] = "mean"
    """Where the embedding of a new token starts: the mean of the old tokens it is made of, the mean of all old tokens, or
    at random with the spread of the old ones."""

    @field_validator("scripts")
    @classmethod
    def _are_scripts(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        for name in names:
            if name not in SCRIPTS:
                raise InvalidValue(
                    "there is no script {name!r}.{hint} There are: {known}",
                    name=name,
                    hint=nearest(name, SCRIPTS),
                    known=", ".join(SCRIPTS),
                )
        return names
