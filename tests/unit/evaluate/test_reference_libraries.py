"""Metrics equal the field's reference libraries to the last digit, on random cases in six scripts.

scikit-learn, scipy, seqeval, SQuAD's official script, sacreBLEU, rouge-score, NLTK, jsonschema and jiwer. Where a library
splits only Latin text into words (rouge-score), both sides are compared on the same words.
"""

from collections.abc import Callable
from importlib import import_module
from random import Random
from typing import Any

import numpy as np
import pytest

from support import squad_script
from weitiao.core import score as scores
from weitiao.core.metric import Metric
from weitiao.core.registry import create
from weitiao.evaluate.error_rate import normalize_text
from weitiao.evaluate.error_rate import split_words as asr_words
from weitiao.evaluate.words import split_words

CASES, FULL_CASES = 60, 1000
SAME = pytest.approx
TEXTS = {
    "latin": "the cat The CAT a dog naïve café Zürich, won't stop. New-York US us x2 an 3.5 Ünïted",
    "han": "今天 天气 很好 我们 去 北京 。 模型 微调 ， 数据 学习 GPT-4 好",
    "kana": "これは ねこ です カタカナ テスト を 東京 に 行く 。 データ ひらがな",
    "thai": "สวัสดี ครับ แมว น้ำ ประเทศไทย ที่ นี่ ไป กิน ข้าว",
    "devanagari": "हिन्दी भाषा में यह एक परीक्षण है। नमस्ते दुनिया क्या",
    "arabic": "مرحبا بالعالم هذا اختبار، اللغة العربية قطة كلب ٣",
}
WORDS = {script: x.split() for script, x in TEXTS.items()}
SCRIPTS = tuple(WORDS)


@pytest.fixture(autouse=True)
def few_draws(monkeypatch: pytest.MonkeyPatch) -> None:
    """The values are compared here, not their intervals."""
    monkeypatch.setattr(scores, "BOOTSTRAP_DRAWS", 2)
    monkeypatch.setattr(import_module("weitiao.evaluate.sacrebleu_score"), "DRAWS", 2)


@pytest.fixture(params=[pytest.param(FULL_CASES, marks=pytest.mark.full), CASES])
def cases(request: pytest.FixtureRequest) -> range:
    return range(request.param)


def value(name: str, pairs: list) -> float:
    metric: Any = create(Metric, name)
    return metric.score(pairs).value


def text(random: Random, script: str, most: int = 8) -> str:
    joint = "" if script in ("han", "kana", "thai") and random.random() < 0.7 else " "
    return joint.join(random.choices(WORDS[script], k=random.randint(0, most)))


def text_pairs(random: Random, script: str) -> list[tuple[str, str]]:
    """(answer, reference); an answer is often near its reference."""
    pairs = []
    for _ in range(random.randint(1, 6)):
        reference = text(random, script) or WORDS[script][0]
        words = reference.split()
        near = " ".join(random.sample(words, k=max(1, len(words) - random.randint(0, 2))))
        pairs.append((near if random.random() < 0.6 else text(random, script), reference))
    return pairs


# -- classes ----------------------------------------------------------------------------------------------------------


def test_classes(cases: range) -> None:
    from sklearn.metrics import accuracy_score, f1_score

    labels = ["US", "us", "Polish", "polish", "是", "否", "ネコ", "ไทย", "हिन्दी", "نعم", "1", "1.0"]
    for seed in cases:
        random = Random(seed)
        n, known = random.randint(1, 30), random.sample(labels, k=random.randint(1, len(labels)))
        wanted, answered = random.choices(known, k=n), random.choices(labels if seed % 2 else known, k=n)
        f1, accuracy = f1_score(wanted, answered, average="macro", zero_division=0), accuracy_score(wanted, answered)
        for pairs in (list(zip(answered, wanted)), [((a,), (w,)) for a, w in zip(answered, wanted)]):
            assert value("f1", pairs) == SAME(f1, rel=1e-12, abs=1e-12)
            assert value("accuracy", pairs) == accuracy
            assert value("f1", pairs) < 1 or accuracy == 1


def test_several_classes(cases: range) -> None:
    from sklearn.metrics import accuracy_score, f1_score
    from sklearn.preprocessing import MultiLabelBinarizer

    for seed in cases:
        random = Random(seed)
        sides = [[tuple(random.sample("abCc", k=random.randint(0, 3))) for _ in range(random.randint(2, 20))]]
        sides.append([tuple(random.sample("abCc", k=random.randint(0, 3))) for _ in sides[0]])
        if not any(x for side in sides for x in side):
            continue
        columns = MultiLabelBinarizer().fit(sides[0] + sides[1])
        wanted, answered = (columns.transform(x) for x in sides)
        pairs = list(zip(sides[1], sides[0]))
        assert value("f1", pairs) == SAME(f1_score(wanted, answered, average="macro", zero_division=0), rel=1e-12)
        assert value("accuracy", pairs) == SAME(accuracy_score(wanted, answered), rel=1e-12)


def test_two_classes_that_differ_in_case() -> None:
    """F1 = 1 implies accuracy = 1, and so does an exact match over a closed set of answers."""
    pairs = list(zip(["US", "us", "us", "us"] * 3, ["US", "US", "us", "us"] * 3))
    assert value("accuracy", pairs) == value("exact_match", pairs) == 0.75
    assert value("f1", pairs) == SAME((2 / 3 + 4 / 5) / 2)
    one_sided = [("a", "a"), ("b", "a"), ("c", "a"), ("b", "b")]
    assert value("f1", one_sided) == SAME((0.5 + 2 / 3 + 0) / 3)


def test_entities(cases: range) -> None:
    from seqeval.metrics import f1_score, precision_score, recall_score

    tags = ["O", "B-人", "I-人", "B-LOC", "I-LOC", "E-LOC", "S-人", "I-loc"]
    judges = {"entity_f1": f1_score, "entity_precision": precision_score, "entity_recall": recall_score}
    for seed in cases:
        random = Random(seed)
        lengths = [random.randint(1, 12) for _ in range(random.randint(1, 8))]
        wanted, answered = ([random.choices(tags, k=n) for n in lengths] for _ in range(2))
        answered = [w if random.random() < 0.5 else a for w, a in zip(wanted, answered)]
        for name, judge in judges.items():
            measured = value(name, list(zip(answered, wanted)))
            assert np.nan_to_num(measured) == SAME(judge(wanted, answered, zero_division=0), rel=1e-12)


LABELS = {
    "latin": ["US", "us", "naïve", "Zürich", "x", "1.0"],
    "han": ["人工智能", "文学", "电影", "科学", "体育", "是"],
    "kana": ["ネコ", "ねこ", "イヌ", "とり", "うし", "さかな"],
    "thai": ["แมว", "หมา", "นก", "ปลา", "วัว", "ไก่"],
    "devanagari": ["हाँ", "नहीं", "शायद", "हिन्दी", "अंग्रेज़ी", "अन्य"],
    "arabic": ["نعم", "لا", "ربما", "قطة", "كلب", "آخر"],
}


@pytest.mark.parametrize("script", SCRIPTS)
def test_precision_recall_f1(script: str, cases: range) -> None:
    """One class a row, as texts and as classes; several; micro, macro and weighted, by scikit-learn."""
    from sklearn.metrics import precision_recall_fscore_support
    from sklearn.preprocessing import MultiLabelBinarizer

    for seed in cases:
        random = Random(seed)
        n, known = random.randint(1, 30), random.sample(LABELS[script], k=random.randint(2 - seed % 2, 6))
        if seed % 2:
            wanted, answered = random.choices(known, k=n), random.choices(LABELS[script], k=n)
            sides, pairs = (wanted, answered), list(zip(answered, wanted))
        else:
            rows = [[tuple(random.sample(known, k=random.randint(0, len(known)))) for _ in range(n)] for _ in range(2)]
            rows[0][0], rows[1][0] = tuple(known), tuple(known[:1])
            columns = MultiLabelBinarizer().fit(rows[0] + rows[1])
            sides, pairs = tuple(columns.transform(x) for x in rows), list(zip(rows[1], rows[0]))
        for average in ("micro", "macro", "weighted"):
            judged = precision_recall_fscore_support(*sides, average=average, zero_division=0)
            for name, theirs in zip(("precision", "recall", "f1"), judged):
                assert value(f"{name}_{average}", pairs) == SAME(theirs, rel=1e-12, abs=1e-12), (name, average)


@pytest.mark.parametrize("script", SCRIPTS)
def test_probabilities(script: str, cases: range) -> None:
    """AUROC, average precision and calibration, with ties, of two to six classes, and where several may apply."""
    from sklearn.calibration import calibration_curve
    from sklearn.metrics import average_precision_score, roc_auc_score

    compared = 0
    for seed in cases:
        random = np.random.default_rng(seed)
        n, several = int(random.integers(2, 40)), seed % 3 == 0
        labels = LABELS[script][: int(random.integers(2, 7))]
        p = random.random((n, len(labels)))
        p = p.round(1) if seed % 2 else p
        p = p if several else (p + 0.05) / (p + 0.05).sum(1, keepdims=True)
        applies = random.random((n, len(labels))) < 0.4
        if not several:
            applies = np.eye(len(labels), dtype=bool)[random.integers(0, len(labels), n)]
        rows = [(dict(zip(labels, q)), tuple(x for x, y in zip(labels, row) if y)) for q, row in zip(p.tolist(), applies)]
        scored = [k for k in range(len(labels)) if 0 < applies[:, k].sum() < n]
        if scored:
            compared += 1
            theirs = roc_auc_score(applies[:, scored], p[:, scored], average="macro")
            assert value("auroc", rows) == SAME(theirs, rel=1e-12, abs=1e-12)
            theirs = average_precision_score(applies[:, scored], p[:, scored], average="macro")
            assert value("average_precision", rows) == SAME(theirs, rel=1e-12, abs=1e-12)
        confidence, right = (p.ravel(), applies.ravel()) if several else (p.max(1), applies[np.arange(n), p.argmax(1)])
        share, mean = calibration_curve(right, confidence, n_bins=15)
        weights = np.bincount(np.searchsorted(np.linspace(0, 1, 16)[1:-1], confidence), minlength=15)
        theirs = float(np.abs(share - mean) @ weights[weights > 0]) / len(right)
        assert value("ece", rows) == SAME(theirs, rel=1e-9, abs=1e-12)
    assert compared > len(cases) / 2


def test_rankings(cases: range) -> None:
    """Random scores of documents, several of which are relevant."""
    from sklearn.metrics import average_precision_score, ndcg_score

    for seed in cases:
        random = np.random.default_rng(seed)
        documents = int(random.integers(2, 40))
        scores, relevant = random.random(documents), random.random(documents) < 0.2
        relevant[int(random.integers(documents))] = True
        ranks = (1 + np.flatnonzero(relevant[np.argsort(-scores)])).tolist()
        assert value("map", [(ranks, documents)]) == SAME(average_precision_score(relevant, scores), rel=1e-12)
        theirs = ndcg_score(relevant[None].astype(float), scores[None], k=10)
        assert value("ndcg_at_10", [(ranks, documents)]) == SAME(theirs, rel=1e-12)


# -- numbers ----------------------------------------------------------------------------------------------------------


def test_numbers(cases: range) -> None:
    from scipy.stats import pearsonr, spearmanr
    from sklearn.metrics import mean_absolute_error, mean_squared_error

    for seed in cases:
        random = np.random.default_rng(seed)
        a, b = (random.integers(0, 9, 20).astype(float) + (random.random(20) if seed % 2 else 0) for _ in range(2))
        pairs = [((x,), (y,)) for x, y in zip(a.tolist(), b.tolist())]
        judges = {"mae": mean_absolute_error(b, a), "mse": mean_squared_error(b, a)}
        judges |= {"pearson": pearsonr(a, b)[0], "spearman": spearmanr(a, b)[0]}
        for name, judged in judges.items():
            assert value(name, pairs) == SAME(judged, rel=1e-10, abs=1e-12), name


# -- texts ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("script", [x for x in SCRIPTS if x not in ("han", "kana")])
def test_squad(script: str, cases: range) -> None:
    """Where no Han character is in the reference (CMRC's rules hold there)."""
    for seed in cases:
        random = Random(seed)
        golds = [[text(random, script, 4) for _ in range(random.randint(0, 3))] for _ in range(random.randint(1, 6))]
        answers = [random.choice([*gold, text(random, script, 4), "", "the", "."]) for gold in golds]
        pairs = list(zip(answers, golds))
        exact, f1 = squad_script.raw_scores(golds, answers)
        assert value("squad_em", pairs) == SAME(exact, rel=1e-12)
        assert value("squad_f1", pairs) == SAME(f1, rel=1e-12, abs=1e-12)


@pytest.mark.parametrize("script", SCRIPTS)
def test_bleu_and_chrf(script: str, cases: range) -> None:
    import sacrebleu

    tokenize = "zh" if script == "han" else "13a"
    for seed in cases:
        pairs = text_pairs(Random(seed), script)
        answers, references = [a for a, _ in pairs], [[b for _, b in pairs]]
        chinese = "zh" if script == "kana" and any("東" in b or "行" in b for _, b in pairs) else tokenize
        chinese = "13a" if script == "han" and not any("\u4e00" <= x <= "\u9fff" for _, b in pairs for x in b) else chinese
        assert value("bleu", pairs) == SAME(sacrebleu.corpus_bleu(answers, references, tokenize=chinese).score, rel=1e-12)
        assert value("chrf", pairs) == SAME(sacrebleu.corpus_chrf(answers, references).score, rel=1e-12)


class Words:
    """Our words as a tokenizer of rouge-score's."""

    def tokenize(self, text: str) -> list[str]:
        return split_words(text)


@pytest.mark.parametrize("script", [*SCRIPTS, "ascii"])
def test_rouge(script: str, cases: range) -> None:
    """On ASCII text with rouge-score's own words, elsewhere with ours."""
    RougeScorer = pytest.importorskip("rouge_score.rouge_scorer").RougeScorer

    scorer = RougeScorer(["rouge1", "rouge2", "rougeL"], tokenizer=None if script == "ascii" else Words())
    for seed in cases:
        pairs = text_pairs(Random(seed), "latin" if script == "ascii" else script)
        if script == "ascii":
            pairs = [(a.encode("ascii", "ignore").decode(), b.encode("ascii", "ignore").decode()) for a, b in pairs]
        judged = [scorer.score(reference, answer) for answer, reference in pairs]
        for name, key in {"rouge_1": "rouge1", "rouge_2": "rouge2", "rouge_l": "rougeL"}.items():
            theirs = [x[key].fmeasure for x in judged]
            assert value(name, pairs) == SAME(sum(theirs) / len(theirs), rel=1e-12, abs=1e-12), name


def test_words_of_rouge() -> None:
    """Marks belong to their letter; scripts without spaces have a word for each character."""
    assert split_words("हिन्दी में") == ["हिन्दी", "में"]
    assert split_words("مُرحبا، بالعالم") == ["مُرحبا", "بالعالم"]
    assert split_words("น้ำ") == ["น้", "ำ"] and split_words("ねこが2匹") == ["ね", "こ", "が", "2", "匹"]
    assert split_words("naïve_x café") == ["naïve", "x", "café"]


@pytest.mark.parametrize("script", SCRIPTS)
def test_error_rates(script: str, cases: range) -> None:
    """jiwer counts what our normalisation leaves."""
    import jiwer

    split: list[tuple[str, Callable[[list[str], list[str]], float], Callable[[str], str]]] = [
        ("wer", lambda a, b: jiwer.wer(b, a), lambda x: " ".join(asr_words(x))),
        ("cer", lambda a, b: jiwer.cer(b, a), normalize_text),
    ]
    for seed in cases:
        pairs = [(a, b) for a, b in text_pairs(Random(seed), script) if normalize_text(b)]
        for name, judge, units in split if pairs else ():
            judged = judge([units(a) for a, _ in pairs], [units(b) for _, b in pairs])
            assert value(name, pairs) == SAME(judged, rel=1e-12), name


@pytest.mark.parametrize("script", SCRIPTS)
def test_ngrams_and_lengths(script: str, cases: range) -> None:
    """NLTK's n-grams of our words."""
    ngrams = pytest.importorskip("nltk.util").ngrams

    for seed in cases:
        pairs = text_pairs(Random(seed), script)
        words = [split_words(a) for a, _ in pairs]
        for n in (1, 2):
            every = [x for row in words for x in ngrams(row, n)]
            assert value(f"distinct_{n}", pairs) == SAME(len(set(every)) / len(every) if every else 0.0, rel=1e-12)
        rows = [list(ngrams(row, 4)) for row in words]
        repeated = [1 - len(set(x)) / len(x) if x else 0.0 for x in rows]
        assert value("repetition", pairs) == SAME(sum(repeated) / len(repeated), rel=1e-12, abs=1e-12)
        assert value("answer_length", pairs) == SAME(sum(map(len, words)) / len(words), rel=1e-12)


@pytest.mark.parametrize("script", SCRIPTS)
def test_bits_per_byte(script: str, cases: range) -> None:
    """lm-evaluation-harness: -sum(loglikelihoods) / sum(bytes) / ln 2 (lm_eval/api/metrics.py, bits_per_byte)."""
    import math

    for seed in cases:
        random = Random(seed)
        texts = [text(random, script) or "x" for _ in range(random.randint(1, 6))]
        items = [(-random.expovariate(0.02), len(x.encode("utf-8"))) for x in texts]
        log_likelihoods, num_bytes = zip(*items)
        theirs = -(sum(log_likelihoods) / sum(num_bytes)) / math.log(2)
        assert value("bits_per_byte", [(-a, float(b)) for a, b in items]) == SAME(theirs, rel=1e-12)


@pytest.mark.parametrize("script", SCRIPTS)
def test_json(script: str, cases: range) -> None:
    """jsonschema's own verdict on values, and json's on texts that were damaged."""
    import json

    import jsonschema

    schema = {"type": "object", "required": ["a"], "properties": {"a": {"type": ["string", "array"], "maxItems": 2}}}
    valid = satisfied = 0
    for seed in cases:
        random = Random(seed)
        words = WORDS[script]
        content = random.choice([random.choice(words), random.sample(words, k=random.randint(0, 4)), 1, None])
        answer = json.dumps({random.choice("aab"): content}, ensure_ascii=bool(seed % 2))
        if random.random() < 0.3:
            at = random.randrange(len(answer))
            answer = answer[:at] + answer[at + 1 :]
        try:
            parsed, is_json = json.loads(answer), True
        except ValueError:
            parsed, is_json = None, False
        satisfies = is_json and jsonschema.Draft202012Validator(schema).is_valid(parsed)
        valid, satisfied = valid + is_json, satisfied + satisfies
        assert value("json_valid", [(answer, "")]) == is_json
        assert value("json_schema_valid", [(answer, json.dumps(schema))]) == satisfies
    assert 0 < satisfied < valid < len(cases)
