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
COMMON = frozenset(
    "的一是不了在人有我他这个们中来上大为和国地到以说时要就出会可也你对生能而子那得于着下自之年过发后作里用道行所然家种事"
    "成方多经么去法学如都同现当没动面起看定天分还进好小部其些主样理心她本前开但因只从想实日军者意无力它与长把机十民第公此"
    "已工使情明性知全三又关点正业外将两高间由问很最重并物手应战向头文体政美相见被利什二等产或新己制身果加西斯月话合回特代内"
    "信表化老给世位次度门任常先海通教儿原东声提立及比员解水名真论处走义各入几口认条平系气题活尔更别打女变四神总何电数安少报"
    "才结反受目太量再感建务做接必场件计管期市直德资命山金指克许统区保至队形社便空决治展马科司五基眼书非则听白却界达光放强即"
    "像难且权思王象完设式色路记南品住告类求据程北边死张该交规万取拉格望觉术领共确传师观清今切院让识候带导争运容编码错误测试"
    "這個們來為國說時會學對發後裡經現動樣開從實關點業將間與長無機問電數當還進沒應戰頭體書車調設備內員專讓給過務選單總"
    "話質變資條題處見該認請產買賣價錢網頁號碼聽覺觀舊適薦區層樓飯廳靜乾淨難較雖許讀寫歡謝謂誰邊類顯線級組織結約紅綠記"
    "房太差店冷此推合整共台還茶杯然服低音早餐床浴室乾洗客吃"
)
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
        text = LATIN_RUN.sub(_from_latin, text)
        text = EAST_RUN.sub(_from_gbk, text)
        return TOKEN.sub(_from_big5, text) if STRANGE.search(text) else text


def _from_latin(match: re.Match[str]) -> str:
    raw = _as_windows_1252(match[0])
    if UTF8_SHAPE.fullmatch(raw):
        return _decoded(raw, "utf-8") or match[0]
    if len(raw) >= 4 and len(raw) % 2 == 0:
        new = _decoded(raw, "gbk")
        if new and _is_chinese(new):
            return new
    return match[0]


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
    if len(han) < LEAST_HAN or sum(x in COMMON for x in han) < LEAST_COMMON * len(han):
        return False
    return all(HAN.match(x) or x in PUNCTUATION or x.isascii() for x in text)
