"""Extractive question answering: labels, loss by definition, windows, spans in characters, SQuAD's rules, whole runs."""

import json
import random
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console

from support.laws import attached
from support.models import make_tokenizer, make_wordpiece_tokenizer, save_model
from support.rows import batch_of, question_rows, write_jsonl
from weitiao.core.batch import IGNORE
from weitiao.core.example import ExtractiveQA
from weitiao.core.messages import Message
from weitiao.core.metric import Metric
from weitiao.core.recipe_sections import Source
from weitiao.core.registry import create
from weitiao.core.reporter import Reporter
from weitiao.data.mapping import find_mapping
from weitiao.data.read import read_sources, reader_of
from weitiao.data.split import split
from weitiao.data.tokenization import ChatProcessor
from weitiao.evaluate.squad import exact_match, word_f1
from weitiao.objective.objectives.question_answering import QuestionAnswering
from weitiao.objective.spans import Answer, RowSpans
from weitiao.pipeline.evaluate import evaluate
from weitiao.pipeline.inference import open_model
from weitiao.pipeline.predict import predict_file

DESK = Reporter(Console(quiet=True))
TEXT = "the quick brown fox jumps over the lazy dog and asks what time it is in paris 你好 世界"


def processor_of(family: str) -> ChatProcessor:
    return ChatProcessor.make(make_wordpiece_tokenizer() if family == "bert" else make_tokenizer())


def question(answer: str = "the lazy dog", context: str = TEXT) -> ExtractiveQA:
    return ExtractiveQA("over what", context, ((context.index(answer), answer),) if answer else ())


def ready(objective: QuestionAnswering, found: list[ExtractiveQA], family: str) -> tuple[Any, Any, Any]:
    """(the fitted objective, a tiny model with its head, all rows as one batch)."""
    objective = objective.fit(found)
    batch = batch_of([row for x in found for row in objective.rows(x, processor_of(family))])
    model = attached("lora", family)
    torch.manual_seed(0)
    model.heads = torch.nn.ModuleDict(objective.heads(32))
    model.heads["span"].weight.data.mul_(50)
    return objective, model, batch


@pytest.mark.parametrize("family", ["bert", "llama"])
@pytest.mark.parametrize("answer", ["the lazy dog", "paris", "世界", "the", TEXT])
def test_targets_hold_context_and_answer(family: str, answer: str) -> None:
    processor = processor_of(family)
    (row,) = QuestionAnswering().rows(question(answer), processor)
    ids = list(row["input_ids"])
    text, offsets = processor.encode_with_offsets(TEXT)
    position, num_context, number = row["targets"]["context"]
    assert ids[position : position + num_context] == text and number == 0 and set(row["labels"]) == {IGNORE}
    first, last = row["targets"]["answer"]
    assert TEXT[offsets[first][0] : offsets[last][1]].strip() == answer and "notes" not in row
    (none,) = QuestionAnswering(unanswerable=True).rows(question(""), processor)
    assert none["targets"] == {"context": [position, num_context, 0], "answer": [-1, -1]}


@pytest.mark.parametrize("family", ["bert", "llama"])
def test_answer_inside_token_widened(family: str) -> None:
    processor = processor_of(family)
    (row,) = QuestionAnswering().rows(question("uick brown fo"), processor)
    piece = QuestionAnswering().preview(row, [], processor)[-1]
    assert row["notes"] == (Message("answers widened to whole tokens"),) and "uick brown fo" in piece[1]


@pytest.mark.parametrize("family", ["bert", "llama"])
def test_loss_equals_two_cross_entropies(family: str) -> None:
    """Over the text's tokens and [CLS] (of a decoder, the end token), each row by itself."""
    found = [question(), question("paris"), question(""), question("世界", "你好 世界")]
    objective, model, batch = ready(QuestionAnswering(), found, family)
    z, by_hand = model.heads["span"](model.hidden(batch)), 0.0
    for a, b, source in zip(batch.bounds, batch.bounds[1:], batch.row_ids):
        many = len(processor_of(family).encode_with_offsets(found[source].context)[0])
        last = b - 1  # behind the text stands one token
        text = z[last - many : last]
        none = z[a] if family == "bert" else z[last]
        answer = batch.targets["answer"][list(batch.row_ids).index(source)].tolist()
        for k in (0, 1):
            p = torch.cat([none[None, k], text[:, k]]).log_softmax(0)
            by_hand -= p[1 + answer[k]]  # -1 is "no answer"
    assert torch.allclose(objective.loss(model, batch).totals["question_answering"], by_hand, rtol=1e-5)
    assert objective.counts(batch) == {"question_answering": 4.0} and objective.unanswerable is True


@pytest.mark.parametrize("family", ["bert", "llama"])
def test_best_span_equals_brute_force(family: str) -> None:
    found = [question(), question("世界", "你好 世界")]
    objective, model, batch = ready(QuestionAnswering(max_answer_length=3), found, family)
    with torch.no_grad():
        said = dict(zip(batch.row_ids, objective.predict(model, batch)))
        z = dict(zip(batch.row_ids, objective._span_scores(model, batch)))
    for i, spans in said.items():
        s, e = z[i][1:, 0], z[i][1:, 1]
        every = {(float(s[a] + e[b]), a, b) for a in range(len(s)) for b in range(a, min(a + 3, len(s)))}
        assert [x[1:] for x in spans.spans] == [x[1:] for x in sorted(every, reverse=True)[:20]]
        assert spans.no_answer == pytest.approx(float(z[i][0].sum()))
        whole = objective.merge_windows([spans], found[i], processor_of(family))
        assert found[i].context[whole.start : whole.end] == whole.text != ""


def test_windows_repeat_question_and_cover_context() -> None:
    objective, processor = QuestionAnswering(doc_stride=8), processor_of("bert")
    example = question("paris", f"{TEXT} {TEXT.replace('paris', 'boxes')}")
    (row,) = objective.rows(example, processor)
    ids, (first, num_context, _) = list(row["input_ids"]), row["targets"]["context"]
    made = objective.windows(row, 24)
    assert len(made) > 2 and all(len(x["input_ids"]) == 24 and x["input_ids"][:first] == ids[:first] for x in made)
    contexts = [part["targets"]["context"] for part in made]
    numbers = [list(range(number, number + num)) for _, num, number in contexts]
    assert sorted({n for part in numbers for n in part}) == list(range(num_context))
    assert all(len(set(a) & set(b)) >= 8 for a, b in zip(numbers, numbers[1:]))
    for part, inside in zip(made, numbers):
        whole, (a, b) = row["targets"]["answer"], part["targets"]["answer"]
        assert [inside[a], inside[b]] == whole if a >= 0 else not {*whole} <= {*inside}
    assert {part["targets"]["answer"][0] >= 0 for part in made} == {True, False}
    kept, lost = objective.cut(row, 24)
    assert kept == made[0] and [*kept["input_ids"][first:-1], *lost] == ids[first:-1]
    with pytest.raises(ValueError, match="take 5 tokens, so max_length 10 has no room for the context"):
        objective.windows(row, 10)


def test_windows_merged_in_characters() -> None:
    """The best span of any window; "no answer" only where every window says so."""
    objective, processor = QuestionAnswering(unanswerable=True), processor_of("bert")
    places = processor.encode_with_offsets(TEXT)[1]
    said: Any = [
        RowSpans([(1.0, 0, 1), (3.0, 6, 8)], no_answer=9.0),
        RowSpans([(2.5, 6, 8), (2.0, 9, 9)], no_answer=2.0),
    ]
    found = objective.merge_windows(said, question(), processor)
    assert (found.start, found.end) == (places[6][0], places[8][1])
    assert found.text == TEXT[found.start : found.end] == "the lazy dog" and found.no_answer == -1.0
    e = [torch.tensor(x).exp() for x in (3.0, 2.0, 1.0, 2.0)]
    assert found.probability == pytest.approx(float(e[0] / sum(e)))
    assert objective.merge_windows([said[0]], question(), processor).text == ""
    patient = QuestionAnswering(unanswerable=True, threshold=7.0)
    assert patient.merge_windows([said[0]], question(), processor).text == "the lazy dog"
    sure = QuestionAnswering(unanswerable=False).merge_windows([said[0]], question(), processor)
    assert sure.text == "the lazy dog" and sure.probability == pytest.approx(float(e[0] / (e[0] + e[2])))


def test_no_answer_threshold_chosen_on_validation() -> None:
    """As good as the best of all thresholds, tried one by one; where all have an answer nothing is chosen."""
    dice = random.Random(0)
    for many in (1, 2, 7, 40):
        rows = []
        for i in range(many):
            right = ((0, "fox"),) * dice.choice((0, 1))
            margin = round(dice.gauss(-1.0 if right else 1.0, 2.0), 1)
            said = Answer("", 0, 0, 1.0, no_answer=margin, best=dice.choice(("fox", "dog")))
            rows.append((said, ExtractiveQA("who", f"fox {i}", right)))

        def hits(line: float, rows: list = rows) -> int:
            said = ["" if x.no_answer > line else x.best for x, _ in rows]
            return sum(a in [w for _, w in x.answers] if x.answers else a == "" for a, (_, x) in zip(said, rows))

        objective, told = QuestionAnswering(unanswerable=True).calibrate(lambda task, rows=rows: rows)
        assert hits(objective.threshold) == max(hits(x / 20) for x in range(-400, 400)) and len(told) == 1
    tied = [(-1.0, True), (0.5, True), (0.5, False), (0.5, False), (2.0, False)]  # no threshold parts those in the middle
    rows = [
        (Answer("", 0, 0, 1.0, no_answer=x, best="fox"), ExtractiveQA("who", "fox", ((0, "fox"),) * right))
        for x, right in tied
    ]
    objective, _ = QuestionAnswering(unanswerable=True).calibrate(lambda task: rows)
    assert -1.0 < objective.threshold < 0.5
    assert QuestionAnswering(unanswerable=True).calibrate(lambda task: [])[0].threshold == "validation"
    untouched = (QuestionAnswering(unanswerable=False), QuestionAnswering(unanswerable=True, threshold=0.5))
    assert all(x.calibrate(lambda task: pytest.fail("nobody needs to be asked")) == (x, []) for x in untouched)


# -- files ------------------------------------------------------------------------------------------------------------


def squad(path: Path, **more: Any) -> Path:
    at = TEXT.index("paris")
    qas = [
        {"id": "a", "question": "where", "answers": [{"text": "paris", "answer_start": at}], "is_impossible": False},
        {"id": "ü", "question": "who", "answers": [], "is_impossible": True, "plausible_answers": [{"text": "fox"}]},
    ]
    bad = {"id": "c", "question": "where", "answers": [{"text": "paris", "answer_start": 2}]}
    paragraphs = [{"context": TEXT, "qas": qas}, {"context": "你好 paris", "qas": [bad, "nonsense"]}, {"qas": [bad]}]
    whole = {"version": "v2.0", "data": [{"title": "Fox", "paragraphs": paragraphs}, {"title": "Empty"}], **more}
    path.write_text(json.dumps(whole, ensure_ascii=False), encoding="utf-8")
    return path


def test_squad_json_rows(tmp_path: Path) -> None:
    file = squad(tmp_path / "train-v2.0.json")
    reading = read_sources((Source(path=str(file)),), QuestionAnswering(), 1.0)
    assert [x.example.answers for x in reading.examples] == [((TEXT.index("paris"), "paris"),), ()]
    raw = file.read_bytes()
    assert [raw[x.where.offset :][:9] for x in reading.examples] == [b'"id": "a"', '"id": "ü'.encode()]
    assert [x.where.line for x in reading.bad] == [3, 4, 5, 6]
    assert str(reading.bad[0].reason) == "the answer 'paris' is not at character 2 of the context, but at 3"
    assert "does not have SQuAD's form" in str(reading.bad[1].reason)
    assert "'context' is empty (null)" in str(reading.bad[2].reason)


def test_other_json_not_squad(tmp_path: Path) -> None:
    for words, reader in (('[{"question": "a"}]', "jsonl"), ('{"question": "a"}\n', "jsonl"), ('{"data": 1}', "jsonl")):
        (tmp_path / "x.json").write_text(words)
        assert reader_of(tmp_path / "x.json", Source(path="x.json")) == reader
    assert reader_of(squad(tmp_path / "x.json"), Source(path="x.json")) == "squad"


@pytest.mark.parametrize(
    ("row", "answers"),
    [
        ({"answers": {"text": ["paris", "is in"], "answer_start": [72, 66]}}, ((72, "paris"), (66, "is in"))),
        ({"answers": [{"text": "paris", "start": 72}, {"text": "paris", "answer_start": 72}]}, ((72, "paris"),)),
        ({"answers": {"text": [], "answer_start": []}}, ()),
        ({"answers": []}, ()),
        ({"answer": "paris"}, ((72, "paris"),)),
        ({"answer": "the", "start": "31"}, ((31, "the"),)),
        ({"answer": None}, ()),
        ({"answer": "the"}, "occurs 2 times in the context (at 0, 31); choose one with start"),
        ({"answer": "cat"}, "'cat' does not occur in the context"),
        ({"answer": " "}, "the answer is empty; write answers: [] or answer: null"),
        (
            {"answers": [{"text": "paris", "start": 70}]},
            "is not at character 70 of the context, but at 72",
        ),
        (
            {"answers": [{"text": "paris", "start": 999}]},
            "is not at character 999 of the context, but at 72",
        ),
        ({"answers": [{"text": "paris", "start": "x"}]}, "the answer's start is 'x', not a number"),
        ({"answers": {"text": ["paris"], "answer_start": []}}, "has 1 texts but 0 starts"),
        ({"answers": "paris"}, "is neither"),
        ({"answers": [], "question": " "}, "column 'question' is empty"),
        ({"answers": [], "context": ""}, "column 'context' is empty"),
    ],
)
def test_answers_checked_against_context(row: dict, answers: Any) -> None:
    record = {"question": "where", "context": TEXT, **row}
    mapping = find_mapping([record], ExtractiveQA, None, "x.jsonl")
    if isinstance(answers, str):
        with pytest.raises(ValueError) as refused:
            mapping.make(record)
        assert answers in str(refused.value)
    else:
        assert mapping.make(record).answers == answers


def test_split_keeps_context_on_one_side(tmp_path: Path) -> None:
    rows = [{"question": f"what {i}", "context": f"text {i % 20}", "answers": []} for i in range(200)]
    reading = read_sources((Source(path=str(write_jsonl(tmp_path / "rows.jsonl", rows))),), QuestionAnswering(), 0.0)
    train, held, how = split(reading.examples, 0.2)
    assert str(how).startswith("by the hash of the context") and len(held) >= 10
    assert not {x.example.context for x in train} & {x.example.context for x in held}


# -- SQuAD's rules ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("said", "right", "em", "f1"),
    [
        ("The Lazy Dog.", ("lazy dog",), 1.0, 1.0),
        ("the dog", ("a lazy dog", "cat"), 0.0, 2 / 3),
        ("dog dog", ("dog",), 0.0, 2 / 3),
        ("", (), 1.0, 1.0),
        ("dog", (), 0.0, 0.0),
        ("", ("dog",), 0.0, 0.0),
        ("《你好》", ("你好",), 1.0, 1.0),
        ("你好 GPT-4", ("你好gpt4",), 1.0, 1.0),
        ("好的世界", ("世界好",), 0.0, 4 / 7),
    ],
)
def test_squad_scores(said: str, right: tuple[str, ...], em: float, f1: float) -> None:
    pairs = [(said, right)] * 3
    for name, wanted in (("squad_em", em), ("squad_f1", f1)):
        score = create(Metric, name).score(pairs)
        assert score.value == pytest.approx(wanted) and score.n == 3 and score.low - 1e-9 <= wanted <= score.high + 1e-9
    assert exact_match("a", "b") == word_f1("x", "b") == 0.0


# -- whole trips ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", ["bert", "llama"])
def test_trains_and_reopens(train_tiny: Any, tmp_path: Path, family: str) -> None:
    rows = question_rows(60)
    run = train_tiny(
        base=str(save_model(tmp_path / "base", family)),
        data=[{"path": str(write_jsonl(tmp_path / "rows.jsonl", rows))}],
        max_length=24,
        objective={"name": "question_answering", "head_learning_rate": 1e-2, "doc_stride": 12},
        method={"name": "full"},
        train={"steps": 120, "learning_rate": 3e-3, "evaluate_every": 40, "best_metric": "squad_f1"},
        evaluate={"metrics": "auto", "samples": 3},
    )
    scores = run.read("scores.json")
    assert scores["before"]["squad_em"]["value"] < 0.4 < 0.7 < scores["after"]["squad_em"]["value"]
    again = evaluate(str(run.folder), DESK)
    after = {name: x["value"] for name, x in scores["after"].items()}
    assert {name: again[name].value for name in after} == pytest.approx(after)
    opened = open_model(str(run.folder))
    asked = [{"id": i, "question": row["question"], "context": row["context"]} for i, row in enumerate(rows)]
    asked.insert(3, {"id": -1, "question": "what asks"})
    asked.append({"id": 60, "question": "what " * 80, "context": "paris"})
    file = write_jsonl(tmp_path / "new.jsonl", asked)
    done = predict_file(opened, str(file), str(tmp_path / "out.jsonl"), DESK)
    assert (done.rows, done.bad, done.truncated) == (60, 2, 0)
    said = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert [x["id"] for x in said] == list(range(60))
    right = 0
    for line, row in zip(said, rows):
        if line["predicted"]:
            assert row["context"][line["predicted_start"] : line["predicted_end"]] == line["predicted"]
        right += line["predicted"] in (row["answers"]["text"] or [""])
        above = line["no_answer_score"] > opened.objective.threshold
        assert 0 < line["probability"] <= 1 and above == (line["predicted"] == "")
    assert right > 42
    reasons = [json.loads(x)["reason"] for x in (tmp_path / "out.jsonl.bad_rows.jsonl").read_text().splitlines()]
    assert "'context' is missing" in reasons[0] and "no room for the context" in reasons[1]
    if family == "bert":
        assert run.read("resolved.json")["data"]["split"] > 0
