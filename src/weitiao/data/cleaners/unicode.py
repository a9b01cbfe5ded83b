"""Unicode: one spelling for each character, and no other character than was meant.

- NFC (Unicode Standard Annex 15): e + combining acute becomes one character; compatibility forms of Han become plain ones.
- Full-width letters and digits become ASCII: １９９８ is 1998. Full-width signs and the ideographic space stay: ，！（）
  are Chinese punctuation. NFKC, which most cleaners use, would turn them into ,!() and ½ into 1⁄2.
- Kangxi radicals and their like, which PDF files give for plain characters (⾸⻚), become these (首页).
- Latin ligatures of PDF files become letters: ﬁ is fi.
"""

import re
import unicodedata

from weitiao.core.cleaner import TextCleaner

FULL_WIDTH = range(0xFF01, 0xFF5F)
ASCII_OFFSET = 0xFEE0
KANGXI = range(0x2F00, 0x2FD6)
LIGATURES = range(0xFB00, 0xFB07)
SUPPLEMENT = {  # CJK radicals that stand for a whole character, by the Unicode database's EquivalentUnifiedIdeograph
    "⺟": "母", "⺠": "民", "⻁": "虎", "⻄": "西", "⻅": "见", "⻆": "角", "⻉": "贝", "⻋": "车", "⻑": "長", "⻓": "长",
    "⻔": "门", "⻘": "青", "⻙": "韦", "⻚": "页", "⻛": "风", "⻜": "飞", "⻝": "食", "⻢": "马", "⻣": "骨", "⻤": "鬼",
    "⻥": "鱼", "⻦": "鸟", "⻧": "卤", "⻨": "麦", "⻩": "黄", "⻪": "黾", "⻫": "斉", "⻬": "齐", "⻭": "歯", "⻮": "齿",
    "⻯": "竜", "⻰": "龙", "⻱": "龜", "⻲": "亀", "⻳": "龟",
}  # fmt: skip
TABLE = {
    **{x: chr(x - ASCII_OFFSET) for x in FULL_WIDTH if chr(x - ASCII_OFFSET).isalnum()},
    **{x: unicodedata.normalize("NFKC", chr(x)) for x in (*KANGXI, *LIGATURES)},
    **{ord(radical): plain for radical, plain in SUPPLEMENT.items()},
}
CHANGED = re.compile(f"[{''.join(map(chr, TABLE))}]")


class Unicode(TextCleaner):
    """Write each character in one way: NFC, full-width letters and digits as ASCII (never ，！（）), Kangxi radicals as the
    characters that they stand for, ligatures (ﬁ) as letters. It cannot see which letters were meant to be full-width."""

    def clean(self, text: str) -> str:
        """The text in NFC with the characters of the table replaced."""
        if text.isascii():
            return text
        text = unicodedata.normalize("NFC", text)
        return text.translate(TABLE) if CHANGED.search(text) else text
