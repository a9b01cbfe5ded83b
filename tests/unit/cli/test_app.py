"""The command line: words, tables, JSON and exit codes."""

import json
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

import weitiao as package
from support.command import weitiao, write_recipe
from support.rows import chat_rows, write_jsonl
from weitiao.core.registry import names

VERBS = ("train", "bench", "evaluate", "generate", "chat", "merge", "runs", "download", "schema", "explain",
         "init", "doctor", "check", "predict", "compare-methods", "f-learning", "why",
         "compare", "review")  # fmt: skip


@pytest.fixture
def recipe(recipe_dict: dict, tmp_path: Path) -> Path:
    recipe_dict["train"] = {**recipe_dict["train"], "steps": 2}
    return write_recipe(tmp_path, recipe_dict)


@pytest.fixture
def done(train_tiny: Any) -> Path:
    """A finished run."""
    return train_tiny(train={"steps": 2}).folder


def shell(*words: str | Path) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "weitiao", *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True, timeout=120)


def test_help_lists_commands_without_torch() -> None:
    begun = time.perf_counter()
    told = shell("--help")
    assert told.returncode == 0 and time.perf_counter() - begun < 10
    assert all(verb in told.stdout for verb in VERBS)
    code = "import sys, weitiao.cli.app; sys.exit('torch' in sys.modules or 'transformers' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


@pytest.mark.parametrize("verb", VERBS)
def test_every_command_has_help(verb: str) -> None:
    code, said = weitiao(verb, "--help")
    assert code == 0 and "Usage" in said and len(said.splitlines()) > 5


def test_version() -> None:
    assert weitiao("--version") == (0, f"{package.__version__}\n")


@pytest.mark.parametrize(
    "words", [["nonsense"], ["train"], ["train", "a.yaml", "--resume", "b"], ["evaluate"], ["train", "--nonsense"]]
)
def test_wrong_use_exits_2(words: list[str]) -> None:
    assert weitiao(*words)[0] == 2


def test_train_evaluate_runs_and_merge(recipe: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    code, said = weitiao("train", recipe, "method.rank=2", "train.learning_rate=1e-3")
    assert code == 0 and f"report: {run}/report.html" in said
    assert re.search(r"loss .* \d+ .*\[.*\]", said), "the table of figures with n and interval"
    assert "train.evaluate_every" not in said, "what was asked for needs no reason"
    assert "max_length" not in said and "max_length = 256: the model takes 256" in weitiao("why", run)[1]
    written = yaml.safe_load((run / "recipe.yaml").read_text())
    assert (written["method"]["rank"], written["train"]["learning_rate"]) == (2, 1e-3)

    code, said = weitiao("evaluate", run, "--json", "--metric", "loss", "--metric", "exact_match", "--limit", "3")
    scores = json.loads(said)
    assert code == 0 and list(scores) == ["loss", "exact_match"] and scores["exact_match"]["n"] == 3
    after = json.loads((run / "scores.json").read_text())["after"]["loss"]
    assert scores["loss"]["value"] == pytest.approx(after["value"], rel=1e-5)

    code, said = weitiao("runs", tmp_path, "--json")
    (row,) = json.loads(said)
    assert (code, row["run"], row["status"], row["method"], row["metric"]) == (0, "run", "finished", "lora", "loss")
    assert row["after"] == after["value"]
    assert "finished" in weitiao("runs", tmp_path)[1]

    code, said = weitiao("merge", run, tmp_path / "merged")
    assert code == 0 and "100.00% of the most probable tokens are the same" in said
    assert (tmp_path / "merged" / "model.safetensors").is_file()
    code, said = weitiao("merge", run, tmp_path / "merged")
    assert code == 2 and "is not empty. Name a folder that does not exist yet." in said


def test_quiet_prints_nothing(recipe: Path) -> None:
    assert weitiao("train", recipe, "--quiet") == (0, "")


def test_generate_with_and_without_compare(done: Path) -> None:
    code, said = weitiao("generate", done, "what time is it", "--max-new-tokens", "4")
    assert code == 0 and said.strip()
    code, said = weitiao("generate", done, "what time is it", "--compare", "--max-new-tokens", "4", "--system", "be kind")
    assert code == 0 and "before" in said and "after" in said


def test_evaluate_on_another_file_and_without_a_run(done: Path, tiny_llama: Path, tmp_path: Path) -> None:
    other = write_jsonl(tmp_path / "other.jsonl", chat_rows(7))
    code, said = weitiao("evaluate", done, "--data", other, "--json", "--metric", "loss")
    assert code == 0 and json.loads(said)["loss"]["n"] == 7
    code, said = weitiao("evaluate", tiny_llama, "--data", other, "--json", "--metric", "loss")
    assert code == 0 and json.loads(said)["loss"]["n"] == 7
    code, said = weitiao("evaluate", tiny_llama, "--metric", "loss")
    assert code == 2 and "a model without a run has no held-out rows: name a file with --data FILE." in said
    code, said = weitiao("evaluate", done, "--metric", "los")
    assert code == 2 and "there is no metric called 'los'. Did you mean 'loss'?" in said


def test_undefined_score_is_null_in_json_and_named(done: Path, tmp_path: Path) -> None:
    """A file whose rows all have one class has no AUROC."""
    rows = [{"prompt": f"what time is it {i}", "completion": "paris"} for i in range(6)]
    file = write_jsonl(tmp_path / "one.jsonl", rows)
    code, said = weitiao("evaluate", done, "--data", file, "--json", "--metric", "auroc", "--metric", "json_valid")
    made = json.loads(said[said.index("{") :])
    assert code == 0 and made["auroc"]["value"] is None and made["auroc"]["n"] == 0 and made["json_valid"]["n"] == 6
    assert "the references are no closed set of answers" in made["auroc"]["notes"][0]


def test_evaluate_table_has_intervals(done: Path) -> None:
    code, said = weitiao("evaluate", done, "--metric", "loss")
    assert code == 0 and re.search(r"loss .*\d\.\d{3} \[\d\.\d{3}, \d\.\d{3}\], n = \d+ .*bootstrap over rows", said)


def test_neither_run_nor_model(tmp_path: Path) -> None:
    code, said = weitiao("evaluate", tmp_path / "nowhere")
    assert code == 2 and "is not a model. Use a folder" in said
    code, said = weitiao("train", "--resume", tmp_path / "nowhere")
    assert code == 2 and f"{tmp_path}/nowhere does not exist. `weitiao runs` lists the runs here." in said


def test_run_without_result_suggests_resume(done: Path) -> None:
    (done / "best" / "weights.safetensors").unlink()
    code, said = weitiao("generate", done, "what")
    assert code == 2 and f"has no result yet (finished). Resume it with: weitiao train --resume {done}" in said


def test_runs_of_empty_folder(tmp_path: Path) -> None:
    assert weitiao("runs", tmp_path / "nothing") == (0, f"no runs in {tmp_path}/nothing/\n")
    assert weitiao("runs", tmp_path / "nothing", "--json") == (0, "[]\n")


def test_schema_is_json_schema(tmp_path: Path) -> None:
    code, said = weitiao("schema")
    schema = json.loads(said)
    jsonschema.Draft202012Validator.check_schema(schema)
    assert code == 0 and {"base", "data", "method", "train"} <= schema["properties"].keys()
    assert weitiao("schema", tmp_path / "s.json")[0] == 0
    assert json.loads((tmp_path / "s.json").read_text()) == schema


@pytest.mark.parametrize(
    ("key", "words"),
    [
        ("train.epochs", ["train.epochs", "2.0", "Passes over the data."]),
        ("lora", ["rank", "16", "Rank R of the change", "lora: Train a low-rank change"]),
        ("train", ["train.warmup_ratio", "train.max_grad_norm", "adamw"]),
        ("data", ["data.weight", "data.columns"]),
        ("adamw", ["betas", "(0.9, 0.999)"]),
        ("", ["base", "(required)", "overlong", "evaluate.samples"]),
    ],
)
def test_explain(key: str, words: list[str]) -> None:
    code, said = weitiao("explain", key) if key else weitiao("explain")
    assert code == 0 and all(word in said for word in words), said


def test_explain_unknown_key() -> None:
    code, said = weitiao("explain", "train.epoch")
    assert code == 2 and "there is no key or component 'train.epoch'. Did you mean 'train.epochs'?" in said


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("method=lorra", f"no method called 'lorra'. Did you mean 'lora'? There are: {', '.join(names('method'))}"),
        ("objective=sfd", "there is no objective called 'sfd'. Did you mean 'sft'?"),
        ("method.rnak=3", "unknown key 'method.rnak'. Did you mean 'rank'?"),
        ("trian.epochs=3", "unknown key 'trian'. Did you mean 'train'?"),
        ("method.target_modules=[qproj]", "no linear layer matches 'qproj'; names are: down_proj, gate_proj, k_proj"),
        ("train.precision=fp16", "about 100 times slower than bf16 (no CPU kernels). Use bf16, fp32 or auto."),
    ],
)  # fmt: skip
def test_wrong_option_exits_2_with_suggestion(recipe: Path, override: str, words: str) -> None:
    code, said = weitiao("train", recipe, override)
    assert code == 2 and words in said


def test_existing_run_folder_refused(done: Path, recipe_dict: dict, tmp_path: Path) -> None:
    told = shell("train", write_recipe(tmp_path, recipe_dict))
    assert told.returncode == 2 and f"out: {done} holds a run already (finished)." in told.stderr
    assert "Traceback" not in told.stderr and "--overwrite (the old run is moved away, not deleted)" in told.stderr


def test_non_finite_loss_exits_3(recipe: Path, tmp_path: Path) -> None:
    code, said = weitiao(
        "train", recipe, "train.learning_rate=1e30", "train.steps=8", "train.max_grad_norm=null", "train.optimizer=sgd"
    )
    assert code == 3 and "was not finite 3 times in a row" in said and "it would be rollback number 3" in said
    assert (
        f"The result is the last sound checkpoint, in {tmp_path}/run; the rows are in {tmp_path}/run/suspects.jsonl" in said
    )
    assert "A lower train.learning_rate is the usual cure." in said


def test_fixed_recipe_may_restart(recipe: Path) -> None:
    assert weitiao("train", recipe, "base=./nowhere")[0] == 2
    assert weitiao("train", recipe)[0] == 0


def test_few_validation_rows_warning(recipe: Path) -> None:
    assert "rows are held out: scores on them are imprecise" in weitiao("train", recipe)[1]


def test_rows_truncated_for_evaluation_reported(done: Path, tmp_path: Path) -> None:
    """A file with a row longer than the model takes: refused as in training, or cut with a word."""
    long = [{"prompt": "what time is it " * 200, "completion": "paris"}] * 2
    file = tmp_path / "long.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in long))
    code, said = weitiao("evaluate", done, "--data", file)
    assert code == 2 and "max_length is 256" in said


def test_check_and_why_as_json(recipe: Path, done: Path, tmp_path: Path) -> None:
    code, said = weitiao("check", recipe, f"out={tmp_path / 'checked'}", "--json")
    findings = json.loads(said)
    assert code == 0 and {"name", "level", "message"} == set(findings[0]) and len(findings) > 5
    code, said = weitiao("why", done, "--json")
    record = json.loads(said)
    assert code == 0 and record["summary"] and {x["key"] for x in record["decisions"]} >= {"max_length", "validation.rows"}


def test_shipped_recipe_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    code, said = weitiao("check", "smollm2/sft_lora", "data=nowhere.jsonl")
    assert code == 2 and "nowhere.jsonl" in said and "there is no recipe" not in said
    code, said = weitiao("check", "smollm2/sft_lorra")
    assert code == 2 and "there is no recipe smollm2/sft_lorra. `weitiao init --list` lists" in said


def test_verbose_shows_decisions(recipe: Path) -> None:
    code, said = weitiao("train", recipe, "-v")
    assert code == 0 and re.search(r"max_length = 256 +\(", said)


def test_completion_is_on() -> None:
    assert "--install-completion" in weitiao("--help")[1]
