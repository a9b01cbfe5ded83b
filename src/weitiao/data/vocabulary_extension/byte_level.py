"""How byte-level BPE spells bytes, and which characters bytes are.

Radford et al. 2019, "Language Models are Unsupervised Multitask Learners" (GPT-2), sec. 2.2: a token is a string of one
printable character for each byte.
"""

from functools import cache


@cache
def _bytes_of_characters() -> dict[str, int]:
    """GPT-2's printable characters -> bytes."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [x for x in range(256) if x not in set(printable)]
    return {**{chr(x): x for x in printable}, **{chr(256 + i): x for i, x in enumerate(others)}}


def to_bytes(spelled: str) -> bytes:
    """The bytes of a token.

    >>> to_bytes("ĠçĮ«").decode()
    ' 猫'
    """
    table = _bytes_of_characters()
    return bytes(table[x] for x in spelled)


def readable(spelled: str) -> str:
    """A token as text; bytes that are no whole character as <E7>."""
    return to_bytes(spelled).decode("utf-8", "backslashreplace")


def code_points(text: bytes) -> tuple[list[int], tuple[int, int] | None] | None:
    """(whole characters, the least and the greatest that the last one can become where it is only begun); None: the bytes
    begin within a character.

    >>> code_points("猫".encode()), code_points("猫".encode()[:2]), code_points("猫".encode()[1:])
    (([29483], None), ([], (29440, 29503)), None)
    """
    try:
        return [ord(x) for x in text.decode()], None
    except UnicodeDecodeError as error:
        if error.reason != "unexpected end of data":
            return None
        rest = text[error.start :]
    missing = {0b110: 2, 0b1110: 3}.get(rest[0] >> 5 if rest[0] < 0xE0 else rest[0] >> 4, 4) - len(rest)
    whole = [ord(x) for x in text[: len(text) - len(rest)].decode()]
    least, greatest = (rest + bytes([x]) * missing for x in (0x80, 0xBF))
    first = max(_code_point(least), 0x800 if len(least) == 3 else 0x10000 if len(least) == 4 else 0)
    return whole, (first, min(_code_point(greatest), 0x10FFFF))


def _code_point(text: bytes) -> int:
    """Of one character's bytes, whether or not it is one that may be written."""
    value = text[0] & (0xFF >> (len(text) + 1))
    for x in text[1:]:
        value = value << 6 | x & 0x3F
    return value
