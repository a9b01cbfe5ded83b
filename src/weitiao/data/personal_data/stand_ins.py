"""Stand-ins by HMAC-SHA256: the same value gives the same stand-in; without the key nobody can tell which."""

import hmac
from collections.abc import Iterator

from weitiao.core.errors import InvalidValue

MIN_KEY = 16  # bytes


class Key:
    """A secret key from which stand-ins are drawn."""

    def __init__(self, secret: bytes) -> None:
        """Take the key.

        Raises:
            InvalidValue: it is shorter than 16 bytes: whoever has a stand-in could try all keys.
        """
        if len(secret) < MIN_KEY:
            raise InvalidValue(
                "the key for stand-ins has {n} bytes; at least {least} are needed", n=len(secret), least=MIN_KEY
            )
        self._secret = secret

    def draw(self, kind: str, value: str) -> "Draw":
        """Random choices for a value, always the same ones."""
        return Draw(self._secret, f"{kind}\0{value}".encode("utf-8", "surrogatepass"))


class Draw:
    """An endless stream of choices."""

    def __init__(self, secret: bytes, message: bytes) -> None:
        self._numbers = self._stream(secret, message)

    @staticmethod
    def _stream(secret: bytes, message: bytes) -> Iterator[int]:
        block = 0
        while True:
            code = hmac.digest(secret, block.to_bytes(4, "big") + message, "sha256")
            yield from (int.from_bytes(code[i : i + 4], "big") for i in range(0, len(code), 4))
            block += 1

    def number(self, limit: int) -> int:
        """A number from 0 up to and without a limit."""
        return next(self._numbers) % limit

    def text(self, length: int, characters: str = "0123456789") -> str:
        """Some characters."""
        return "".join(characters[self.number(len(characters))] for _ in range(length))

    def like(self, pattern: str) -> str:
        """Each letter and digit replaced by another of its class; the rest stays."""
        return "".join(self._like(x) for x in pattern)

    def _like(self, character: str) -> str:
        if character.isdigit():
            return self.text(1)
        letters = "abcdefghijklmnopqrstuvwxyz"
        if character.isascii() and character.isalpha():
            return self.text(1, letters if character.islower() else letters.upper())
        return character


def reshaped(value: str, characters: str) -> str:
    """The letters and digits of a value replaced one by one, with spaces and hyphens where they were.

    >>> reshaped("010-6552 9988", "01001234567")
    '010-0123 4567'
    """
    others = iter(characters)
    return "".join(next(others) if x.isalnum() else x for x in value)
