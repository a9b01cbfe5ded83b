"""Text that was decoded with the wrong encoding, put right by going back: encoded as it was decoded, and decoded as it was.

    donâ€™t, ä¸­æ–‡      UTF-8 read as Windows-1252      -> don’t, 中文
    ÖÐÎÄÄÚÈÝ              GBK read as Windows-1252       -> 中文内容
    ┬丁矫ネび畉           Big5 read as GBK               -> 房間衛生太差
    鎴戜滑, don鈥檛          UTF-8 read as GBK              -> 我们, don’t

Only where the way back loses nothing and its result is text that people write. ftfy repairs the first kind alone, and makes
the second worse.
"""

import re

from weitiao.core.cleaner import TextCleaner
from weitiao.data.encodings import FREQUENT

HIGH = (
    "".join(bytes((x,)).decode("cp1252", "ignore") for x in range(0x80, 0x100))
    + "\x81\x8d\x8f\x90\x9d"
    + "".join(map(chr, range(0x80, 0xA0)))
)
LATIN_RUN = re.compile(f"[{re.escape(HIGH)}]{{2,}}")
UTF8 = rb"(?:[\xc2-\xdf][\x80-\xbf]|[\xe0-\xef][\x80-\xbf]{2}|[\xf0-\xf4][\x80-\xbf]{3})"  # one character
UTF8_SHAPE = re.compile(UTF8 + rb"+")
UTF8_AND_ASCII = re.compile(rb"[ -~]*(?:" + UTF8 + rb"[ -~]*)+")  # a GBK character may have swallowed a letter
EAST_RUN = re.compile(r"[^\x00-\x7f]{2,}")
HAN = re.compile(r"[\u3400-\u9fff]")
QUOTES = re.compile(r"(?:[‘’“”–—…][ -~]?)+")  # English text: don鈥檛
TOKEN = re.compile(r"\S+")
STRANGE = re.compile(r"[\u0391-\u03c9\u2500-\u257f\u3041-\u30ff\u3105-\u3129\ue000-\uf8ff]")  # no mixture that people write
LEAST_STRANGE = 2
LEAST_COMMON = 0.5  # of the Han characters that come out
LEAST_HAN = 2
PUNCTUATION = frozenset("，。、！？：；（）《》「」『』【】〔〕“”‘’—…·～　％＋－＝﹏﹑")


class Mojibake(TextCleaner):
    """Repair text that was decoded with the wrong encoding (donâ€™t, ÖÐÎÄ, 鎴戜滑), where going back loses nothing. It
    cannot see single characters, nor bring back what is lost already (锟斤拷, ?, �): `quality` leaves such rows out."""

    def clean(self, text: str) -> str:
        """The text with each such stretch repaired."""
        if text.isascii():
            return text
        runs = {x: _from_latin(x) for x in LATIN_RUN.findall(text)}
        is_gbk = any(_decoded(_as_windows_1252(x), "gbk") == new for x, new in runs.items())
        text = LATIN_RUN.sub(lambda match: runs[match[0]] or (_rest_from_gbk(match[0]) if is_gbk else match[0]), text)
        text = EAST_RUN.sub(_from_gbk, text)
        return TOKEN.sub(_from_big5, text) if STRANGE.search(text) else text


def _from_latin(run: str) -> str:
    """What a run was before it was read as Windows-1252; "" if that is not certain."""
    raw = _as_windows_1252(run)
    if UTF8_SHAPE.fullmatch(raw):
        return _decoded(raw, "utf-8") or ""
    new = _decoded(raw, "gbk") if len(raw) >= 4 and len(raw) % 2 == 0 else None
    return new if new and _is_chinese(new) else ""


def _rest_from_gbk(run: str) -> str:
    """A short run, in a text another run of which is certainly GBK. Only characters of GB 2312: their bytes are never those
    of “”, … and — in Windows-1252, which stay what they are."""
    new = _decoded(_as_windows_1252(run), "gb2312")
    return new if new and all(HAN.match(x) or x in PUNCTUATION for x in new) else run


def _from_gbk(match: re.Match[str]) -> str:
    try:
        raw = match[0].encode("gb18030")
    except UnicodeEncodeError:
        return match[0]
    new = _decoded(raw, "utf-8") if UTF8_AND_ASCII.fullmatch(raw) else None
    return new if new and (_is_chinese(new) or QUOTES.fullmatch(new)) else match[0]


def _from_big5(match: re.Match[str]) -> str:
    """Big5 read as GBK: Han characters with kana, Greek letters and lines of boxes among them."""
    if len(STRANGE.findall(match[0])) < LEAST_STRANGE:
        return match[0]
    try:
        new = match[0].encode("gb18030").decode("cp950")
    except UnicodeError:
        return match[0]
    return new if _is_chinese(new) and len(HAN.findall(new)) > 2 * LEAST_HAN and not STRANGE.search(new) else match[0]


def _as_windows_1252(text: str) -> bytes:
    """As WHATWG's Windows-1252 has it: the five bytes that Python leaves out are control characters."""
    return b"".join(bytes((ord(x),)) if 0x80 <= ord(x) <= 0xFF else x.encode("cp1252") for x in text)


def _decoded(raw: bytes, encoding: str) -> str | None:
    try:
        return raw.decode(encoding)
    except UnicodeDecodeError:
        return None


def _is_chinese(text: str) -> bool:
    """Han characters that people write, and nothing else but Chinese punctuation."""
    han = HAN.findall(text)
    if len(han) < LEAST_HAN or sum(x in FREQUENT for x in han) < LEAST_COMMON * len(han):
        return False
    return all(HAN.match(x) or x in PUNCTUATION or x.isascii() for x in text)
