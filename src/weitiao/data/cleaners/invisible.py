"""Characters that nobody sees, and that a model learns: zero-width spaces, soft hyphens, byte order marks, control
characters, colours of a terminal, marks of direction.

Joiners (U+200C, U+200D) and marks of direction stay where scripts need them: Arabic, Persian, Hebrew, the Indic scripts,
emoji. Line ends of Windows and of old Macs become \\n. Spaces stay as they are.
"""

import re

from weitiao.core.cleaner import TextCleaner

ANSI = r"\x1b\[[0-?]*[ -/]*[@-~]|\x1b\][^\x07\x1b]*(?:\x07|\x1b\\)|\x1b(?:[()][0-9AB]|O[A-Z])"  # of a terminal
OVERSTRUCK = r"(?:[^\n\x08]\x08)+"  # man pages as teletypes print them: N, backspace, N
LINE_ENDS = r"\r\n?|[\x85\u2028\u2029]"
CONTROLS = r"[\x00-\x08\x0b\x0e-\x1f\x7f-\x9f\u00ad\u200b\u2060-\u2064\ufeff\ufff9-\ufffb]"
DIRECTIONS = r"[\u200e\u200f\u202a-\u202e\u2066-\u2069\u061c]"
TAGS = r"(?<!\U0001f3f4)(?<![\U000e0020-\U000e007f])[\U000e0001-\U000e007f]+"  # not those of flags: 🏴󠁧󠁢󠁥󠁮󠁧󠁿
NEEDS_JOINER = (
    r"[\u0590-\u08ff\u0900-\u0dff\u0e00-\u109f\u1780-\u18af\u2190-\u2bff\ufb1d-\ufefc\ufe0f\U0001f000-\U0001faff]"
)
JOINERS = rf"(?<!{NEEDS_JOINER})[\u200c\u200d]+|[\u200c\u200d]+(?!{NEEDS_JOINER})"
RIGHT_TO_LEFT = re.compile(r"[\u0590-\u08ff\ufb1d-\ufdff\ufe70-\ufefc]")
REMOVED = re.compile("|".join((ANSI, OVERSTRUCK, CONTROLS, TAGS, JOINERS)))
LINE_END = re.compile(LINE_ENDS)
DIRECTION = re.compile(DIRECTIONS)
FORM_FEED = re.compile(r"\n?\x0c\n?")
VISIBLE = re.compile(
    r"[\n\t -~\u00a1-\u00ac\u00ae-\u058f\u2010-\u2027\u2030-\u205e\u3000-\ud7ff\uf900-\ufaff\uff01-\uff5e]*"
)


class Invisible(TextCleaner):
    """Remove characters that nobody sees: zero-width spaces, soft hyphens, control characters, terminal colours, marks of
    direction in texts without Arabic or Hebrew. It cannot see letters of another alphabet that look alike (Cyrillic а)."""

    def clean(self, text: str) -> str:
        """The text without them; \\r\\n and form feeds become \\n."""
        if VISIBLE.fullmatch(text):
            return text
        new = REMOVED.sub("", FORM_FEED.sub("\n", LINE_END.sub("\n", text)))
        return new if RIGHT_TO_LEFT.search(new) else DIRECTION.sub("", new)
