"""Exams: the contract, items that are refused, scores by log-probability and by generation, cache and records."""

import json
from pathlib import Path

import pytest
import torch

from support.models import save_model
from support.runs import finished_run
from weitiao.core.errors import DataError, RecipeError
from weitiao.core.exam import Exam, make_exam, read_exam, shipped_exams
from weitiao.core.option_scores import score_options
from weitiao.core.recipe import Recipe
from weitiao.core.reporter import Reporter
from weitiao.core.run import Run
from weitiao.core.trainable_model import TrainableModel
from weitiao.evaluate.examination import run as exam_run
from weitiao.evaluate.examination.cache import ExamCache
from weitiao.evaluate.examination.continuations import Prompt, encode_prompt
from weitiao.evaluate.examination.items import SourceRow, make_items, prepare
from weitiao.evaluate.examination.run import read_answer, take_exam
from weitiao.pipeline.exam_data import open_exams
from weitiao.pipeline.exams import model_fingerprint, take_exams
from weitiao.pipeline.inference import Model, open_model
from weitiao.pipeline.train import train

YAML = """name: small
data: {path: small.jsonl}
question: "{{ question }}"
options: "{{ options }}"
answer: "{{ answer }}"
"""
ROWS = [
    {"question": "the quick brown fox jumps over the lazy", "options": ["dog", "fox jumps", "time"], "answer": "dog"},
    {"question": "what time is it in", "options": ["paris", "wizards"], "answer": "A"},
    {"question": "今天天气", "options": ["怎么样", "你好世界", "liquid", "boxes"], "answer": 2},
    {"question": "seven wizards quietly mix boxes of", "options": ["liquid", "paris is it"], "answer": "liquid"},
]


def exam_file(folder: Path, *more: str, rows: list[dict] | None = None) -> Path:
    """An exam with its rows beside it."""
    folder.mkdir(parents=True, exist_ok=True)
    lines = (json.dumps(x, ensure_ascii=False) for x in (ROWS if rows is None else rows))
    (folder / "small.jsonl").write_text("\n".join(lines), encoding="utf-8")
    (folder / "small.yaml").write_text(YAML + "".join(f"{x}\n" for x in more), encoding="utf-8")
    return folder / "small.yaml"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Model:
    return open_model(str(save_model(tmp_path_factory.mktemp("base"))), "fp32")


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WEITIAO_HOME", str(tmp_path / "home"))


# -- the contract -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("scorng: generation", "line 6: unknown key 'scorng'. Did you mean 'scoring'?"),
        ("scoring: guess", "line 6: scoring: expected one of log_probability, generation, not 'guess'"),
        ("few_shot: {n: -1}", "line 6: few_shot.n: expected a number of at least 0, not -1"),
        ("few_shot: {m: 1}", "line 6: unknown key 'few_shot.m'. Keys here are: data, n, seed"),
        ('answer_pattern: "("', "is no regular expression"),
        ('answer_pattern: "abc"', "has no group"),
    ],
)
def test_wrong_key_is_named_with_its_line(tmp_path: Path, line: str, message: str) -> None:
    with pytest.raises(RecipeError) as error:
        read_exam(exam_file(tmp_path, line))
    assert "small.yaml" in str(error.value) and message in str(error.value)


def test_unknown_exam_names_the_files_that_are_there(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="there is no exam 'smal'"):
        read_exam("smal")
    with pytest.raises(RecipeError, match="there is no exam .*gone.yaml"):
        read_exam(tmp_path / "gone.yaml")


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({}, "expected one of path, hub and packages, not 0"),
        ({"path": "a", "hub": "b"}, "not 2"),
        ({"packages": [{"package": "npm:a", "version": "1", "file": "b", "sha256": "c"}]}, "data.packages.0.sha256"),
        ({"packages": [{"package": "a", "version": "1", "file": "b", "sha256": "0" * 64}]}, "belong together"),
    ],
)
def test_data_has_one_source(data: dict, message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        make_exam({"name": "x", "data": data, "question": "q", "options": ["a", "b"], "answer": "a"}, "x.yaml")


@pytest.mark.parametrize("name", shipped_exams())
def test_shipped_exams_are_valid(name: str) -> None:
    exam, file = read_exam(name)
    assert exam.name == file.stem and exam.description and exam.licence and exam.language in ("en", "zh")


# -- items ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("row", "problem"),
    [
        ({"question": "q", "options": ["a", "b"], "answer": "c"}, "the answer 'c' is not among the options"),
        ({"question": "q", "options": ["a", "a"], "answer": "a"}, "two options are equal: 'a'"),
        ({"question": "q", "options": ["a"], "answer": "a"}, "there is only one option: 'a'"),
        ({"question": "q", "options": ["a", " "], "answer": "a"}, "option 2 is empty"),
        ({"question": "q", "options": ["1", "2", "0"], "answer": "1"}, "set answer_form"),
        ({"question": "q", "options": "abc", "answer": "a"}, "options: expected a list, not 'abc'"),
        ({"question": " ", "options": ["a", "b"], "answer": "a"}, "the question is empty"),
        ({"options": ["a", "b"], "answer": "a"}, "question: 'question' is undefined"),
    ],
)
def test_wrong_item_is_refused_by_file_and_line(tmp_path: Path, row: dict, problem: str) -> None:
    with pytest.raises(DataError) as error:
        open_exams([str(exam_file(tmp_path, rows=[ROWS[0], row]))])
    assert "small.jsonl, line 2" in str(error.value) and problem in str(error.value)


def test_many_wrong_items_are_counted() -> None:
    exam = make_exam({**_plain(), "question": "{{ gone }}"}, "x.yaml")
    with pytest.raises(DataError, match="and 5 more rows"):
        make_items(exam, [SourceRow(f"x, line {i}", {}) for i in range(10)])


def test_empty_exam_and_two_exams_of_one_name_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="exam small has no items"):
        open_exams([str(exam_file(tmp_path, rows=[]))])
    with pytest.raises(RecipeError, match="two exams are called 'small'"):
        open_exams([str(exam_file(tmp_path / "a")), str(exam_file(tmp_path / "b"))])


def test_template_is_kept_from_the_machine() -> None:
    exam = make_exam({**_plain(), "question": "{{ ''.__class__.__mro__[1].__subclasses__() }}"}, "x.yaml")
    with pytest.raises(DataError, match="unsafe|undefined"):
        make_items(exam, [SourceRow("x, line 1", {"options": ["a", "b"], "answer": "a"})])


def test_answer_form_decides_what_a_digit_means() -> None:
    row = SourceRow("x, line 1", {"question": "q", "options": ["1", "2", "0"], "answer": "1"})
    solutions = {
        form: make_items(make_exam({**_plain(), "answer_form": form}, "x"), [row])[0].solution
        for form in ("text", "number")
    }
    assert solutions == {"text": 0, "number": 1}


def test_examples_are_never_asked_and_missing_ones_refused() -> None:
    rows = [SourceRow(f"x, line {i}", {"question": f"q{i}", "options": ["a", "b"], "answer": "b"}) for i in range(6)]
    exam = make_exam({**_plain(), "few_shot": {"n": 2}, "instruction": "Answer.\n\n"}, "x")
    prepared = prepare(exam, make_items(exam, rows), None)
    examples = prepared.examples[""]
    assert len(examples) == 2 and len(prepared.items) == 4 and not {x.id for x in examples} & {x.id for x in prepared.items}
    assert prepared.prefixes() == {"": "Answer.\n\n" + "".join(f"{x.question} b\n\n" for x in examples)}
    assert prepared == prepare(exam, make_items(exam, rows), None), "the seed decides"
    with pytest.raises(DataError, match="few_shot.n is 6, and there are 5 rows"):
        prepare(make_exam({**_plain(), "few_shot": {"n": 6}}, "x"), make_items(exam, rows), None)


def _plain() -> dict:
    templates = {key: f"{{{{ {key} }}}}" for key in ("question", "options", "answer")}
    return {"name": "x", "data": {"path": "x"}, **templates}


# -- scores -----------------------------------------------------------------------------------------------------------


@torch.no_grad()
def by_transformers(model: Model, prompt: Prompt) -> list[float]:
    """The log-probability of each continuation, one forward pass of transformers each."""
    scores = []
    for continuation in prompt.continuations:
        ids = torch.tensor([[*prompt.ids, *continuation]])
        logprobs = model.torch_model(ids).logits[0].float().log_softmax(-1)
        scores.append(sum(logprobs[len(prompt.ids) - 1 + j, token].item() for j, token in enumerate(continuation)))
    return scores


@pytest.mark.parametrize("family", ["llama", "gemma3_text", "gpt2"])
def test_log_probabilities_are_those_of_transformers(tmp_path: Path, family: str) -> None:
    model = open_model(str(save_model(tmp_path / family, family)), "fp32")
    processor = model.assets.processor
    prompts = [encode_prompt(processor, f"7 wizards. {x['question']}", [f" {o}" for o in x["options"]]) for x in ROWS]
    prompts.append(encode_prompt(processor, "", ["paris", "dog and fox"]))
    scored = score_options(model.model, [x.ids for x in prompts], [x.continuations for x in prompts])
    for scores, prompt in zip(scored, prompts, strict=True):
        assert scores.log_probs == pytest.approx(by_transformers(model, prompt), abs=1e-4)


def test_greedy_continuation_is_recognized(model: Model) -> None:
    ids = model.assets.processor.text("the quick brown")
    with torch.no_grad():
        best = int(model.torch_model(torch.tensor([ids])).logits[0, -1].argmax())
        second = int(model.torch_model(torch.tensor([[*ids, best]])).logits[0, -1].argmax())
    options = [(best,), (best, second), (best, (second + 1) % 300), ((best + 1) % 300,)]
    (scores,) = score_options(model.model, [ids], [options])
    assert [scores.is_greedy(x) for x in options] == [True, True, False, False]


def test_result_of_an_exam(tmp_path: Path, model: Model) -> None:
    (prepared,) = open_exams([str(exam_file(tmp_path, "normalization: characters"))])
    (result,) = take_exams(model.model, [prepared], None, Reporter())
    assert (
        result.score.name == "exam.small"
        and result.score.n == 4
        and result.chance == pytest.approx((1 / 3 + 1 / 2 + 1 / 4 + 1 / 2) / 4)
    )
    for item, x in zip(prepared.items, result.items):
        normalized = [logprob / len(option) for logprob, option in zip(x.logprobs, item.options)]
        assert x.chosen == normalized.index(max(normalized)) and x.correct == (x.chosen == item.solution)
    assert result.score.value == sum(x.correct for x in result.items) / 4


def test_item_longer_than_the_context_is_counted_and_not_asked(tmp_path: Path, model: Model) -> None:
    long = {"question": "the quick brown fox " * 20, "options": ["dog", "fox"], "answer": "dog"}
    (prepared,) = open_exams([str(exam_file(tmp_path, rows=[*ROWS, long]))])
    result = take_exam(model.model, prepared, 60, ExamCache(None))
    assert result.too_long == ("5",) and result.score.n == 4 and result.score.left_out == 1 and result.score.total == 5
    assert "1 items are longer than the model's context" in str(result.score.notes[-1])


@pytest.mark.parametrize(
    ("text", "chosen"),
    [("Paris.", 0), (" **paris**\nbecause", 0), ("B", 1), ("(b)", 1), ("Ｂ。", 1), ("London", -1), ("", -1)],
)
def test_answer_is_read_from_what_was_generated(text: str, chosen: int) -> None:
    exam = Exam.model_validate({**_plain(), "scoring": "generation"})
    (item,) = make_items(exam, [SourceRow("x", {"question": "q", "options": ["Paris", "Rome"], "answer": "A"})])
    result = read_answer(exam, item, text)
    assert (result.chosen, result.correct) == (chosen, chosen == 0)


def test_answer_pattern_finds_the_answer_in_a_sentence() -> None:
    exam = Exam.model_validate({**_plain(), "options": (), "scoring": "generation", "answer_pattern": r"答案是\s*(\S+?)。"})
    (item,) = make_items(exam, [SourceRow("x", {"question": "q", "answer": "北京"})])
    assert read_answer(exam, item, "想一想，答案是北京。").correct
    assert not read_answer(exam, item, "北京").correct, "the pattern is not there"


def test_exam_by_generation(tmp_path: Path, model: Model) -> None:
    (prepared,) = open_exams([str(exam_file(tmp_path, "scoring: generation", "max_new_tokens: 4"))])
    (result,) = take_exams(model.model, [prepared], None, Reporter())
    assert result.score.n == 4 and all(x.text or x.chosen == -1 for x in result.items)


# -- cache and records ------------------------------------------------------------------------------------------------


def test_what_is_known_is_not_asked_again(tmp_path: Path, model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    file = exam_file(tmp_path)
    first = take_exams(model.model, open_exams([str(file)]), None, Reporter())
    asked: list[int] = []

    def counted(model: TrainableModel, prompts: list, options: list) -> list:
        asked.append(len(prompts))
        return score_options(model, prompts, options)

    monkeypatch.setattr(exam_run, "score_options", counted)
    assert take_exams(model.model, open_exams([str(file)]), None, Reporter()) == first
    cached = next((tmp_path / "home" / "exams").glob("*.jsonl"))
    lines = cached.read_text().splitlines()
    cached.write_text("\n".join(lines[:-1]) + "\n" + lines[-1][:20])  # killed while the last line was written
    (again,) = take_exams(model.model, open_exams([str(file)]), None, Reporter())
    assert again.score == first[0].score and again.items[-1].logprobs == pytest.approx(first[0].items[-1].logprobs)
    assert asked == [1]


def test_fingerprint_changes_with_weights_and_with_the_switched_off_method(tmp_path: Path) -> None:
    run = open_model(finished_run())
    prints = [model_fingerprint(run.model), model_fingerprint(run.model)]
    with run.model.reference():
        prints.append(model_fingerprint(run.model))
    with torch.no_grad():
        next(iter(run.model.trainable().values())).add_(0.01)
    prints.append(model_fingerprint(run.model))
    assert prints[0] == prints[1] and len(set(prints)) == 3


def test_run_keeps_scores_and_items_before_and_after(tmp_path: Path) -> None:
    rows = [{"prompt": "what time is it", "completion": "seven"}] * 8
    exam = exam_file(tmp_path / "exam")
    recipe = Recipe.model_validate(
        {
            "base": str(save_model(tmp_path / "base")), "data": rows, "validation": 0, "out": str(tmp_path / "run"),
            "train": {"steps": 2}, "evaluate": {"exams": str(exam), "samples": 0},
        }
    )  # fmt: skip
    run = train(recipe, Reporter())
    assert isinstance(run, Run) and set(run.scores) == {"before", "after"}
    assert run.scores["before"]["exam.small"]["n"] == 4
    lines = run.read("exam_items.jsonl")
    assert [(x["when"], x["exam"]) for x in lines] == [("before", "small")] * 4 + [("after", "small")] * 4
    for when in ("before", "after"):
        correct = [x["correct"] for x in lines if x["when"] == when]
        assert run.scores[when]["exam.small"]["value"] == sum(correct) / 4
