"""Any method with any objective: trained, saved, reopened and evaluated with the same scores.

The table of what was tried stands in docs/methods.md; this test keeps it true. `make proof` tries every pair, `make test`
those of a few methods and objectives.
"""

import math
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from support.models import DECODERS, save_model
from support.parts import make_objective, method_config
from support.rows import chat_rows, question_rows, rated_rows, write_jsonl
from support.runs import finished_run
from weitiao.core.errors import RecipeError
from weitiao.core.method import Method
from weitiao.core.objective import Objective
from weitiao.core.registry import find, names
from weitiao.core.reporter import Reporter
from weitiao.pipeline.evaluate import evaluate

DOCS = Path(__file__).parents[2] / "docs"
PAIRS = [
    (objective, "llama")
    for objective in names(Objective)
    if not (make_objective(objective).traits.needs_mlm_head or make_objective(objective).traits.needs_encoder_decoder)
]
PAIRS += [(objective, "bert") for objective in names(Objective) if not make_objective(objective).traits.generative]
PAIRS += [(objective, "t5") for objective in names(Objective) if make_objective(objective).traits.needs_encoder_decoder]
ALWAYS = ("lora", "full", "p_tuning_v2", "sft", "classification")  # of these every pair is tried, of the others with --full
SPLITS_BATCH = ("bilora",)  # methods whose two levels are trained on different rows of a batch
ROWS = {
    "Chat": chat_rows(24),
    "Text": [{"text": row["messages"][0]["content"]} for row in chat_rows(24)],
    "Pair": [{"query": f"the fox {i}", "document": f"dog {'and ' * (i % 3)}{i}", "negatives": ["liquid", f"boxes {i}"]}
             for i in range(24)],
    "TextLabel": [{"text": row["messages"][0]["content"], "label": "abc"[i % 3]} for i, row in enumerate(chat_rows(24))],
    "TextScore": rated_rows(24),
    "SourceTarget": [{"source": f"the fox {i}", "target": f"dog {'and ' * (i % 3)}{i}"} for i in range(24)],
    "ExtractiveQA": question_rows(24),
    "TokenTags": [{"tokens": ["the", "fox", "asks", *["on"] * (i % 4)], "tags": ["O", "B-who", "I-who", *["O"] * (i % 4)]}
                for i in range(24)],
}  # fmt: skip


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    place = tmp_path_factory.mktemp("bases")
    return {family: save_model(place / family, family) for family in {family for _, family in PAIRS}}


@pytest.mark.parametrize(
    ("objective", "family", "method"),
    [
        pytest.param(objective, family, method, marks=() if {method, objective} & {*ALWAYS} else pytest.mark.full)
        for objective, family in PAIRS
        for method in names(Method)
    ],
)
def test_pair_trains_saves_reopens_evaluates(
    method: str, objective: str, family: str, train_tiny: Any, bases: Any, tmp_path: Path
) -> None:
    example_type = make_objective(objective).traits.example_type.__name__
    more = {"forget_run": finished_run(bases[family])} if method == "f_learning" and family in DECODERS else {}
    shape: dict[str, Any] = {
        "base": str(bases[family]),
        "data": sources(example_type, tmp_path),
        "objective": make_objective(objective).as_recipe(),
        "method": method_config(method, family, **more),
        "train": {"steps": 2},
    }
    if not fits(method, objective):
        splits = "it splits the rows of each batch, but this objective needs them together"
        with pytest.raises(RecipeError, match=f"{splits}|{method} does not support encoder-decoder models"):
            train_tiny(**shape)
        return
    run = train_tiny(**shape)
    after = run.read("scores.json")["after"]["loss"]
    assert run.is_finished and math.isfinite(after["value"]) and after["n"] >= 1
    again = evaluate(str(run.folder), Reporter(Console(quiet=True)), metrics=("loss",))["loss"]
    assert again.value == pytest.approx(after["value"], rel=1e-6) and again.n == after["n"]


def sources(example_type: str, place: Path) -> list[dict]:
    if example_type == "Task":
        tasks = (("kind", "TextLabel"), ("number", "TextScore"))
        return [{"path": str(write_jsonl(place / f"{task}.jsonl", ROWS[kind])), "task": task} for task, kind in tasks]
    return [{"path": str(write_jsonl(place / "rows.jsonl", ROWS[example_type]))}]


def fits(method: str, objective: str) -> bool:
    splits = method in SPLITS_BATCH and make_objective(objective).traits.batch_coupled
    return not splits and (
        find(Method, method).encoder_decoder or not make_objective(objective).traits.needs_encoder_decoder
    )


@pytest.mark.parametrize("page", ["methods.md", "methods.zh.md"])
def test_docs_table_matches(page: str, request: pytest.FixtureRequest) -> None:
    head = ["", *(f"`{objective}`, {family}" for objective, family in PAIRS)]
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    for method in names(Method):
        lines.append(f"| `{method}` |" + "".join(" ✓ |" if fits(method, objective) else " – |" for objective, _ in PAIRS))
    table, text = "\n".join(lines), (DOCS / page).read_text(encoding="utf-8")
    before, rest = text.split("<!-- pairs -->\n")
    _, after = rest.split("\n<!-- end of pairs -->")
    if request.config.getoption("--record"):
        (DOCS / page).write_text(f"{before}<!-- pairs -->\n{table}\n<!-- end of pairs -->{after}", encoding="utf-8")
        return
    assert rest == f"{table}\n<!-- end of pairs -->{after}", (
        "run pytest --record tests/invariants/test_method_objective_pairs.py"
    )
