"""Metrics equal the field's reference libraries to the last digit, on random cases in six scripts.

scikit-learn, scipy, seqeval, SQuAD's official script, sacreBLEU, rouge-score and jiwer. Where a library splits only Latin
text into words (rouge-score), both sides are compared on the same words.
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
from weitiao.evaluate.metrics.rouge_l import split_words

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
    real = scores.bootstrapped

    def quick(*args: Any, **settings: Any) -> Any:
        return real(*args, **{**settings, "draws": 2})

    for name in ("metrics.f1", "sacrebleu_score", "regression_stats"):
        monkeypatch.setattr(import_module(f"weitiao.evaluate.{name}"), "bootstrapped", quick)


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
def test_rouge_l(script: str, cases: range) -> None:
    """On ASCII text with rouge-score's own words, elsewhere with ours."""
    RougeScorer = pytest.importorskip("rouge_score.rouge_scorer").RougeScorer

    scorer = RougeScorer(["rougeL"], tokenizer=None if script == "ascii" else Words())
    for seed in cases:
        pairs = text_pairs(Random(seed), "latin" if script == "ascii" else script)
        if script == "ascii":
            pairs = [(a.encode("ascii", "ignore").decode(), b.encode("ascii", "ignore").decode()) for a, b in pairs]
        theirs = [scorer.score(reference, answer)["rougeL"].fmeasure for answer, reference in pairs]
        assert value("rouge_l", pairs) == SAME(sum(theirs) / len(theirs), rel=1e-12, abs=1e-12)


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
