"""Baselines that a trained model must beat: word counts (mails), the likeliest word (questions), copying (dates).

Run: python -m bench.trainer.baselines      on the rows of quickstart/prepare_{spam,qa,dates}.py; missing ones are skipped

    mails      TF-IDF of words and logistic regression (scikit-learn; C by cross-validation on 2,000 training mails)
    questions  always "no answer"; or the longest word that is not in the question, of the sentence that shares most words
    dates      the source unchanged

Prints each baseline's accuracy on the held-out rows, with Wilson's interval.
"""

import json
import re

from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegressionCV
from sklearn.metrics import f1_score
from sklearn.pipeline import make_pipeline

from bench.shared.machine import ROOT
from weitiao.core.score import proportion
from weitiao.evaluate.metrics.exact_match import ExactMatch
from weitiao.evaluate.metrics.squad_em import SquadEM

DATA = ROOT / "quickstart" / "data"
TRAIN_ROWS, SHORT = 2000, 45  # mails; 45 words of a mail are about 64 tokens


def main() -> None:
    """Every baseline whose rows exist."""
    for file, run in (("spam_test.jsonl", mails), ("qa_en_test.json", questions), ("dates_test.jsonl", dates)):
        if (DATA / file).exists():
            run()
        else:
            print(f"{file} is missing: run quickstart/prepare_{file.partition('_')[0]}.py")


def mails() -> None:
    """TF-IDF and logistic regression."""
    train, test = (rows(f"spam_{x}.jsonl") for x in ("train", "test"))
    for limit in (None, SHORT):
        classifier = make_pipeline(TfidfVectorizer(), LogisticRegressionCV(Cs=(1, 10, 100, 1000), max_iter=2000))
        classifier.fit([first(x["text"], limit) for x in train[:TRAIN_ROWS]], [x["label"] for x in train[:TRAIN_ROWS]])
        predicted, labels = classifier.predict([first(x["text"], limit) for x in test]), [x["label"] for x in test]
        score = proportion("accuracy", sum(a == b for a, b in zip(predicted, labels, strict=True)), len(labels))
        macro = f1_score(labels, predicted, average="macro")
        print(f"mails, TF-IDF of {limit or 'all'} words: {score}, macro F1 {100 * macro:.1f} %")


def questions() -> None:
    """Always "no answer", and the likeliest word."""
    squad = json.loads((DATA / "qa_en_test.json").read_text(encoding="utf-8"))
    paragraphs = [paragraph for document in squad["data"] for paragraph in document["paragraphs"]]
    rows = [(p["context"], qa["question"], [x["text"] for x in qa["answers"]]) for p in paragraphs for qa in p["qas"]]
    print(f"questions, no answer: {SquadEM().score([('', answers) for _, _, answers in rows])}")
    print(f"questions, likeliest word: {SquadEM().score([(likeliest(c, q), answers) for c, q, answers in rows])}")


def dates() -> None:
    """Copying."""
    print(f"dates, copied: {ExactMatch().score([(x['source'], x['target']) for x in rows('dates_test.jsonl')])}")


def likeliest(context: str, question: str) -> str:
    """The longest word that is not in the question, of the sentence that shares most words with it."""
    question_words = set(question.lower().split())
    sentences = [x.split() for x in re.split(r"(?<=[.!?:])\s+", context)]
    best = max(sentences, key=lambda sentence: sum(x.lower() in question_words for x in sentence))
    return max((x for x in best if x.lower() not in question_words), key=len, default="").strip('.,;:!?()"')


def first(text: str, num_words: int | None) -> str:
    return " ".join(text.split()[:num_words])


def rows(name: str) -> list[dict]:
    return [json.loads(line) for line in (DATA / name).read_text(encoding="utf-8").splitlines()]


if __name__ == "__main__":
    main()
