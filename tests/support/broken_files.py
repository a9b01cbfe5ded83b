"""Broken data files: good ones of each format with lines, and what disks, editors and programs do to them, by seed."""

import json
import random
from collections.abc import Callable

WORDS = [
    "今天",
    "天气",
    "很好",
    "hello",
    "world",
    "émigré",
    "😀",
    'a "quote"',
    "x, y",
    "tab\tbed",
    "第三章",
    "　全角",
    "end.",
]


def good_file(kind: str, rng: random.Random) -> bytes:
    """A sound file of 3 to 30 rows."""
    rows = [[" ".join(rng.choices(WORDS, k=rng.randint(1, 6))) for _ in range(2)] for _ in range(rng.randint(3, 30))]
    end = rng.choice(["\n", "\n", "\r\n"])
    match kind:
        case "jsonl":
            lines = [json.dumps({"prompt": a, "completion": b}, ensure_ascii=rng.random() < 0.3) for a, b in rows]
        case "csv":
            quoted = ['"' + x.replace('"', '""') + rng.choice(["", "", "\nsecond line"]) + '"' for row in rows for x in row]
            lines = ["prompt,completion", *(",".join(quoted[i : i + 2]) for i in range(0, len(quoted), 2))]
        case "tsv":
            lines = ["prompt\tcompletion", *("\t".join(x.replace("\t", " ") for x in row) for row in rows)]
        case "conll":
            lines = [line for a, _ in rows for line in [*(f"{w} O" for w in a.split()), ""]]
        case _:
            lines = [line for a, b in rows for line in (a, b + rng.choice(["", "\f"]))]
    encoding = rng.choice(["utf-8", "utf-8", "utf-8-sig", "gb18030"])
    return "".join(line + end for line in lines).encode(encoding, "replace")


def broken_file(kind: str, seed: int) -> bytes:
    """A file of a kind after one to four accidents."""
    rng = random.Random(f"{kind} {seed}")
    raw = good_file(kind, rng)
    for _ in range(rng.randint(1, 4)):
        raw = rng.choice(ACCIDENTS)(raw, rng)
    return raw or b"\n"


def _cut(raw: bytes, rng: random.Random) -> bytes:
    return raw[: rng.randint(0, len(raw))]


def _flip(raw: bytes, rng: random.Random) -> bytes:
    changed = bytearray(raw)
    for _ in range(rng.randint(1, 20)):
        if changed:
            changed[rng.randrange(len(changed))] ^= 1 << rng.randrange(8)
    return bytes(changed)


def _insert(raw: bytes, rng: random.Random) -> bytes:
    place = rng.randint(0, len(raw))
    return raw[:place] + rng.choice(INSERTIONS) + raw[place:]


def _repeat(raw: bytes, rng: random.Random) -> bytes:
    start = rng.randint(0, len(raw))
    end = rng.randint(start, min(len(raw), start + 200))
    return raw[:end] + raw[start:end] * rng.randint(1, 3) + raw[end:]


def _remove(raw: bytes, rng: random.Random) -> bytes:
    start = rng.randint(0, len(raw))
    return raw[:start] + raw[min(len(raw), start + rng.randint(1, 100)) :]


def _line_ends(raw: bytes, rng: random.Random) -> bytes:
    return b"".join(x + rng.choice([b"\n", b"\r\n", b"\r", b"\n\n", b"\n \n"]) for x in raw.splitlines())


def _encode_line(raw: bytes, rng: random.Random) -> bytes:
    lines = raw.splitlines(keepends=True)
    if lines:
        i = rng.randrange(len(lines))
        text = lines[i].decode("utf-8", "replace")
        lines[i] = text.encode(rng.choice(["gb18030", "big5", "utf-16", "latin-1", "shift_jis"]), "replace")
    return b"".join(lines)


def _swap_lines(raw: bytes, rng: random.Random) -> bytes:
    lines = raw.splitlines(keepends=True)
    rng.shuffle(lines)
    return b"".join(lines)


INSERTIONS = (
    b"\0", b"\0" * 500, b"\xff\xfe", b"\xef\xbb\xbf", b"\x80", b"\xc0\xaf", b"\xed\xa0\x80", b"\x1a", b"\x0b", b"\x0c",
    b"\r", b"\x85", b"\xe2\x80\xa8", b"\n\n\n", b'"', b'""', b"'", b"\\", b"{", b"}" * 5, b"[" * 5000, b'{"a":' * 3000,
    b",", b"\t", b"9" * 5000, b"x" * 300_000, "汉".encode() * 50_000, b'{"prompt": "a", "prompt": "b"}\n', b"null\n",
    b"[1, 2]\n", b"NaN\n", b'{"prompt": "\\ud800", "completion": "x"}\n', b"# comment\n", b"-DOCSTART- O\n", b"sep=;\n",
    b"\xc4\xe3\n",
)  # fmt: skip
ACCIDENTS: tuple[Callable[[bytes, random.Random], bytes], ...] = (
    _cut, _flip, _insert, _insert, _repeat, _remove, _line_ends, _encode_line, _swap_lines,
)  # fmt: skip
