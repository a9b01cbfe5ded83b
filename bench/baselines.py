"""Floors that a trained model must be above: counting words (mails), the likeliest word (questions), copying (dates).

Run: python bench/baselines.py      on the rows that quickstart/prepare_{spam,qa,dates}.py make; those missing are left out

    mails      TF-IDF of words and logistic regression (scikit-learn; its strength chosen on parts of the 2,000 learnt)
    questions  always "no answer"; or, of the sentence that has most words of the question, the longest word that it has not
    dates      the source as it stands

Prints each one's share of right answers on the held-out rows, with Wilson's interval.
"""

import json
import re
from pathlib import Path

from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegressionCV
from sklearn.metrics import f1_score
from sklearn.pipeline import make_pipeline

from weitiao.core.score import proportion
from weitiao.evaluate.metrics.exact_match import ExactMatch
from weitiao.evaluate.metrics.squad_em import SquadEM

DATA = Path(__file__).resolve().parent.parent / "quickstart" / "data"
LEARNT, SHORT = 2000, 45  # mails; words of a mail that are about 64 tokens


def main() -> None:
    """Every baseline whose rows are there."""
    for file, tell in (("spam_test.jsonl", mails), ("qa_en_test.json", questions), ("dates_test.jsonl", dates)):
        if (DATA / file).exists():
            tell()
        else:
            print(f"{file} is not there: quickstart/prepare_{file.partition('_')[0]}.py makes it")


def mails() -> None:
    """Counting words."""
    train, test = (rows(f"spam_{x}.jsonl") for x in ("train", "test"))
    for words in (None, SHORT):
        judge = make_pipeline(TfidfVectorizer(), LogisticRegressionCV(Cs=(1, 10, 100, 1000), max_iter=2000))
        judge.fit([first(x["text"], words) for x in train[:LEARNT]], [x["label"] for x in train[:LEARNT]])
        said, right = judge.predict([first(x["text"], words) for x in test]), [x["label"] for x in test]
        score = proportion("accuracy", sum(a == b for a, b in zip(said, right, strict=True)), len(right))
        macro = f1_score(right, said, average="macro")
        print(f"mails, TF-IDF of {words or 'all'} words: {score}, F1 (mean of both classes) {100 * macro:.1f} %")


def questions() -> None:
    """Never an answer, and the likeliest word."""
    file = json.loads((DATA / "qa_en_test.json").read_text(encoding="utf-8"))
    texts = [part for document in file["data"] for part in document["paragraphs"]]
    asked = [(part["context"], qa["question"], [x["text"] for x in qa["answers"]]) for part in texts for qa in part["qas"]]
    print(f"questions, no answer: {SquadEM().score([('', right) for _, _, right in asked])}")
    print(f"questions, likeliest word: {SquadEM().score([(likeliest(c, q), right) for c, q, right in asked])}")


def dates() -> None:
    """Copying."""
    print(f"dates, copied: {ExactMatch().score([(x['source'], x['target']) for x in rows('dates_test.jsonl')])}")


def likeliest(context: str, question: str) -> str:
    """Of the sentence that shares most words with the question, the longest word that the question has not."""
    known = set(question.lower().split())
    sentences = [x.split() for x in re.split(r"(?<=[.!?:])\s+", context)]
    best = max(sentences, key=lambda words: sum(x.lower() in known for x in words))
    return max((x for x in best if x.lower() not in known), key=len, default="").strip('.,;:!?()"')


def first(text: str, words: int | None) -> str:
    return " ".join(text.split()[:words])


def rows(name: str) -> list[dict]:
    return [json.loads(line) for line in (DATA / name).read_text(encoding="utf-8").splitlines()]


if __name__ == "__main__":
    main()
