"""Rows whose texts are too short or too long, counted in characters."""

from collections.abc import Sequence

from pydantic import Field

from weitiao.core.cleaner import RowCleaner, TextPart
from weitiao.core.messages import Message


class Length(RowCleaner):
    """Leave out rows that are too short or too long, in characters without spaces at the ends. It cannot see tokens: the
    model's limit is kept by max_length and overlong."""

    min_characters: int = Field(default=2, ge=0)
    """Fewest characters of all texts of a row together."""
    max_characters: int = Field(default=100_000, ge=1)
    """Most characters of all texts of a row together."""
    min_answer: int = Field(default=0, ge=0)
    """Fewest characters of an answer, for rows that have answers."""

    def refusal(self, parts: Sequence[TextPart]) -> Message | None:
        """Which limit the row breaks."""
        total = sum(len(x.text.strip()) for x in parts)
        if total < self.min_characters:
            return Message("{n} characters, fewer than {limit}", n=total, limit=self.min_characters)
        if total > self.max_characters:
            return Message("{n:,} characters, more than {limit:,}", n=total, limit=self.max_characters)
        for x in parts:
            if x.role == "answer" and len(x.text.strip()) < self.min_answer:
                return Message(
                    "{field} has {n} characters, fewer than {limit}",
                    field=x.field,
                    n=len(x.text.strip()),
                    limit=self.min_answer,
                )
        return None
