"""320 text files in known encodings, the same at every call: sixteen kinds of twenty files.

Texts are this project's own documentation; traditional.txt is part of the Chinese one in traditional characters.
"""

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
EACH = 20
KOREAN = [
    "모든 국민은 법 앞에 평등하다. 누구든지 성별 종교 또는 사회적 신분에 의하여 정치적 경제적 사회적 문화적 생활의",
    "차별을 받지 아니한다. 대한민국의 주권은 국민에게 있고 모든 권력은 국민으로부터 나온다.",
]
JAPANESE = [
    "日本国民は、正当に選挙された国会における代表者を通じて行動し、われらとわれらの子孫のために、諸国民との協和による成果と、",
    "わが国全土にわたつて自由のもたらす恵沢を確保し、政府の行為によつて再び戦争の惨禍が起ることのないやうにすることを決意し、",
]
FRENCH = ["Où est passé l'élève naïf ? Il a été reçu à Noël, près du château.", "Çà et là, des garçons très gâtés."]


@dataclass(frozen=True)
class EncodedText:
    """A file and what it holds."""

    kind: str
    raw: bytes
    text: str | None
    """What must be read; None: this file's encoding cannot be proven, and must be asked about."""
    may_ask: bool = False
    """So short that asking is right, too."""


def simplified(root: Path = ROOT) -> list[str]:
    lines = (root / "docs" / "tasks.zh.md").read_text(encoding="utf-8").split("\n")
    lines += (root / "docs" / "serve.zh.md").read_text(encoding="utf-8").split("\n")
    return [x for x in lines if sum("\u4e00" <= c <= "\u9fff" for c in x) >= 8]


def traditional() -> list[str]:
    return (Path(__file__).parent / "traditional.txt").read_text(encoding="utf-8").strip().split("\n")


def english(root: Path = ROOT) -> list[str]:
    lines = (root / "docs" / "serve.md").read_text(encoding="utf-8").split("\n")
    return [x for x in lines if len(x) > 20 and x.isascii()]


def encoded_texts(
    seed: int, hans: list[str] | None = None, hant: list[str] | None = None, latin: list[str] | None = None
) -> Iterator[EncodedText]:
    """All files, of the texts that are given or of the documentation."""
    rng, hans, hant, latin = random.Random(seed), hans or simplified(), hant or traditional(), latin or english()

    def some(lines: list[str], low: int, high: int) -> str:
        return "\n".join(rng.choice(lines) for _ in range(rng.randint(low, high))) + "\n"

    def piece(lines: list[str], size: int) -> str:
        """Consecutive characters, of which at least one is Han."""
        line = rng.choice([x for x in lines if len(x) >= size])
        start = rng.randrange(len(line) - size + 1)
        text = line[start : start + size]
        return text + "\n" if any("\u4e00" <= x <= "\u9fff" for x in text) else piece(lines, size)

    def late(lines: list[str], codec: str) -> tuple[bytes, str]:
        text = some(latin, 300, 800) + some(lines, 1, 3) + some(latin, 10, 100)
        return text.encode(codec), text

    kinds: dict[str, Callable[[], tuple[bytes, str | None]]] = {
        "utf-8": lambda: _in("utf-8", some(hans + hant, 1, 40)),
        "utf-8 with a mark": lambda: _in("utf-8-sig", some(hans, 1, 5)),
        "ascii": lambda: _in("ascii", some(latin, 1, 40)),
        "gb18030": lambda: _in("gb18030", some(hans, 5, 60)),
        "gb18030, one line": lambda: _in("gb18030", some(hans, 1, 1)),
        "gb18030, 8 characters": lambda: _in("gb18030", piece(hans, 8)),
        "gb18030 late in ASCII": lambda: late(hans, "gb18030"),
        "gb18030, traditional": lambda: _in("gb18030", some(hant, 2, 20)),
        "gb18030 with English": lambda: _in("gb18030", some(hans + latin * 2, 10, 40)),
        "big5": lambda: _in("cp950", some(hant, 5, 60)),
        "big5, one line": lambda: _in("cp950", some(hant, 1, 1)),
        "big5, 8 characters": lambda: _in("cp950", piece(hant, 8)),
        "big5 late in ASCII": lambda: late(hant, "cp950"),
        "utf-16": lambda: _in(rng.choice(["utf-16", "utf-16-le", "utf-16-be"]), some(hans + latin, 4, 30)),
        "lines of both": lambda: _both(rng, some(hans, 20, 40), some(hans, 1, 2)),
        "another language": lambda: _foreign(rng),
    }
    for kind, make in kinds.items():
        for _ in range(EACH):
            raw, text = make()
            yield EncodedText(kind, raw, text, may_ask="8 characters" in kind)


def _in(codec: str, text: str) -> tuple[bytes, str]:
    return text.encode(codec), text


def _both(rng: random.Random, most: str, few: str) -> tuple[bytes, str]:
    """A file with some lines in the other encoding."""
    main, other = rng.choice([("utf-8", "gb18030"), ("gb18030", "utf-8")])
    marked = [(x, main) for x in most.split("\n")[:-1]]
    for x in few.split("\n")[:-1]:
        marked.insert(rng.randint(0, len(marked)), (x, other))
    return b"".join(x.encode(codec) + b"\n" for x, codec in marked), "".join(x + "\n" for x, _ in marked)


def _foreign(rng: random.Random) -> tuple[bytes, None]:
    lines, codec = rng.choice([(KOREAN, "cp949"), (JAPANESE, "cp932"), (JAPANESE, "euc_jp"), (FRENCH, "latin-1")])
    return "\n".join(rng.sample(lines, rng.randint(1, 2))).encode(codec), None
