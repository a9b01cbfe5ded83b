"""Personal data of China and the United States: ID and bank cards, phone numbers, passports, plates, addresses of mail and
internet ... (data/personal_data), masked, dropped, or replaced by stand-ins that cannot be real.

The audit keeps the text as it was: guard audit.jsonl and quarantine.jsonl like the raw data, or delete them.
"""

import hashlib
from functools import cache
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BeforeValidator, field_validator

from weitiao.core.cleaner import TextCleaner
from weitiao.core.errors import InvalidValue, RecipeError
from weitiao.core.registry import nearest
from weitiao.data.personal_data.replacement import replace_personal
from weitiao.data.personal_data.search import find_personal, kinds
from weitiao.data.personal_data.stand_ins import Key

SECRETS = "api_key"  # a rule of its own


class PersonalData(TextCleaner):
    """Mask personal data: ID and bank cards, phone numbers, passports, plates, e-mail and IP addresses, QQ, WeChat, SSN.
    It cannot see names and addresses for sure (they are hints), numbers in words, pictures, or other countries' numbers.
    The audit holds the text as it was."""

    action: Literal["mask", "drop", "stand_in"] = "mask"
    """mask: a label ([MOBILE], [手机号]); drop: nothing; stand_in: another value of that shape that cannot be real."""
    only: Annotated[tuple[str, ...], BeforeValidator(lambda x: (x,) if isinstance(x, str) else x)] = ()
    """Kinds to look for: files of data/personal_data/identifiers (mobile, resident_id ...); empty: all of them."""
    hints: bool = False
    """Also what may be something else: names, addresses, numbers without a check digit."""
    key_file: str | None = None
    """For stand_in: a file of at least 16 secret bytes. The same key gives the same stand-in for the same value."""

    @field_validator("only")
    @classmethod
    def _are_kinds(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        for name in names:
            if name not in kinds():
                raise InvalidValue(
                    "there is no kind of personal data called {name!r}.{hint} There are: {known}",
                    name=name,
                    hint=nearest(name, kinds()),
                    known=", ".join(kinds()),
                )
        return names

    def identity(self) -> dict[str, object]:
        """Also which key it is, without telling it."""
        secret = _secret(self.key_file) if self.key_file else b""
        return {**super().identity(), "key": hashlib.sha256(b"weitiao stand-ins" + secret).hexdigest()[:12]}

    def check(self) -> None:
        """Whether there is a key, if one is needed.

        Raises:
            RecipeError: there is none.
        """
        if self.action == "stand_in" and self.key_file is None:
            raise RecipeError(
                "cleaner personal_data: stand_in needs key_file, a file of at least 16 secret bytes: "
                "head -c 32 /dev/urandom > stand_ins.key"
            )
        if self.key_file is not None:
            _key(self.key_file)

    def clean(self, text: str) -> str:
        """The text without them."""
        requested = self.only or tuple(x for x in kinds() if x != SECRETS)
        spans = [x for x in find_personal(text, requested) if x.certain or self.hints]
        key = _key(self.key_file) if self.key_file and self.action == "stand_in" else None
        return replace_personal(text, spans, self.action, key) if spans else text


@cache
def _secret(file: str) -> bytes:
    try:
        return Path(file).expanduser().read_bytes()
    except OSError as error:
        raise RecipeError("cleaner personal_data: the key_file cannot be read: {error}", error=str(error)) from None


@cache
def _key(file: str) -> Key:
    try:
        return Key(_secret(file))
    except InvalidValue as error:
        raise RecipeError("cleaner personal_data: {problem}", problem=error.message) from None
