"""Questions about real text: the Debian Reference (GPL 2 or later), English and Chinese.

Run: python quickstart/prepare_qa.py

No one asked these questions: they are cloze questions made by rule. A sentence of a section with a term set in code (a
command, a file, a package, an option) is the question, with a gap for the term; the section is the text, the term there the
answer. About half of the sentence's other words are left out, and always those beside the gap, so that the question is
nowhere to be found as it stands, and what it asks for must be told by what kind of word is missing. One question in four is
asked of another section of the same chapter that does not hold the term: there is no answer.

The text comes from Debian's archive by `apt-get download` (a Debian or Ubuntu machine; nothing is installed). Chapters 3,
7, 8 and 11 are held out, the others learnt; a question that is asked twice is kept once, or not at all where its answers
differ; a held-out question that is nearly a learnt one is dropped. The bytes follow the version of the package.

Writes quickstart/data/qa_{en,zh}_{train,test}.json in SQuAD 2.0's form.
"""

import html
import json
import re
import subprocess
import sys
from collections import defaultdict
from pathlib import Path
from typing import Any

from weitiao.core.example import content_hash
from weitiao.core.files import home
from weitiao.data.checks import near_duplicates

DATA = Path(__file__).parent / "data"
BOOKS = {"en": "debian-reference-en", "zh": "debian-reference-zh-cn"}
HELD_OUT = ("ch03", "ch07", "ch08", "ch11")
LONGEST = {"en": 450, "zh": 220}  # characters of a text, about 100 to 150 tokens
SENTENCE = {"en": (40, 250), "zh": (15, 120)}
OF_ONE_TEXT, TERMS, MOST = 8, 2, 4  # questions; different terms of a text; terms of a sentence
GAP, BESIDE = "_____", 2  # words on each side of the gap that are always left out
CODE = re.compile(r'<code class="literal">(.*?)</code>', re.S)
WORDS = {"en": r"\S+\s*", "zh": r"[!-~]+|[^!-~]{1,2}"}  # what is left out at once
ENDS = {"en": r"(?<=[.!?:])\s+", "zh": r"(?<=[。！？：；])\s*"}


def main() -> None:
    """Make the files, unless they are there."""
    for language, package in BOOKS.items():
        if (DATA / f"qa_{language}_test.json").exists():
            continue
        texts = sections(fetch(package), language)
        asked = questions(texts, language)
        held = [x for x in asked if x["chapter"] in HELD_OUT]
        train = [x for x in asked if x["chapter"] not in HELD_OUT]
        known = near_duplicates([x["question"] for x in train], [x["question"] for x in held])
        again = set(known.values())
        held = [x for i, x in enumerate(held) if i not in again]
        for name, some in (("train", train), ("test", held)):
            none = sum(x["is_impossible"] for x in some)
            file = DATA / f"qa_{language}_{name}.json"
            file.write_text(json.dumps(squad(some), ensure_ascii=False, indent=1) + "\n", encoding="utf-8")
            print(
                f"{file.name}: {len(some)} questions about {len({x['context'] for x in some})} texts, {none} without answer"
            )


def fetch(package: str) -> Path:
    """The folder of an unpacked Debian package."""
    place = home() / "packages" / package
    if not place.exists():
        place.parent.mkdir(parents=True, exist_ok=True)
        part = place.with_suffix(".part")
        part.mkdir(exist_ok=True)
        try:
            subprocess.run(["apt-get", "download", package], cwd=part, check=True, capture_output=True, text=True)
            (deb,) = part.glob("*.deb")
            print(f"fetched {deb.name}", file=sys.stderr)
            subprocess.run(["dpkg-deb", "-x", deb.name, "."], cwd=part, check=True)
        except FileNotFoundError:
            sys.exit(f"{package} is a Debian package, and there is no apt-get here. Run this on Debian.")
        except subprocess.CalledProcessError as error:
            sys.exit(f"{package} could not be fetched: {error.stderr or error}. Try apt-get update first.")
        part.rename(place)
    return place


def sections(folder: Path, language: str) -> list[dict[str, Any]]:
    """Texts of some paragraphs of one section each, with the places of their terms."""
    found = []
    for file in sorted(folder.glob("usr/share/debian-reference/ch*.html")):
        raw = re.sub(r"(?s)<pre.*?</pre>|<table.*?</table>", " ", file.read_text(encoding="utf-8"))
        for part in raw.split('<div class="section">')[1:]:
            title = plain(re.search(r"(?s)<h\d[^>]*>(.*?)</h\d>", part).group(1))  # pyright: ignore[reportOptionalMemberAccess]
            marked = [plain(CODE.sub("\x01\\1\x02", p)) for p in re.findall(r"(?s)<p>(.*?)</p>", part)]
            for text in joined(marked, LONGEST[language]):
                found.append({"chapter": file.name[:4], "title": title, **with_terms(text)})
    return [x for x in found if len({x["context"][a:b] for a, b in x["terms"]}) >= TERMS]


def plain(markup: str) -> str:
    return re.sub(r"\s+", " ", html.unescape(re.sub(r"<[^>]*>", "", markup))).strip()


def joined(paragraphs: list[str], longest: int) -> list[str]:
    """Neighbouring paragraphs as texts of at most so many characters; a longer paragraph stays whole."""
    made = [""]
    for paragraph in paragraphs:
        if made[-1] and len(made[-1]) + len(paragraph) > longest:
            made.append("")
        made[-1] = f"{made[-1]} {paragraph}".strip()
    return made


def with_terms(marked: str) -> dict[str, Any]:
    """The text without marks, and where its terms stand."""
    text, terms, begin = "", [], 0
    for piece in re.split("([\x01\x02])", marked):
        if piece == "\x01":
            begin = len(text)
        elif piece == "\x02":
            terms.append((begin, len(text)))
        else:
            text += piece
    return {"context": text, "terms": terms}


def questions(texts: list[dict[str, Any]], language: str) -> list[dict[str, Any]]:
    """Every question with its text and answer, in a fixed order."""
    answers: dict[str, set[str]] = defaultdict(set)
    found: dict[str, dict[str, Any]] = {}
    for number, text in enumerate(texts):
        for question, begin, term in list(clozes(text, language))[:OF_ONE_TEXT]:
            key = content_hash(question)
            answers[key].add(term)
            found.setdefault(key, {"number": number, "question": question, "begin": begin, "term": term})
    made = []
    for key, x in sorted(found.items()):
        if len(answers[key]) > 1:
            continue
        text, impossible = texts[x["number"]], int(key[:8], 16) % 4 == 0
        if impossible:
            chapter = [
                t for t in texts if t["chapter"] == text["chapter"] and x["term"].lower() not in t["context"].lower()
            ]
            if not chapter:
                continue
            text = chapter[int(key[8:16], 16) % len(chapter)]
        answer = [] if impossible else [{"text": x["term"], "answer_start": x["begin"]}]
        made.append({"id": key[:16], "chapter": text["chapter"], "title": text["title"], "context": text["context"],
                     "question": x["question"], "answers": answer, "is_impossible": impossible})  # fmt: skip
    return made


def clozes(text: dict[str, Any], language: str) -> list[tuple[str, int, str]]:
    """(sentence with a gap, where the term begins, the term) of each sentence that has few terms."""
    found, context, at = [], text["context"], 0
    shortest, longest = SENTENCE[language]
    for sentence in re.split(ENDS[language], context):
        at = context.index(sentence, at)
        inside = [(a, b) for a, b in text["terms"] if at <= a and b <= at + len(sentence)]
        if 1 <= len(inside) <= MOST and len(sentence) <= longest:
            a, b = inside[int(content_hash(sentence)[:8], 16) % len(inside)]
            term = context[a:b]
            alone = term.strip() == term and sentence.count(term) == 1
            if alone and 2 <= len(term) <= 40 and len(sentence) - len(term) >= shortest:
                before, behind = (re.findall(WORDS[language], x) for x in (context[at:a], context[b : at + len(sentence)]))
                space = " " if language == "en" else ""
                found.append((space.join([*thinned(before[:-BESIDE]), GAP, *thinned(behind[BESIDE:])]), a, term))
        at += len(sentence)
    return found


def thinned(words: list[str]) -> list[str]:
    """About half of the words, by their hash: the same word in the same place is always kept, or never."""
    return [x.strip() for i, x in enumerate(words) if int(content_hash(f"{i} {x}")[:2], 16) % 2]


def squad(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """SQuAD 2.0's form: chapters are documents."""
    documents: dict[str, dict[str, list]] = defaultdict(lambda: defaultdict(list))
    for x in rows:
        qa = {key: x[key] for key in ("id", "question", "answers", "is_impossible")}
        documents[x["chapter"]][x["context"]].append(qa)
    data = [
        {"title": f"Debian Reference, {chapter}", "paragraphs": [{"context": c, "qas": qas} for c, qas in texts.items()]}
        for chapter, texts in sorted(documents.items())
    ]
    return {"version": "v2.0", "data": data}


if __name__ == "__main__":
    main()
