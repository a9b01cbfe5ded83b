"""Text that says the same again and again without a break: a scraper that read a page twice, a model that was caught in a
loop, a key that was held down.

- a line or a passage of at least 8 letters, three times or more in a row: once;
- a character, or a few, more often than 20 times in a row: `kept_repeats` times (哈哈哈). Not signs, which draw lines and
  tables.

What comes back after something else is not a repetition here: refrains, forms, lists stay.
"""

import re

from pydantic import Field

from weitiao.core.cleaner import TextCleaner

LEAST_LETTERS, LONGEST_UNIT, TIMES = 8, 400, 3
WINDOW = 8  # characters
SHORT = re.compile(r"(?<![A-Za-z0-9+/=])((?:[^\W\d_]|[！？!?。]){1,7}?)\1{20,}(?![A-Za-z0-9+/=])")  # and no base64
PASSAGE = re.compile(rf"(\S[^\n]{{7,{LONGEST_UNIT}}}?)(?:[ \t]?\1){{2,}}")
LETTERS, HAN = re.compile(r"[^\W\d_]"), re.compile(r"[\u3041-\u9fff]")
NO_SENTENCE = re.compile(r"[│|&<>=_\\/\t]")  # cells of tables, addresses, code


class RepeatedText(TextCleaner):
    """Shorten what repeats without a break: a line or a passage three times in a row stays once, and 哈 fifty times in a
    row three times. It cannot see what returns after something else, nor copies that differ by a character."""

    kept_repeats: int = Field(default=3, ge=1)
    """How often a stretched character stays (哈哈哈)."""

    def clean(self, text: str) -> str:
        """The text with each repetition shortened."""
        new = SHORT.sub(lambda match: match[1] * self.kept_repeats, text) if _may_repeat(text) else text
        if "\n" in new:
            new = _without_repeated_lines(new)
        return "\n".join(map(_shortened, new.split("\n"))) if _may_repeat(new) else new


def _without_repeated_lines(text: str) -> str:
    """Lines with enough letters that follow themselves twice or more, once."""
    lines, start, remaining = text.split("\n"), 0, []
    while start < len(lines):
        end = start + 1
        while end < len(lines) and lines[end] == lines[start]:
            end += 1
        is_text = len(LETTERS.findall(lines[start])) >= LEAST_LETTERS
        remaining += lines[start : start + 1] if is_text and end - start >= TIMES else lines[start:end]
        start = end
    return "\n".join(remaining)


def _may_repeat(text: str) -> bool:
    """A quick look: what repeats three times has windows that come again, more than a passage has characters."""
    if len(text) < TIMES * WINDOW - 1:
        return False
    windows = [text[i : i + WINDOW] for i in range(len(text) - WINDOW + 1)]
    return len(windows) - len(set(windows)) > WINDOW


def _shortened(line: str) -> str:
    return PASSAGE.sub(_once, line) if _may_repeat(line) else line


def _once(match: re.Match[str]) -> str:
    unit = match[1]
    is_sentence = len(LETTERS.findall(unit)) >= LEAST_LETTERS and not NO_SENTENCE.search(unit)
    return unit if is_sentence and (" " in match[0] or HAN.search(unit)) else match[0]
