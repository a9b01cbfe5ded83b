"""API keys, tokens and passwords, which a model would learn by heart and tell to anybody."""

from typing import Literal

from weitiao.core.cleaner import TextCleaner
from weitiao.data.personal_data.replacement import replace_personal
from weitiao.data.personal_data.search import find_personal

KINDS = ("api_key",)


class Secrets(TextCleaner):
    """Mask API keys, tokens, private keys and passwords, by the prefixes of some 20 services and by their entropy behind
    words like password. It cannot see a password that is a word. The audit holds the text as it was."""

    action: Literal["mask", "drop"] = "mask"
    """mask: a label ([SECRET], [密钥]); drop: nothing."""

    def clean(self, text: str) -> str:
        """The text without them."""
        spans = [x for x in find_personal(text, KINDS) if x.certain]
        return replace_personal(text, spans, self.action) if spans else text
