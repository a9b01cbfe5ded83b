"""The encoding of a text file: proven by rule, or asked; never guessed.

1. A byte order mark says it. 2. What decodes as UTF-8 is UTF-8, unless all there is are up to three letters that would be
common Chinese characters in GB18030: then it is asked. 3. Of the others, the encoding in which the text is made
of the characters that Chinese is written with: GB18030 or Big5. The 600 commonest are 86 % of running text, and 5 % of a
text that is decoded wrongly, so each character is evidence, and their sum must be better than 100 to 1, also against the
runner-up. Otherwise the file is asked about: set `encoding`.

A file has one encoding. A line that is not in it is decided on its own, by the same rule, and reported.
"""

import codecs
import functools
import itertools
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from weitiao.core.finding import Finding
from weitiao.core.messages import Message
from weitiao.data.unpacking import on_disk, open_file

# Counted in reviews, newspapers and software documentation, simplified; then what traditional texts add.
SIMPLIFIED = (
    "的一不是有个在了行中用和这文人我本为上出大到以数时很对没会国可多要同好也训来后模都练比就方还书重能型每自过年次或"
    "看与分成下作生件最于小间法得们地里之说前其只全发开务新部度词实他子点家器相写学答元经错结请所合标现回量并内基工定"
    "入配而长步位面业名种进字样动理加第测高者日果感值么据但它去提机别服些给两较列天当读各外心任设置权性体化从少表事问"
    "房民题取计层使电该正平区主店目无如那价已更类市通关明座示己觉起因改常此率酒等力指解完然存意失总按着记道格特想码由"
    "适月算整系运情话建程选把展应式单公政向打住带产真美三损接认制买被案头代变报知原非保段员及需活再什东组让验场做十品"
    "差手社强几统查容确调西安放先项节留持太水装共华喜快口论济均何例输处夹评精便受近欢求利语门将金导编习张复才则参你增"
    "网爱观孩形交物海见线始资空证速女包超北试二达老决京收万世考续助义键且教检车信身立期音送准她条路又直质热断命农管干"
    "称企深至板识台显今未科五绝核另盘早儿支反许满推省界预流级批领象气餐委优限难望客党言风除图随四束思南版候低集军局术"
    "停逐议默联环片施注色效序商友切费号态历供像边必技司秒规际换办走令山连境周视清找拉广致育载故含引符哪百足传首微约具"
    "离星轮梯队概治货院半越战光影误状排族远讲晚户专转套占拒止村密团希江择须虽普怎继否史职消志判息独初够革减神宝众府克"
    "声告即极录花困源旧乐英亮签城马举缺余双份楼却造亚充布游积研待斯群坏采般修景阶朋缩"
)
TRADITIONAL = (
    "個這為時對沒會國來訓後練數還書過資與間於們說開發詞實裡點寫務學料經結錯體機請現標長設業別種動樣測麼記給較兩讀權從"
    "進問計題電層該內無價區關著覺當檔並碼總類組話選應單產損帶買頭變報預員裝東執讓場驗介卡強幾統確華論濟輸處調夾評歡語"
    "門將項張習編網愛觀見啟證義檢線參則訊萬決試併續車鍵節質條視熱達認斷農稱準識絕許導適兒顯滿領氣難黨風隨規臺圖專軍級"
    "術議聯費號態據邊憶際運傳辦換環歷連廣狀載約優離輪貨戰隊誤援遠講轉係佔團雖擇繼職須階獨夠寶減眾極舊錄復樂亞馬舉餘雙"
    "樓卻積複壞盤聲李縮秩幹"
)
FREQUENT = frozenset(SIMPLIFIED + TRADITIONAL)
PUNCTUATION = frozenset("，。、！？：；（）《》「」『』【】“”‘’—…·～　")
MARKS = (  # the longer ones first
    (codecs.BOM_UTF8, "utf-8-sig"), (codecs.BOM_UTF32_LE, "utf-32"), (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"), (codecs.BOM_UTF16_BE, "utf-16"),
)  # fmt: skip
CHINESE = ("gb18030", "cp950", "big5hkscs")  # cp950: Big5 as Windows writes it
OTHERS = ("cp949", "cp932", "euc_jp")  # Korean and Japanese: recognized, so that they are not taken for Chinese
FAMILIES = {"cp950": "big5", "big5hkscs": "big5"}
COMMON = frozenset(  # the first levels of GB2312 and Big5: what is written at all
    bytes((high, low)).decode(codec, "ignore")
    for codec, highs in (("gb2312", range(0xB0, 0xD8)), ("big5", range(0xA4, 0xC7)))
    for high in highs
    for low in range(0x40, 0xFF)
)
HAN = {"frequent": 2.5, "punctuation": 2.0, "common": -1.0, "han": -2.0, "kana": -2.5, "hangul": -4.0, "other": -2.5}
KOREAN = {"frequent": -1.5, "punctuation": 1.0, "common": -2.0, "han": -2.5, "kana": -2.5, "hangul": 1.0, "other": -2.5}
JAPANESE = {"frequent": 1.0, "punctuation": 1.5, "common": 0.0, "han": -0.5, "kana": 2.0, "hangul": -4.0, "other": -1.5}
CHARACTERS = Message("only so its characters are those of Chinese texts")
PROOF = 4.6  # log of 100: the odds that are asked for
SAMPLE_BYTES = 1 << 18  # of lines that are not ASCII, on which a file's encoding is decided
HEAD_BYTES = 1 << 16
DECODABLE = 0.9  # of these lines must decode
MAX_LISTED = 100_000  # lines that are listed; the others are counted
CHUNK = 1 << 20
ENDS = 1 << 12
CHANCE = 3  # characters that may be UTF-8 by chance
NOT_ASCII = re.compile(r"[^\x00-\x7f]")


@dataclass(frozen=True)
class FileEncoding:
    """How a file is decoded, and why."""

    codec: str
    """A codec of Python: utf-8, utf-8-sig, utf-16, gb18030, cp950 ..."""
    reason: Message
    odd: tuple[tuple[int, str], ...] = ()
    """Lines in another encoding that was proven: (line, codec)."""
    unproven: int = 0
    """Lines that are neither in the file's encoding nor provably in another one."""
    odd_codec: str = ""
    """The encoding of the odd lines taken together."""

    @property
    def is_mixed(self) -> bool:
        return bool(self.odd or self.unproven)

    def decode_line(self, raw: bytes) -> str | None:
        """A line as text; None if its encoding cannot be proven."""
        codec = _codec_of_line(raw, self.codec, self.odd_codec) if self.is_mixed else self.codec
        try:
            return raw.decode(codec) if codec else None
        except UnicodeDecodeError:
            return None

    def findings(self, path: Path) -> Iterator[Finding]:
        """What was decided for the user: nothing is said of plain UTF-8."""
        name = self.codec.removesuffix("-sig")
        if name != "utf-8":
            message = Message("{file} is read as {encoding}: {reason}", file=str(path), encoding=name, reason=self.reason)
            yield Finding("encoding", "warning", message)
        for codec, n in Counter(codec for _, codec in self.odd).items():
            lines = [line for line, x in self.odd if x == codec]
            message = Message(
                "{file}: {n:,} lines are not {encoding} but {other}, and are read as such (line {lines})",
                file=str(path),
                n=n,
                encoding=name,
                other=codec,
                lines=", ".join(map(str, lines[:5])) + (" ..." if n > 5 else ""),
            )
            yield Finding("encoding", "warning", message)


def encoding_of(path: Path) -> FileEncoding:
    """The encoding of a file, decided on all of its bytes; once for each state of the file."""
    position = on_disk(path)
    stat = position.stat()
    with open(position, "rb") as opened:  # a file may be written twice within one tick of its clock
        ends = opened.read(ENDS)
        opened.seek(max(0, stat.st_size - ENDS))
        ends += opened.read(ENDS)
    return _encoding_of(path, stat.st_size, stat.st_mtime_ns, ends)


@functools.lru_cache(maxsize=64)
def _encoding_of(path: Path, size: int, time: int, ends: bytes) -> FileEncoding:
    with open_file(path) as opened:
        head = opened.read(HEAD_BYTES)
        for mark, codec in MARKS:
            if head.startswith(mark) and codec != "utf-8-sig":
                return FileEncoding(codec, Message("its byte order mark says so"))
        if codec := _wide_codec(head):
            return FileEncoding(codec, Message("every other byte of its text is zero"))
        few = _few_characters(head, opened)
        if few is not None and not may_be_gb18030(few):
            mark = head.startswith(codecs.BOM_UTF8)
            return FileEncoding("utf-8-sig" if mark else "utf-8", Message("all of its bytes are UTF-8"))
    return _decide(path, head)


def _few_characters(head: bytes, rest: BinaryIO) -> str | None:
    """The first characters of a file that are not ASCII; None if it is not UTF-8."""
    few = ""
    decoder = codecs.getincrementaldecoder("utf-8")()
    pending = False  # a character that the last chunk began
    try:
        chunk = head
        while chunk:
            if pending or not chunk.isascii():
                text = decoder.decode(chunk)
                if len(few) <= CHANCE:
                    few += "".join(x[0] for x in itertools.islice(NOT_ASCII.finditer(text), CHANCE + 1))
                pending = bool(decoder.getstate()[0])
            chunk = rest.read(CHUNK)
        decoder.decode(b"", final=True)
    except UnicodeDecodeError:
        return None
    return few


def may_be_gb18030(characters: str) -> bool:
    """Whether UTF-8 may be chance: up to three letters of two bytes that would all be common characters in GB18030.

    A character in GB18030 is also one in UTF-8 in one of seven cases. The signs of Latin-1 (a middle dot) are too common.
    """
    if not 0 < len(characters) <= CHANCE or not all("\x80" <= x <= "\u07ff" for x in characters):
        return False
    raw = characters.encode("utf-8")
    return any(x > "\xff" for x in characters) and _decodes(raw, "gb18030") and set(raw.decode("gb18030")) <= FREQUENT


def _wide_codec(head: bytes) -> str:
    """UTF-16 without a mark: Latin text has a zero in every other byte."""
    head = head[: len(head) // 2 * 2]
    for codec, zeros, others in (("utf-16-le", head[1::2], head[::2]), ("utf-16-be", head[::2], head[1::2])):
        if len(head) >= 8 and zeros.count(0) > 0.6 * len(zeros) and others.count(0) < 0.1 * len(others):
            return codec
    return ""


def _decide(path: Path, head: bytes) -> FileEncoding:
    """The encoding of a file that is not UTF-8 throughout: that of most of its lines that are not ASCII."""
    in_utf8, num_others, sample, size = 0, 0, list[bytes](), 0
    for _, raw in _lines_not_ascii(path):
        if _decodes(raw, "utf-8"):
            in_utf8 += 1
            continue
        num_others += 1
        if size < SAMPLE_BYTES:
            sample.append(raw[:SAMPLE_BYTES])
            size += len(raw)
    scores = evidence(sample)
    best = _proven(scores)
    if not best and not in_utf8 and (wide := _chinese_utf_16(head, scores)):
        return FileEncoding(wide, CHARACTERS)
    codec = best if best and num_others > in_utf8 else "utf-8-sig" if head.startswith(codecs.BOM_UTF8) else "utf-8"
    odd, unproven = list[tuple[int, str]](), 0
    for number, raw in _lines_not_ascii(path):
        line_codec = _codec_of_line(raw, codec, best)
        unproven += not line_codec
        if line_codec not in ("", codec) and len(odd) < MAX_LISTED:
            odd.append((number, line_codec))
    reason = CHARACTERS if codec == best else Message("most of its lines are")
    return FileEncoding(codec, reason, tuple(odd), unproven, best if codec != best else "")


def _lines_not_ascii(path: Path) -> Iterator[tuple[int, bytes]]:
    with open_file(path) as opened:
        for number, raw in enumerate(opened, 1):
            if not raw.isascii():
                yield number, raw


def _codec_of_line(raw: bytes, codec: str, odd_codec: str) -> str:
    """The encoding of a line of a file whose encoding is `codec`; "" if it cannot be proven.

    Args:
        odd_codec: what lines that are not in `codec` are when taken together.
    """
    if codec.startswith("utf-8"):
        if _decodes(raw, "utf-8"):
            return "" if may_be_gb18030("".join(NOT_ASCII.findall(raw.decode("utf-8")))) else codec
        if own := _proven(evidence([raw])):
            return own
        return odd_codec if odd_codec and _decodes(raw, odd_codec) and _score(raw.decode(odd_codec), odd_codec) > 0 else ""
    fits = _decodes(raw, codec)
    if _decodes(raw, "utf-8"):  # a short line in GB18030 may be UTF-8 by chance: Hebrew and Arabic letters then
        better = not fits or _score(raw.decode("utf-8"), "utf-8") > _score(raw.decode(codec), codec) + PROOF
        return "utf-8" if better else codec
    return codec if fits else _proven(evidence([raw]))


def fitting_encodings(raw: bytes) -> list[str]:
    """The encodings that a text may be in, the likeliest first, where none is proven."""
    scores = evidence([raw])
    return [FAMILIES.get(x, x) for x in sorted(scores, key=lambda x: -scores[x]) if scores[x] > 0]


def evidence(lines: Sequence[bytes]) -> dict[str, float]:
    """For each encoding in which nearly all of the lines decode, the log of the odds that they are in it."""
    scores: dict[str, float] = {}
    for codec in (*CHINESE, *OTHERS):
        texts = [raw.decode(codec) for raw in lines if _decodes(raw, codec)]
        if len(texts) >= DECODABLE * len(lines) and not (codec == "big5hkscs" and "cp950" in scores):
            scores[codec] = _score("".join(texts), codec)
    return scores


def _proven(scores: dict[str, float]) -> str:
    """The Chinese encoding that is better than 100 to 1, also against every other one; else ""."""
    ranked = sorted(scores, key=lambda x: -scores[x])
    if not ranked or ranked[0] not in CHINESE or scores[ranked[0]] < PROOF:
        return ""
    return ranked[0] if len(ranked) == 1 or scores[ranked[0]] - scores[ranked[1]] >= PROOF else ""


def _score(text: str, codec: str) -> float:
    """The log of the odds that a text was decoded rightly, summed over its characters that are not ASCII."""
    weights = JAPANESE if codec in ("cp932", "euc_jp") else KOREAN if codec == "cp949" else HAN
    counts = Counter(x for x in text if x > "\x7f")
    score = sum(n * weights[_kind_of(x)] for x, n in counts.items())
    distinct = sum(weights[_kind_of(x)] > 0 for x in counts)
    return score if distinct > 1 else min(score, PROOF / 2)  # one character again and again is one piece of evidence


def _kind_of(character: str) -> str:
    if character in FREQUENT:
        return "frequent"
    if character in PUNCTUATION:
        return "punctuation"
    if character in COMMON:
        return "common"
    if "\u4e00" <= character <= "\u9fff":
        return "han"
    if "\u3041" <= character <= "\u30ff":
        return "kana"
    if "\uac00" <= character <= "\ud7a3":
        return "hangul"
    return "other"


def _chinese_utf_16(head: bytes, scores: dict[str, float]) -> str:
    """UTF-16 without a mark, where only so the text is Chinese."""
    head = head[: len(head) // 2 * 2]
    wide = {x: _score(head.decode(x, "replace"), x) for x in ("utf-16-le", "utf-16-be")}
    best = max(wide, key=wide.__getitem__)
    return best if wide[best] - max(scores.values(), default=0.0) >= PROOF and wide[best] >= PROOF else ""


def _decodes(raw: bytes, codec: str) -> bool:
    try:
        raw.decode(codec)
    except UnicodeDecodeError:
        return False
    return True
