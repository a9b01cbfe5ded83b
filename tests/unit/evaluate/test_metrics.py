"""Metrics: values worked out by hand or by the library whose definition they follow."""

import ast
import math
from pathlib import Path
from statistics import mean
from typing import Any

import pytest
from sklearn.metrics import f1_score

from support.sandbox import has_sandbox
from weitiao.core.errors import DataError
from weitiao.core.metric import Metric
from weitiao.core.registry import create, names
from weitiao.core.score import Score


def score(name: str, pairs: list) -> Score:
    metric: Any = create(Metric, name)
    return metric.score(pairs)


@pytest.mark.parametrize("name", names(Metric))
def test_no_rows_no_score(name: str) -> None:
    assert score(name, []).n == 0


def test_loss_and_perplexity() -> None:
    pairs = [(6.0, 3.0), (4.0, 2.0), (2.0, 5.0)]
    assert score("loss", pairs).value == pytest.approx(1.2)
    assert score("perplexity", pairs).value == pytest.approx(math.exp(1.2))
    assert score("loss", pairs).n == 3 and not score("perplexity", pairs).higher_is_better


def test_accuracy_exact_choices() -> None:
    assert score("accuracy", [("a", "a"), ("b", "a"), ("A", "a"), ("c", "c")]).value == 0.5


def test_exact_match_normalization() -> None:
    pairs = [("Paris ", "paris"), ("ＰＡＲＩＳ", "paris"), ("new\n york", "New York"), ("paris.", "paris"), ("", "paris")]
    assert score("exact_match", pairs).value == pytest.approx(3 / 5)


def test_macro_f1_equal_class_weights() -> None:
    # a: p = 2/3, r = 2/3; b: p = 1/1, r = 1/2; c: never answered; x, y: answered, and never right
    pairs = [("a", "a"), ("a", "a"), ("x", "a"), ("a", "b"), ("b", "b"), ("y", "c")]
    f1 = score("f1", pairs)
    assert f1.value == pytest.approx((2 / 3 + 2 / 3 + 0) / 5)
    assert "the mean over 5 classes; 2 of them only the model answers" in str(f1.notes[0])


def test_macro_f1_equals_scikit_learn() -> None:
    said, wanted = list("aabbccabcab"), list("abbbcaabccc")
    theirs = f1_score(wanted, said, average="macro", zero_division=0)
    assert score("f1", list(zip(said, wanted))).value == pytest.approx(theirs)


SUMS, RANKS, NUMBERS = [(1.0, 2.0), (3.0, 2.0)], [(1, 20), (12, 20)], [((1.0,), (2.0,)), ((3.0,), (2.5,))]
TAGS, WORDS = [(("B-a", "O"), ("B-a", "O")), (("O", "O"), ("O", "B-a"))], [("a", "a"), ("b", "a")]
PROBABILITIES = [({"a": 0.7, "b": 0.3}, ("a",)), ({"a": 0.6, "b": 0.4}, ("b",))]
KINDS = {
    **dict.fromkeys(("loss", "perplexity", "masked_accuracy"), SUMS),
    **dict.fromkeys(("mrr", "recall_at_10"), RANKS),
    **dict.fromkeys(("mae", "mse", "pearson", "spearman"), NUMBERS),
    **dict.fromkeys(
        ("auroc", "average_precision", "ece"), [({"a": 0.7, "b": 0.3}, ("a",)), ({"a": 0.6, "b": 0.4}, ("b",))]
    ),
    **dict.fromkeys(("ndcg_at_10", "map"), [((1, 3), 20), ((12,), 20)]),
    "bits_per_byte": SUMS,
    "json_schema_valid": [("1", '{"type": "integer"}'), ("x", '{"type": "integer"}')],
    "code_pass": [("x = 1", "assert x == 1"), ("x = 2", "assert x == 1")],
    "refusal_recall": [("Not mine.", "not mine."), ("blue", "not mine.")],
    **dict.fromkeys(("entity_f1", "entity_precision", "entity_recall"), TAGS),
}


def test_every_score_has_name_and_interval() -> None:
    for name in set(names(Metric)) - {"over_refusal"} - (set() if has_sandbox() else {"code_pass"}):
        made = score(name, KINDS.get(name, WORDS) * 5)
        assert (made.name, made.n) == (name, 10) and made.low <= made.value <= made.high and made.interval


def test_same_scores_over_clusters_have_wider_intervals_where_rows_agree() -> None:
    """Five rows of each group are copies of one another: the interval is that of the groups, at least."""
    for name in set(names(Metric)) - {"code_pass", "bleu", "chrf", "over_refusal"}:
        pairs = [x for x in KINDS.get(name, WORDS) * 12 for _ in range(5)]
        groups = [i // 5 for i in range(len(pairs))]
        metric: Any = create(Metric, name)
        alone, grouped = metric.score(pairs), metric.score(pairs, groups)
        assert (grouped.value, grouped.n, grouped.clusters) == (alone.value, 120, 24), name
        if alone.high - alone.low > 1e-9 and "distinct" not in name:
            assert grouped.high - grouped.low > 1.5 * (alone.high - alone.low), name


@pytest.mark.parametrize("name", ["auroc", "average_precision"])
def test_one_class_has_no_auroc(name: str) -> None:
    made = score(name, [({"a": 0.7, "b": 0.3}, ("a",)), ({"a": 0.6, "b": 0.4}, ("a",))])
    assert made.n == 0 and math.isnan(made.value)
    assert str(made.notes[0]) == f"{name} is undefined: all 2 rows have the same class"


def test_class_that_no_row_has_is_named() -> None:
    pairs = [({"a": 0.7, "b": 0.2, "c": 0.1}, ("a",)), ({"a": 0.2, "b": 0.7, "c": 0.1}, ("b",))]
    made = score("auroc", pairs)
    assert made.value == 1.0 and "undefined for 1 of 3 classes" in str(made.notes[0]) and "c" in str(made.notes[0])


def test_json_answers() -> None:
    answers = ['{"a": 1}', "[1, 2]", "3", "{'a': 1}", "NaN", "```json\n{}\n```", "", "[" * 10**5]
    assert score("json_valid", [(x, "") for x in answers]).value == 3 / 8
    schema = '{"type": "object", "required": ["a"], "properties": {"a": {"type": "integer"}}}'
    assert score("json_schema_valid", [(x, schema) for x in ['{"a": 1}', '{"a": "1"}', "[]", "{"]]).value == 1 / 4
    with pytest.raises(DataError, match="this is no JSON Schema"):
        score("json_schema_valid", [("1", '{"type": "number of apples"}')])


def test_code_that_compiles() -> None:
    fenced = ["```python\ndef f(x):\n    return x\n```\nIt returns x.", "```python\ndef f(x:\n```", "Sure:\n```py\nx = 1"]
    bare = ["x = 1", "def f(x):", "Here is the code.", "", "# nothing", "x = '\\d'", "\0", "(" * 10**5, "-" * 10**6 + "1"]
    alone = [float(score("code_compiles", [(x, "")]).value) for x in (*fenced, *bare)]
    assert alone == [1, 0, 1, 1, 0, 0, 0, 0, 1, 0, 0, 0]
    files = sorted(Path(ast.__file__).parent.glob("*.py"))[:40]
    texts = [text for x in files for text in (x.read_text("utf-8"), x.read_text("utf-8")[:-40], x.read_text("utf-8") + ")")]
    assert score("code_compiles", [(f"```python\n{x}\n```", "") for x in texts]).value == mean(map(is_python, texts))


def is_python(text: str) -> bool:
    try:
        return bool(ast.parse(text.partition("\n```")[0]).body)
    except SyntaxError:
        return False


def test_a_row_is_judged_by_its_column_once() -> None:
    """What is recorded is (answer, value), and gives the same score without the tests."""
    metric: Any = create(Metric, "json_schema_valid")
    pairs = [("1", '{"type": "integer"}'), ("x", '{"type": "integer"}'), ("2", '{"type": "integer"}')]
    judged = metric.judged(pairs)
    assert judged == [("1", 1.0), ("x", 0.0), ("2", 1.0)] and metric.judged(judged) == judged
    assert metric.score(judged) == metric.score(pairs) and metric.score([("anything", 1.0)]).value == 1.0


def test_refusals_of_questions_out_of_scope_and_in_scope() -> None:
    """Rows with the fixed answer are out of scope. Only that sentence is a refusal, not one like it."""
    no = "Sorry, that is not mine."
    pairs = [(no, no), ("sorry,  that is not mine.", no), ("Sorry, that is not mine. Blue.", no), (no, ""), ("blue", "")]
    pairs += [("Sorry, I cannot.", ""), ("", "")]
    recall, over = score("refusal_recall", pairs), score("over_refusal", pairs)
    assert (recall.value, recall.n, recall.higher_is_better) == (2 / 3, 3, True)
    assert (over.value, over.n, over.higher_is_better) == (1 / 4, 4, False)
    assert recall.interval == over.interval == "wilson" and str(over) == "25.0 % [4.6, 69.9], n = 4"
    grouped: Any = create(Metric, "over_refusal")
    assert grouped.score(pairs, ["a", "a", "a", "b", "b", "b", "c"]).clusters == 2
    assert score("over_refusal", [(no, no)]).n == 0
    with pytest.raises(DataError, match="no row has one"):
        score("refusal_recall", [("blue", "")])


def test_answer_length_is_neither_better_nor_worse() -> None:
    made = score("answer_length", [("a b c", ""), ("你好 world", "")])
    assert made.value == 3.0 and made.higher_is_better is None
