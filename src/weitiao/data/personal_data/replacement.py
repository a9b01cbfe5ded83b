"""Replace what was found: by a label, by nothing, or by a stand-in."""

from collections.abc import Sequence
from typing import Literal

from weitiao.core.errors import InvalidValue
from weitiao.core.registry import find_module
from weitiao.data.personal_data.identifier import Identifier
from weitiao.data.personal_data.search import NARROW, PersonalSpan
from weitiao.data.personal_data.stand_ins import Key

Action = Literal["mask", "drop", "stand_in"]


def replace_personal(text: str, spans: Sequence[PersonalSpan], action: Action, key: Key | None = None) -> str:
    """Replace the spans of a text.

    Args:
        spans: what `find_personal` returned for this text, or some of it.
        action: "mask" writes a label such as [MOBILE], in Chinese where the text has Han characters; "drop" deletes the
            characters; "stand_in" writes a value of the same shape that cannot be real.
        key: of stand-ins.

    Raises:
        InvalidValue: stand-ins without a key.

    >>> text = "电话13812345678"
    >>> from weitiao.data.personal_data.search import find_personal
    >>> replace_personal(text, find_personal(text), "mask")
    '电话[手机号]'
    """
    if action == "stand_in" and key is None:
        raise InvalidValue("stand-ins need a key: the same key gives the same stand-ins")
    is_chinese = any("\u4e00" <= x <= "\u9fff" for x in text)
    parts, position = [], 0
    for span in sorted(spans):
        identifier = find_module(Identifier, span.kind)
        value = text[span.start : span.end]
        if action == "mask":
            replacement = identifier.LABELS[is_chinese]
        elif action == "drop" or key is None:
            replacement = ""
        else:
            replacement = _as_wide(value, identifier.stand_in(value.translate(NARROW), key))
        parts += [text[position : span.start], replacement]
        position = span.end
    return "".join([*parts, text[position:]])


def _as_wide(value: str, stand_in: str) -> str:
    """The stand-in in full-width characters where the value has them."""
    if len(value) != len(stand_in):
        return stand_in
    return "".join(
        chr(ord(y) + 0xFEE0) if "\uff01" <= x <= "\uff5e" and "!" <= y <= "~" else y for x, y in zip(value, stand_in)
    )
