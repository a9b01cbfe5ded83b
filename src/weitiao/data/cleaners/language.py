"""Rows in a language that was not asked for. Each text of a row is looked at on its own, so that translations stay."""

from collections.abc import Sequence
from typing import Annotated

from pydantic import BeforeValidator, Field

from weitiao.core.cleaner import RowCleaner, TextPart
from weitiao.core.messages import Message
from weitiao.data.languages import language_of, require_identifier


def _listed(value: object) -> object:
    return [value] if isinstance(value, str) else value


class Language(RowCleaner):
    """Leave out rows with a text in another language than these. It cannot see the language of fewer than 4 words or 20
    letters in Latin script, nor of code: such texts stay. Wu and Cantonese count as Chinese."""

    keep: Annotated[tuple[str, ...], BeforeValidator(_listed), Field(min_length=1)] = ("zh", "en")
    """Languages to keep, as ISO 639-1 codes (zh, en, ja, de ...)."""

    def check(self) -> None:
        """Whether py3langid is installed.

        Raises:
            RecipeError: it is not.
        """
        require_identifier()

    def refusal(self, parts: Sequence[TextPart]) -> Message | None:
        """The language that was not asked for, and where it is."""
        for x in parts:
            if (language := language_of(x.text)) and language not in self.keep:
                return Message("{field} is in {language!r}", field=x.field, language=language)
        return None
