"""Offsets into a text that were counted in another way: in UTF-16 units, or with the end inside.

😀王小明      characters  王 is 1 to 2      UTF-16 (JavaScript, Java)  王 is 2 to 3: 😀 has two units
王小明        [0, 3] as we count            [0, 2] where the end is inside
"""

from collections import Counter
from collections.abc import Iterator, Sequence

from weitiao.core.example import BadRow
from weitiao.core.finding import Finding
from weitiao.core.messages import Message

END_INSIDE = Message(" (is the end inside? add 1 to every end)")
FROM_ONE = Message(" (does it count from 1? Offsets start at 0)")
UTF16 = Message(" (counted in UTF-16 units, as JavaScript does: count characters)")
BYTES = Message(" (counted in bytes: count characters)")
HINTS = (END_INSIDE, FROM_ONE, UTF16, BYTES)


def utf16_slice(text: str, start: int, end: int) -> str | None:
    """The slice of a text by offsets in UTF-16 units; None if they fall outside, or inside a character."""
    raw = text.encode("utf-16-le", "surrogatepass")
    if not 0 <= 2 * start <= 2 * end <= len(raw):
        return None
    try:
        return raw[2 * start : 2 * end].decode("utf-16-le")
    except UnicodeDecodeError:
        return None


def unit_hint(text: str, start: int, end: int, expected: str) -> Message:
    """What to do if the offsets point to the expected words in UTF-16 units, or in bytes of UTF-8; else empty."""
    raw, mention = (x.encode("utf-8", "surrogatepass") for x in (text, expected))
    in_bytes = (
        start >= 0 and raw[start : start + len(mention)] == mention and end in (start + len(mention), start + len(expected))
    )
    if len(raw) > len(text) and in_bytes:
        return BYTES
    units = end + len(expected.encode("utf-16-le", "surrogatepass")) // 2 - len(expected)
    if any(ord(x) > 0xFFFF for x in text) and expected in (utf16_slice(text, start, end), utf16_slice(text, start, units)):
        return UTF16
    return Message("")


def offset_hint(text: str, start: int, end: int, expected: str) -> Message:
    """Why a slice is not the expected words: the end is inside, or the offsets are in UTF-16 units; else empty."""
    if hint := unit_hint(text, start, end, expected):
        return hint
    if text[start : end + 1].strip() == expected:
        return END_INSIDE
    if text[max(start - 1, 0) : end].strip() == expected or text[max(start - 1, 0) : end - 1].strip() == expected:
        return FROM_ONE
    return Message("")


def check_offsets(file: str, bad: Sequence[BadRow]) -> Iterator[Finding]:
    """Rows that show how a file counts: the offsets of its other rows are then wrong too, where nothing shows it."""
    hints = Counter(x.reason.fields["hint"] for x in bad if x.reason.fields.get("hint") in HINTS)
    for hint, n in hints.items():
        message = Message(
            "{file}: offsets of {n:,} rows are wrong{hint}; those of the other rows are wrong in the same way, if no words "
            "are given to compare",
            file=file,
            n=n,
            hint=hint,
        )
        yield Finding("offsets", "error" if n > 1 else "warning", message)
