"""Tasks of lm-evaluation-harness (YAML): read as an Exam, and written from one.

    doc_to_text    question           target_delimiter    delimiter       num_fewshot      few_shot.n
    doc_to_choice  options            fewshot_delimiter   separator       fewshot_split    few_shot.data
    doc_to_target  answer             description         instruction     acc_norm         normalization: characters

Templates are Jinja in both. What a task leaves to Python (!function) is refused by name: it would be run.
"""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from weitiao.core.errors import RecipeError
from weitiao.core.exam import Exam, make_exam
from weitiao.core.files import write_text
from weitiao.evaluate.examination.items import ExamItem, PreparedExam

FILES = ("json", "csv", "parquet", "text")  # dataset_path: of files; anything else is a dataset of the hub
MAX_INCLUDES = 8
OUTPUT_TYPES = ("multiple_choice", "generate_until")


class _Loader(yaml.SafeLoader):
    """YAML with the harness's one tag, which is refused."""


def _refuse_function(loader: yaml.SafeLoader, node: yaml.Node) -> Any:
    raise RecipeError(
        "line {line}: !function {name} is Python code, which is not run: write what it makes into the rows, and the "
        "template without it.",
        line=node.start_mark.line + 1,
        name=str(node.value),
    )


_Loader.add_constructor("!function", _refuse_function)


def is_task(path: Path) -> bool:
    """Whether a YAML file is a task of lm-evaluation-harness."""
    text = path.read_text(encoding="utf-8", errors="replace") if path.is_file() else ""
    return re.search(r"^(doc_to_text|dataset_path|include)\s*:", text, re.MULTILINE) is not None


def read_task(path: Path) -> Exam:
    """A task as an Exam.

    Raises:
        RecipeError: naming the file, and what of the task an exam cannot do.
    """
    task = _read(path)
    try:
        plain = _as_exam(task, path)
    except KeyError as error:
        raise RecipeError("{path}: the task has no {key}.", path=path, key=error.args[0]) from None
    return make_exam(plain, str(path))


def _read(path: Path, depth: int = 0) -> dict[str, Any]:
    """A task's keys, with those of the files it includes."""
    if depth > MAX_INCLUDES:
        raise RecipeError("{path}: its includes go in a circle.", path=path)
    try:
        task = yaml.load(path.read_text(encoding="utf-8"), _Loader)  # a SafeLoader
    except RecipeError as error:
        raise RecipeError("{path}, {problem}", path=path, problem=error.message) from None
    except (yaml.YAMLError, OSError, UnicodeDecodeError) as error:
        problem = " ".join(str(error).split())
        raise RecipeError("{path}: not readable as YAML: {problem}.{hint}", path=path, problem=problem, hint="") from None
    if not isinstance(task, dict):
        raise RecipeError("{path}: an exam is a list of `key: value` lines.", path=path)
    include = task.pop("include", None)
    return {**(_read(path.parent / str(include), depth + 1) if include else {}), **task}


def _as_exam(task: Mapping[str, Any], path: Path) -> dict[str, Any]:
    kind = task.get("output_type", "generate_until")
    if kind not in OUTPUT_TYPES:
        raise RecipeError(
            "{path}: output_type {kind} is no exam; exams are: {known}.",
            path=path,
            kind=kind,
            known=", ".join(OUTPUT_TYPES),
        )
    config = task.get("fewshot_config") or {}
    metrics = [x.get("metric") for x in task.get("metric_list") or ()]
    plain: dict[str, Any] = {
        "name": re.sub(r"[^\w-]", "_", str(task["task"])),
        "data": _data(task),
        "instruction": str(task.get("description", "")),
        "question": _template(task["doc_to_text"]),
        "answer": _template(task["doc_to_target"]),
        "delimiter": str(task.get("target_delimiter", " ")),
        "separator": str(task.get("fewshot_delimiter", "\n\n")),
        "few_shot": {
            "n": task.get("num_fewshot") or 0,
            "seed": None if config.get("sampler") == "first_n" else 0,
            "data": _few_shot_data(task),
        },
    }
    if kind == "multiple_choice":
        choices = task["doc_to_choice"]
        if isinstance(choices, Mapping):
            choices = list(choices.values())
        plain["options"] = [str(x) for x in choices] if isinstance(choices, list) else _template(choices)
        plain["normalization"] = "characters" if "acc_norm" in metrics and "acc" not in metrics else "none"
        return plain
    settings = task.get("generation_kwargs") or {}
    return {
        **plain,
        "scoring": "generation",
        "max_new_tokens": settings.get("max_gen_toks", 256),
        "answer_pattern": _pattern(task),
    }


def _template(value: Any) -> str:
    """A column's name as a template; a template as it is."""
    text = str(value)
    return f"{{{{ {text} }}}}" if re.fullmatch(r"[A-Za-z_]\w*", text) else text


def _data(task: Mapping[str, Any]) -> dict[str, Any]:
    split = str(task.get("test_split") or task["validation_split"])
    if task["dataset_path"] not in FILES:
        return {"hub": task["dataset_path"], "config": task.get("dataset_name"), "split": split}
    files = (task.get("dataset_kwargs") or {}).get("data_files") or {}
    return {"path": str(files[split] if isinstance(files, Mapping) else files)}


def _few_shot_data(task: Mapping[str, Any]) -> str:
    """The file, or the split, that solved items are taken from."""
    split = task.get("fewshot_split") or task.get("training_split") or task.get("validation_split") or ""
    if not task.get("num_fewshot") or split == (task.get("test_split") or task.get("validation_split")):
        return ""
    if task["dataset_path"] not in FILES:
        return str(split)
    files = (task.get("dataset_kwargs") or {}).get("data_files") or {}
    return str(files.get(split, "")) if isinstance(files, Mapping) else ""


def _pattern(task: Mapping[str, Any]) -> str:
    """The first regular expression that a task's filters read answers with."""
    filters = [step for x in task.get("filter_list") or () for step in x.get("filter") or ()]
    return next((str(x["regex_pattern"]) for x in filters if x.get("function") == "regex"), "")


# -- writing ----------------------------------------------------------------------------------------------------------


def write_task(prepared: PreparedExam, folder: Path) -> Path:
    """An exam as a task: <name>.yaml, and its items and solved items as JSON lines, as they are asked.

    Raises:
        RecipeError: the harness has no such scoring.
    """
    exam = prepared.exam
    if exam.normalization == "tokens":
        raise RecipeError("exam {exam}: lm-evaluation-harness has no normalization by tokens.", exam=exam.name)
    folder.mkdir(parents=True, exist_ok=True)
    examples = prepared.examples.get("", ())
    prefixes = prepared.prefixes() if exam.group else {}  # the harness has one set of solved items a task
    files = {"test": folder / f"{exam.name}.jsonl"} | ({"dev": folder / f"{exam.name}.dev.jsonl"} if examples else {})
    for key, items in {"test": prepared.items, "dev": examples}.items():
        lines = (json.dumps(_document(x, prefixes.get(x.group, "")), ensure_ascii=False) + "\n" for x in items)
        if key in files:
            write_text(files[key], "".join(lines))
    task: dict[str, Any] = {
        "task": exam.name,
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {key: str(x.resolve()) for key, x in files.items()}},
        "test_split": "test",
        "doc_to_text": "{{question}}",
        "target_delimiter": exam.delimiter,
        "fewshot_delimiter": exam.separator,
        "description": "" if exam.group else exam.instruction,
        "num_fewshot": len(examples),
        "metadata": {"version": 1.0, "licence": exam.licence},
    }
    if examples:
        task |= {"fewshot_split": "dev", "fewshot_config": {"sampler": "first_n"}}
    path = folder / f"{exam.name}.yaml"
    write_text(path, yaml.safe_dump(task | _scoring(exam), allow_unicode=True, sort_keys=False))
    return path


def _document(item: ExamItem, prefix: str) -> dict[str, Any]:
    choice = {"options": list(item.options), "solution": item.solution} if item.options else {}
    return {"id": item.id, "question": prefix + item.question, "answer": item.solved, **choice}


def _scoring(exam: Exam) -> dict[str, Any]:
    mean = {"aggregation": "mean", "higher_is_better": True}
    if exam.scoring == "log_probability":
        metric = {"none": "acc", "characters": "acc_norm", "bytes": "acc_bytes"}[exam.normalization]
        choice = {"output_type": "multiple_choice", "doc_to_choice": "options", "doc_to_target": "solution"}
        return {**choice, "metric_list": [{"metric": metric, **mean}]}
    pattern = exam.answer_pattern or r"^\s*(.*)"
    steps = [{"function": "regex", "regex_pattern": pattern}, {"function": "take_first"}]
    return {
        "output_type": "generate_until",
        "doc_to_target": "answer",
        "generation_kwargs": {"until": [exam.separator], "max_gen_toks": exam.max_new_tokens, "do_sample": False},
        "filter_list": [{"name": "answer", "filter": steps}],
        "metric_list": [{"metric": "exact_match", **mean, "ignore_case": True, "ignore_punctuation": True}],
    }
