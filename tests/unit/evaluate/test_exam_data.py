"""Where exams come from: packaged facts, published folders, tasks of lm-evaluation-harness; and what contaminates them."""

import json
from collections import Counter
from pathlib import Path

import pytest
import yaml

from support.command import weitiao
from support.models import save_model
from weitiao.core.errors import DataError, RecipeError
from weitiao.core.exam import DEFAULT, read_exam
from weitiao.core.recipe import Recipe
from weitiao.core.reporter import Reporter
from weitiao.evaluate.examination.contamination import contaminated_items, units_of
from weitiao.evaluate.examination.harness_task import is_task, read_task
from weitiao.evaluate.examination.items import ExamItem
from weitiao.evaluate.facts import countries, idioms, poems, wordnet
from weitiao.pipeline.exam_data import export_exam, open_exams
from weitiao.pipeline.exams import evaluate_exams
from weitiao.pipeline.train import train

# -- facts ------------------------------------------------------------------------------------------------------------


def country(code: str, name: str, chinese: str, capital: str, region: str, currency: str) -> dict:
    """A country as world-countries writes it."""
    return {
        "cca3": code, "unMember": True, "capital": [capital], "region": region, "subregion": region,
        "name": {"common": name}, "translations": {"zho": {"common": chinese}},
        "currencies": {code: {"name": currency}},
    }  # fmt: skip


COUNTRIES = [
    country("FRA", "France", "法国", "Paris", "Europe", "Euro"),
    country("ITA", "Italy", "意大利", "Rome", "Europe", "Italian lira"),
    country("DEU", "Germany", "德国", "Berlin", "Europe", "German mark"),
    country("POL", "Poland", "波兰", "Warsaw", "Europe", "Polish zloty"),
    country("JPN", "Japan", "日本", "Tokyo", "Asia", "Japanese yen"),
    country("SGP", "Singapore", "新加坡", "Singapore", "Asia", "Singapore dollar"),
]


def facts_file(folder: Path, value: object) -> Path:
    file = folder / "facts.json"
    file.write_text(json.dumps(value, ensure_ascii=False), encoding="utf-8")
    return file


def test_wrong_capitals_are_of_the_same_region_and_the_answer_is_not_in_the_question(tmp_path: Path) -> None:
    rows = list(countries.rows([facts_file(tmp_path, COUNTRIES)], {"property": "capital"}))
    by_id = {x["id"]: x for x in rows}
    assert "SGP" not in by_id and sorted(by_id["FRA"]["options"]) == ["Berlin", "Paris", "Rome", "Warsaw"]
    assert by_id["JPN"]["answer"] == "Tokyo" and len(set(by_id["JPN"]["options"])) == 4
    assert rows == list(countries.rows([facts_file(tmp_path, COUNTRIES)], {"property": "capital"}))
    assert rows != list(countries.rows([facts_file(tmp_path, COUNTRIES)], {"property": "capital", "seed": 1}))


def test_currency_does_not_name_its_country_and_chinese_capitals_come_from_the_dictionary(tmp_path: Path) -> None:
    file = facts_file(tmp_path, COUNTRIES)
    currencies = {x["id"]: x["answer"] for x in countries.rows([file], {"property": "currency"})}
    assert currencies["POL"] == "zloty" and currencies["FRA"] == "euro"
    entries = [[x, x, "", gloss, [], []] for x, gloss in (
        ("巴黎", "Paris, capital of France"), ("花都", ["flower capital", "Paris, capital of France"]),
        ("罗马", "Rome, capital of Italy"), ("柏林", "Berlin, capital of Germany"), ("华沙", "Warsaw, capital of Poland"),
        ("華沙", "Warsaw, capital of Poland (Tw)"),
    )]  # fmt: skip
    dictionary = tmp_path / "all.js"
    dictionary.write_text("export default " + json.dumps({"all": entries}) + ";", encoding="utf-8")
    chinese = {x["id"]: x for x in countries.rows([file, dictionary], {"property": "capital", "language": "zh"})}
    assert chinese["FRA"]["answer"] == "巴黎" and chinese["FRA"]["country"] == "法国" and "JPN" not in chinese


def test_unknown_property_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="property: expected one of capital, currency, continent, name, not 'flag'"):
        list(countries.rows([facts_file(tmp_path, COUNTRIES)], {"property": "flag"}))


def test_idioms_share_at_most_one_character_with_wrong_options(tmp_path: Path) -> None:
    words = [a + b + "马到" for a in "甲乙丙丁" for b in "天地玄黄"] + [f"{x}山水云" for x in "春夏秋冬"]
    lines = [f"{w},比喻事情非常顺利地成功了,出处" for w in words] + ["完完全全,见“甲天马到”之类的说法啊,例"]
    file = tmp_path / "idiom.csv"
    file.write_text("word,explanation,example\n" + "\n".join(lines), encoding="utf-8")
    rows = list(idioms.rows([file], {"limit": 8}))
    assert len(rows) == 8 and all(x["answer"] != "完完全全" for x in rows)
    for x in rows:
        wrong = [y for y in x["options"] if y != x["answer"]]
        assert all(len(set(y) & set(x["answer"])) <= 1 for y in wrong)


def test_poems_ask_for_the_poet_or_for_the_next_line(tmp_path: Path) -> None:
    poets = [("王維", 6), ("李白", 6), ("杜甫", 6), ("王建", 6), ("無名", 1)]
    written = [
        {"chapter": f"題{i}", "author": name, "paragraphs": [f"春山一夜{name}，花落知{i}多少。"]}
        for name, n in poets for i in range(n)
    ]  # fmt: skip
    file = facts_file(tmp_path, {"content": [{"content": written}]})
    rows = list(poems.rows([file], {"asked": "author"}))
    assert len(rows) == 24 and all("無名" not in x["options"] for x in rows)
    with pytest.raises(ValueError, match="asked: expected one of author, next_line"):
        list(poems.rows([file], {"asked": "title"}))


def test_words_are_asked_with_words_of_their_kind(tmp_path: Path) -> None:
    nouns = "".join(f'{i:08d} 13 n 01 food{i} 0 000 | edible thing number {i}; "an example"  \n' for i in range(6))
    (tmp_path / "data.noun").write_text("  1 licence\n" + nouns)
    senses = "".join(f"{word}%1:13:00:: {i:08d} 1 {tagged}\n" for i, (word, tagged) in enumerate(
        [("bread", 9), ("milk", 9), ("rice", 9), ("meat", 9), ("rare", 1), ("beer", 7)]
    ))  # fmt: skip
    (tmp_path / "index.sense").write_text(senses)
    rows = list(wordnet.rows([tmp_path / "index.sense", tmp_path / "data.noun"], {}))
    assert sorted(x["answer"] for x in rows) == ["beer", "bread", "meat", "milk", "rice"]
    bread = next(x for x in rows if x["answer"] == "bread")
    assert (bread["definition"], bread["part"]) == ("edible thing number 0", "noun") and "rare" not in bread["options"]


def test_right_answers_are_in_each_place_equally_often(tmp_path: Path) -> None:
    file = facts_file(tmp_path, [country(f"C{i}", f"Land{i}", f"国{i}", f"City{i}", "Asia", "x") for i in range(40)])
    places = Counter(x["options"].index(x["answer"]) for x in countries.rows([file], {"property": "capital"}))
    assert places == {0: 10, 1: 10, 2: 10, 3: 10}


def test_default_exams_ship_in_the_language_they_are_listed_under() -> None:
    for language, names in DEFAULT.items():
        assert {read_exam(x)[0].language for x in names} == {language}


# -- folders ----------------------------------------------------------------------------------------------------------


def published(folder: Path, layout: str) -> Path:
    """A folder with two subjects, as the exam's authors publish it."""
    header = {"mmlu": "", "ceval": "id,question,A,B,C,D,answer\n", "cmmlu": ",Question,A,B,C,D,Answer\n"}[layout]
    split = {"mmlu": "test", "ceval": "val", "cmmlu": "test"}[layout]
    for part, count in ((split, 3), ("dev", 5)):
        (folder / part).mkdir(parents=True)
        for subject in ("law", "world_history"):
            rows = [f'"{subject}, {part} {i}?",one,two,three,four,{"ABCD"[i % 4]}' for i in range(count)]
            numbered = rows if layout == "mmlu" else [f"{i},{x}" for i, x in enumerate(rows)]
            suffix = "" if layout == "cmmlu" else f"_{part}"
            (folder / part / f"{subject}{suffix}.csv").write_text(header + "\n".join(numbered) + "\n", encoding="utf-8")
    return folder


@pytest.mark.parametrize("layout", ["mmlu", "ceval", "cmmlu"])
def test_published_folder_is_read_with_the_examples_of_each_subject(tmp_path: Path, layout: str) -> None:
    (prepared,) = open_exams([f"{layout}:{published(tmp_path / 'd', layout)}"])
    assert len(prepared.items) == 6 and [x.solution for x in prepared.items] == [0, 1, 2, 0, 1, 2]
    prefixes = prepared.prefixes()
    assert set(prefixes) == {"law", "world_history"}
    assert prefixes["law"].count("law, dev ") == 5 and "world" not in prefixes["law"]
    assert layout != "mmlu" or prefixes["world_history"].startswith(
        "The following are multiple choice questions (with answers) about world history.\n\nworld_history, dev 0?\nA. one\n"
    )


def test_folder_problems_are_named(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="exam mmlu needs its folder: mmlu:FOLDER"):
        open_exams(["mmlu"])
    with pytest.raises(DataError, match="test has no CSV files"):
        open_exams([f"mmlu:{tmp_path}"])
    folder = published(tmp_path / "d", "ceval")
    (folder / "val" / "law_val.csv").write_text("id,question,A,B,C,D\n0,what?,1,2,3,4\n", encoding="utf-8")
    with pytest.raises(DataError, match=r"law_val.csv, line 2: no answer; the layout ceval has id, question, A"):
        open_exams([f"ceval:{folder}"])


# -- lm-evaluation-harness --------------------------------------------------------------------------------------------

TASK = """task: my_task
dataset_path: json
dataset_kwargs: {data_files: {test: rows.jsonl, dev: dev.jsonl}}
test_split: test
fewshot_split: dev
num_fewshot: 1
fewshot_config: {sampler: first_n}
output_type: multiple_choice
doc_to_text: "Question: {{question.strip()}}\\nAnswer:"
doc_to_choice: "{{choices.text}}"
doc_to_target: "{{choices.label.index(key)}}"
description: "Science.\\n\\n"
metric_list: [{metric: acc_norm, aggregation: mean}]
"""


def task_file(folder: Path, text: str = TASK) -> Path:
    row = {"question": " Sky? ", "choices": {"text": ["red", "blue"], "label": ["A", "B"]}, "key": "B"}
    for name in ("rows", "dev"):
        (folder / f"{name}.jsonl").write_text(json.dumps({**row, "question": f" {name}? "}), encoding="utf-8")
    (folder / "task.yaml").write_text(text, encoding="utf-8")
    return folder / "task.yaml"


def test_task_of_the_harness_is_an_exam(tmp_path: Path) -> None:
    (prepared,) = open_exams([str(task_file(tmp_path))])
    (item,) = prepared.items
    assert (item.question, item.options, item.solution) == ("Question: rows?\nAnswer:", ("red", "blue"), 1)
    assert prepared.prefixes()[""] == "Science.\n\nQuestion: dev?\nAnswer: blue\n\n"
    assert prepared.exam.normalization == "characters"


def test_include_and_column_names(tmp_path: Path) -> None:
    (tmp_path / "default.yaml").write_text(
        "dataset_path: cais/mmlu\ntest_split: test\nfewshot_split: dev\nnum_fewshot: 5\n"
    )
    own = {"include": "default.yaml", "task": "m", "dataset_name": "law", "output_type": "multiple_choice"}
    templates = {"doc_to_text": "question", "doc_to_choice": ["A", "B"], "doc_to_target": "answer"}
    exam = read_task(task_file(tmp_path, yaml.safe_dump(own | templates)))
    assert (exam.data.hub, exam.data.config, exam.data.split, exam.few_shot.data) == ("cais/mmlu", "law", "test", "dev")
    assert (exam.question, exam.options, exam.answer) == ("{{ question }}", ("A", "B"), "{{ answer }}")


KIND = "output_type: multiple_choice"


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ((KIND, "process_docs: !function utils.docs"), "line 8: !function utils.docs is Python code"),
        ((KIND, "output_type: loglikelihood_rolling"), "output_type loglikelihood_rolling is no exam"),
        (("doc_to_choice", "doc_to_choise"), "the task has no doc_to_choice"),
        (("test_split: test", "include: task.yaml"), "its includes go in a circle"),
    ],
)
def test_what_a_task_leaves_to_python_is_refused_by_name(tmp_path: Path, changed: tuple[str, str], message: str) -> None:
    with pytest.raises(RecipeError, match=message) as error:
        read_task(task_file(tmp_path, TASK.replace(*changed)))
    assert "task.yaml" in str(error.value)


def test_exported_exam_reads_back_the_same(tmp_path: Path) -> None:
    (before,) = open_exams([str(task_file(tmp_path))])
    written = export_exam(str(tmp_path / "task.yaml"), tmp_path / "out")
    task = yaml.safe_load(written.read_text())
    assert is_task(written) and task["metric_list"][0]["metric"] == "acc_norm" and task["num_fewshot"] == 1
    (after,) = open_exams([str(written)])
    assert after.prefixes() == before.prefixes()
    assert [(x.question, x.options, x.solution) for x in after.items] == [
        (x.question, x.options, x.solution) for x in before.items
    ]


def test_exam_is_shown_as_a_model_is_asked_it(tmp_path: Path) -> None:
    name = str(task_file(tmp_path))
    (opened,) = open_exams([name])
    first = opened.items[0]
    code, said = weitiao("exams", name)
    assert code == 0 and f"{len(opened.items)} questions" in said
    assert opened.prefixes()[first.group] + first.question in said and f"✓ {first.solved}" in said
    shown = json.loads(weitiao("exams", name, "--json")[1])["first"]
    assert shown == {
        "prompt": opened.prefixes()[""] + first.question,
        "options": list(first.options),
        "answer": first.solved,
    }
    assert weitiao("exams", "nosuch")[0] == 2 and "there is no exam 'nosuch'" in weitiao("exams", "nosuch")[1]


def test_grouped_exam_is_exported_with_its_prompts_written_out(tmp_path: Path) -> None:
    name = f"mmlu:{published(tmp_path / 'd', 'mmlu')}"
    (before,) = open_exams([name])
    (after,) = open_exams([str(export_exam(name, tmp_path / "out"))])
    prefixes = before.prefixes()
    assert [x.question for x in after.items] == [prefixes[x.group] + x.question for x in before.items]
    assert after.prefixes() == {"": ""}


# -- contamination ----------------------------------------------------------------------------------------------------


def item(name: str, question: str) -> ExamItem:
    return ExamItem(name, question, ("a", "b"), 0, "a")


def test_contaminated_questions_are_found_and_others_are_not() -> None:
    long = "one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen"
    items = [
        item("short", "Question: What is the capital of France?\nAnswer:"),
        item("long", f"Question: {long}\nAnswer:"),
        item("zh", "问：法国的首都是哪里？\n答："),
        item("other", "Question: What is the capital of Italy?\nAnswer:"),
        item("tiny", "Why?"),
    ]
    texts = [
        "user: what is the CAPITAL of France\nassistant: Paris", f"x {long[4:]} y".upper(), "请问法国的首都是哪里", "why",
        "the capital of Italy, what is it", long[:40],
    ]  # fmt: skip
    assert contaminated_items(items, texts) == ["short", "long", "zh"]
    assert contaminated_items(items, texts[3:]) == [] and contaminated_items([], texts) == []


def test_units_are_words_and_chinese_characters() -> None:
    assert units_of("ＡＢＣ def, 北京2024年") == ["abc", "def", "北", "京", "2024", "年"]


def test_contamination_by_the_training_data_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    asked = [f"what time is it in paris number {x}" for x in ("one", "two", "three")]
    exam_rows = [{"question": x, "options": ["dog", "fox"], "answer": "dog"} for x in asked]
    (tmp_path / "q.jsonl").write_text("\n".join(map(json.dumps, exam_rows)))
    (tmp_path / "q.yaml").write_text(
        'name: q\ndata: {path: q.jsonl}\nquestion: "{{ question }}"\noptions: "{{ options }}"\nanswer: "{{ answer }}"\n'
    )
    rows = [{"prompt": asked[1].title() + "?", "completion": "seven"}] + [{"prompt": "fox", "completion": "dog"}] * 7
    recipe = {
        "base": str(save_model(tmp_path / "base")), "data": rows, "validation": 0, "out": str(tmp_path / "run"),
        "train": {"steps": 1}, "evaluate": {"exams": [str(tmp_path / "q.yaml")], "samples": 0},
    }  # fmt: skip
    run = train(Recipe.model_validate(recipe), Reporter())
    assert [x["id"] for x in run.read("exam_items.jsonl") if x.get("contaminated")] == ["2", "2"]
    exam = str(tmp_path / "q.yaml")
    assert "training data" in str(evaluate_exams(str(run.folder), [exam], Reporter())["exam.q"].notes)
    (run.folder / "data.jsonl").unlink()
    scores = evaluate_exams(str(run.folder), [exam], Reporter())
    assert scores["exam.q"].n == 3 and "not searched" in capsys.readouterr().out
    (note,) = [x for x in run.scores["after"]["exam.q"]["notes"] if "training data" in x["template"]]
    assert (note["fields"]["n"], note["fields"]["total"], note["fields"]["items"]) == (1, 3, "2")
