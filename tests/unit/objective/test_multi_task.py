"""Several tasks at once: each task's loss and gradient are its own; evaluated, predicted and refused task by task."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from support.command import weitiao
from support.models import save_model
from support.parts import make_objective
from support.rows import chat_rows, question_rows, rated_rows, write_jsonl
from weitiao.core import events as logged
from weitiao.core.batch import pack, select_segments
from weitiao.core.errors import DataError, RecipeError
from weitiao.core.example import Task, TextLabel, TextScore
from weitiao.core.objective import Objective
from weitiao.core.registry import find_module
from weitiao.data.encode import Rows, encode
from weitiao.data.loader import Loader
from weitiao.objective.objectives.multi_task import MultiTask, _by_task
from weitiao.pipeline.load import heads_for
from weitiao.train.distributed import Distributed
from weitiao.train.step import Step
from weitiao.train.steps.pcgrad import _without_conflicts

CPU = torch.device("cpu")
EXAMPLES = [
    Task("kind", TextLabel(f"the quick {'fox ' * i}", ("abc"[i % 3],)))
    if i % 2
    else Task("number", TextScore(f"lazy {'dog ' * i}", (float(i),)))
    for i in range(8)
]


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_model(tmp_path_factory.mktemp("encoder") / "bert", "bert")


def many(**settings: Any) -> MultiTask:
    return MultiTask(tasks=make_objective("multi_task").tasks, **settings).fit(EXAMPLES)


@pytest.fixture
def made(open_model: Any) -> Any:
    """made(objective) -> (model, the batch of all examples)."""

    def make(objective: MultiTask) -> tuple[Any, Any]:
        model = open_model(objective="causal_lm")
        torch.manual_seed(1)
        heads = heads_for(model.model, objective)[0]
        for head in heads.values():
            for weight in head.parameters():
                torch.nn.init.normal_(weight, std=0.3)
        model.heads = torch.nn.ModuleDict(heads)
        rows = [row for x in EXAMPLES for row in objective.rows(x, model.processor)]
        return model, pack(rows)

    return make


def gradients(model: Any, objective: Objective, step: str, window: list) -> dict[str, torch.Tensor]:
    for weight in model.trainable().values():
        weight.grad = None
    find_module(Step, step).compute_gradients(model, objective, window, Distributed(CPU))
    found = {name: p.grad for name, p in model.trainable().items() if p.grad is not None}
    return {name: x.clone() for name, x in found.items()}


def test_gradient_is_weighted_sum_of_tasks(made: Any) -> None:
    objective = many(weights={"kind": 2.0, "number": 0.5})
    model, batch = made(objective)
    together = gradients(model, objective, "accumulate", [batch])
    whole = {name: torch.zeros_like(x) for name, x in together.items()}
    for task, mine, _ in _by_task(batch):
        view, part = model.for_task(task), objective.tasks[task]
        alone = gradients(view, part, "accumulate", [mine])
        for name, x in alone.items():
            own = name.replace("head.", f"head.{task}/", 1) if name.startswith("head.") else name
            whole[own] += objective.weight(task) * x
    assert together.keys() == whole.keys() and any("kind/" in x for x in whole) and any("number/" in x for x in whole)
    assert all(torch.allclose(x, whole[name], rtol=1e-5, atol=1e-7) for name, x in together.items())


def test_uncertainty_weights_equal_kendall(made: Any) -> None:
    """eq. 10: L exp(-s) + s / 2, whose gradient by s is 1/2 - L exp(-s)."""
    objective = many(weights="uncertainty")
    model, batch = made(objective)
    s = model.heads["weights"].log_variance
    with torch.no_grad():
        s.copy_(torch.tensor([0.7, -0.4]))
    grown = gradients(model, objective, "accumulate", [batch])["head.weights.log_variance"]
    for i, task in enumerate(objective.tasks):
        mine = next(x for name, x, _ in _by_task(batch) if name == task)
        part, view = objective.tasks[task], model.for_task(task)
        mean = float(part.loss(view, mine).totals[part.name].detach()) / part.counts(mine)[part.name]
        assert float(grown[i]) == pytest.approx(0.5 - mean * float(torch.exp(-s[i].detach())), rel=1e-4)


def test_pcgrad_removes_conflicts() -> None:
    """Algorithm 1 by hand: two that conflict are each projected onto the other's normal plane; others stay."""
    import random

    a, b = torch.tensor([1.0, 0.0]), torch.tensor([-1.0, 1.0])
    (found,) = _without_conflicts([[a], [b]], random.Random(0))
    assert torch.allclose(found, (a + b / 2) + (b + a))
    (alike,) = _without_conflicts([[a], [torch.tensor([1.0, 1.0])]], random.Random(0))
    assert torch.equal(alike, torch.tensor([2.0, 1.0]))


def test_pcgrad_leaves_heads(made: Any) -> None:
    """What conflicts is in the shared model; a head has its own task's gradient."""
    objective, plainly = many(gradients="pcgrad"), many()
    model, batch = made(objective)
    cut, plain = (
        gradients(model, objective, objective.traits.step, [batch]),
        gradients(model, plainly, "accumulate", [batch]),
    )
    heads = [name for name in plain if name.startswith("head.")]
    assert len(heads) == 4 and all(torch.allclose(cut[name], plain[name], rtol=1e-5) for name in heads)


def test_reported_loss_is_step_loss(made: Any) -> None:
    """The guard asks rows again for the same quantity that it remembered."""
    for settings in ({"weights": {"kind": 0.01}}, {"weights": "uncertainty"}):
        objective = many(**settings)
        objective = objective.model_copy(
            update={"tasks": {name: x.model_copy(update={"dropout": 0.0}) for name, x in objective.tasks.items()}}
        )
        model, batch = made(objective)
        taken = find_module(Step, "accumulate").compute_gradients(model, objective, [batch], Distributed(CPU))
        counts, told = objective.counts(batch), objective.task_losses(model, batch)
        assert sum(told[task] / counts[task] for task in counts) == pytest.approx(taken.loss, rel=1e-6)
        assert taken.tasks == "kind + number"
        assert ("kind weight" in taken.notes) == (settings["weights"] == "uncertainty")


def test_pcgrad_without_conflict_is_plain_step(made: Any) -> None:
    """Where the tasks' gradients do not conflict in sum, nothing changes; where they do, every task's loss still falls."""
    objective = many(gradients="pcgrad")
    assert objective.traits.step == "pcgrad"
    model, batch = made(objective)
    both = [pack([_row(batch, i)]) for i in range(len(batch.lengths))]  # also one row a micro-batch
    cut, plain = (gradients(model, objective, step, both) for step in ("pcgrad", "accumulate"))
    each = {}
    for task, _, segments in _by_task(batch):
        each[task] = gradients(model, objective, "accumulate", [select_segments(batch, segments)])
    dot = lambda x, y: sum(float((x[n].double() * y[n].double()).sum()) for n in x if n in y)  # noqa: E731
    if dot(each["kind"], each["number"]) >= 0:
        assert all(torch.allclose(x, plain[name], atol=1e-7) for name, x in cut.items())
    assert all(dot(x, cut) >= -1e-9 for x in each.values())


def _row(batch: Any, i: int) -> Any:
    return batch.rows[i]


# -- rows -------------------------------------------------------------------------------------------------------------


def test_sampling_temperature() -> None:
    rows = {"large": 9000, "small": 90}
    assert many(temperature=1.0).epoch_weights(rows) == {} == many(temperature=9.0).epoch_weights({"large": 0, "small": 0})
    often = many(temperature=2.0).epoch_weights(rows)
    met = {task: often[task] * n for task, n in rows.items()}
    assert met["large"] / met["small"] == pytest.approx(10.0)  # the square root of 100
    assert sum(met.values()) == pytest.approx(sum(rows.values()))


def test_micro_batch_has_one_task(tmp_path: Path, open_model: Any) -> None:
    from weitiao.core.example import SourcedExample, SourceLocation

    objective, model = many(), open_model()
    encode_with_offsets = [SourcedExample(x, SourceLocation("a", i, 0)) for i, x in enumerate(EXAMPLES)]
    rows = encode(encode_with_offsets, objective, model.processor, "id", 64, "each").rows
    assert rows.tasks == [x.task for x in EXAMPLES] and isinstance(rows.of("kind"), Rows)
    assert len(rows.of("kind")) == 4 and rows.of("kind").tasks == []
    loader = Loader(rows, 0, batch_size=8, micro_batch_tokens=10**6)
    assert [set(x.tasks) for x in loader[0]] == [{"kind"}, {"number"}]
    assert [len(set(x.tasks)) for x in replace(loader, micro_batch_tokens=None)[0]] == [2]


# -- to the end -------------------------------------------------------------------------------------------------------


@pytest.fixture
def recipe(encoder: Path, tmp_path: Path) -> dict[str, Any]:
    kinds = [{"text": f"{'fox' if i % 2 else 'dog'} {i}", "label": "ab"[i % 2]} for i in range(40)]
    files = {"kind": write_jsonl(tmp_path / "kinds.jsonl", kinds)}
    files["number"] = write_jsonl(tmp_path / "numbers.jsonl", rated_rows(40))
    files["where"] = write_jsonl(tmp_path / "where.jsonl", question_rows(40))
    tasks = {"kind": "classification", "number": "regression", "where": "question_answering"}
    return {
        "base": str(encoder),
        "data": [{"path": str(file), "task": task} for task, file in files.items()],
        "validation": 0.3,
        "objective": {"name": "multi_task", "tasks": tasks},
        "train": {"steps": 4, "batch_size": 12},
        "evaluate": {"metrics": "auto", "samples": 2},
    }


@pytest.mark.parametrize("how", [{}, {"weights": "uncertainty"}, {"gradients": "pcgrad"}, {"temperature": 3.0}])
def test_multi_task_trains_and_reopens(
    train_tiny: Any, recipe: dict[str, Any], tmp_path: Path, how: dict[str, Any]
) -> None:
    recipe["objective"] |= how
    run = train_tiny(**recipe)
    after = run.read("scores.json")["after"]
    assert {"loss", "kind.accuracy", "number.pearson", "where.squad_em"} <= set(after)
    assert after["loss"]["value"] == pytest.approx(sum(after[f"{x}.loss"]["value"] for x in recipe["objective"]["tasks"]))
    assert after["loss"]["n"] == sum(after[f"{x}.loss"]["n"] for x in recipe["objective"]["tasks"])
    assert {"kind loss", "number loss", "where loss"} <= set(next(run.events(logged.Step)).notes)
    assert len(run.read("samples.jsonl")) == 6
    asked = write_jsonl(tmp_path / "asked.jsonl", [{"text": "the fox", "id": 7}])
    output = tmp_path / "said.jsonl"
    code, said = weitiao("predict", run.folder, "--input", asked, "--output", output, "--task", "number")
    assert code == 0, said
    (line,) = [json.loads(x) for x in output.read_text().splitlines()]
    assert line["id"] == 7 and isinstance(float(line["predicted"]), float)
    code, said = weitiao("evaluate", run.folder, "--metric", "kind.accuracy", "--json")
    assert code == 0 and json.loads(said)["kind.accuracy"]["value"] == pytest.approx(after["kind.accuracy"]["value"])
    code, said = weitiao("evaluate", run.folder, "--data", recipe["data"][0]["path"], "--task", "kind")
    assert code == 0 and "kind.f1" in said and "number" not in said, said


def test_generation_and_classification_together(train_tiny: Any, tmp_path: Path) -> None:
    """A generative task next to one with a head, on a decoder; the former is queried with text."""
    kinds = [{"text": f"fox {i}", "label": "ab"[i % 2]} for i in range(24)]
    data = [
        {"path": str(write_jsonl(tmp_path / "chats.jsonl", chat_rows(40))), "task": "talk"},
        {"path": str(write_jsonl(tmp_path / "kinds.jsonl", kinds)), "task": "kind"},
    ]
    run = train_tiny(
        data=data,
        validation=0.5,
        objective={"name": "multi_task", "tasks": {"talk": "sft", "kind": "classification"}},
        evaluate={"metrics": "auto", "samples": 1},
        train={"steps": 2},
    )
    after = run.read("scores.json")["after"]
    assert {"talk.perplexity", "talk.exact_match", "kind.f1"} <= set(after)
    assert any(x["name"] == "stop_token" for x in run.read("preflight.json"))
    code, said = weitiao("generate", run.folder, "what time is it", "--max-new-tokens", "3")
    assert code == 0, said
    code, said = weitiao("predict", run.folder, "--input", data[0]["path"], "--output", tmp_path / "x", "--task", "talk")
    assert code == 2 and "generates its answers" in said


def test_thresholds_per_task(train_tiny: Any, recipe: dict[str, Any], tmp_path: Path) -> None:
    rows = [{"text": f"fox {i}", "labels": ["a"] if i % 2 else ["a", "b"]} for i in range(40)]
    recipe["data"][0]["path"] = str(write_jsonl(tmp_path / "several.jsonl", rows))
    plan = train_tiny(**recipe).read("resolved.json")
    assert set(plan["objective"]["tasks"]["kind"]["threshold"]) == {"a", "b"}
    assert isinstance(plan["objective"]["tasks"]["where"]["threshold"], float)
    assert {"kind: objective.threshold", "where: objective.threshold"} <= set(plan["decisions"])


def test_best_metric_of_one_task(train_tiny: Any, recipe: dict[str, Any]) -> None:
    run = train_tiny(
        **{**recipe, "train": {"steps": 4, "batch_size": 12, "best_metric": "kind.accuracy", "evaluate_every": 2}}
    )
    assert all("kind.accuracy" in x.scores and "where.squad_em" not in x.scores for x in run.events(logged.Validation))


# -- what is refused --------------------------------------------------------------------------------------------------


def test_same_file_for_two_tasks(train_tiny: Any, recipe: dict[str, Any], tmp_path: Path) -> None:
    """A row that one of them cannot use is still the other's; tasks without held-out rows keep their defaults."""
    rows = [{"text": f"fox {i}", "one": "ab"[i % 2], "two": ["x"] if i % 3 else ["x", "y"]} for i in range(40)]
    rows[8]["one"] = None
    file = str(write_jsonl(tmp_path / "both.jsonl", rows))
    of = lambda task, label: {"path": file, "task": task, "columns": {"text": "text", "label": label}}  # noqa: E731
    recipe |= {
        "data": [of("one", "one"), of("two", "two")],
        "validation": [of("one", "one")],
        "objective": {"name": "multi_task", "tasks": {"one": "classification", "two": "classification"}},
        "max_bad_fraction": 0.1,
    }
    run = train_tiny(**recipe)
    after = run.read("scores.json")["after"]
    assert after["one.loss"]["n"] == 39 and not any(name.startswith("two.") for name in after)
    assert str(run.decisions["two: objective.threshold"].reason) == "there are no validation rows to choose thresholds on"
    both = {**recipe, "validation": 0.3, "evaluate": {"metrics": "auto", "samples": 0, "data": recipe["data"]}}
    after = train_tiny(**both, out=str(tmp_path / "both")).read("scores.json")["after"]
    assert (after["one.loss"]["n"], after["two.loss"]["n"]) == (39, 40)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"best_metric": "f1"}, "train.best_metric: f1 of which task? Write task.f1"),
        ({"weights": {"kind": float("inf")}}, "expected a finite number, not inf"),
        ({"data": 0}, "task: each row belongs to a task; name one of: kind, number, where"),
        ({"task": "kid"}, "task: there is no 'kid'. Did you mean 'kind'"),
        ({"lacks": True}, "task where has no training rows"),
        ({"one": True}, "task kind: data: every row has the class"),
        ({"best_metric": "kind.pearson"}, "kind.pearson does not fit objective multi_task"),
        ({"weights": {"kid": 2}}, "weights: there is no task 'kid'. Did you mean 'kind'"),
        ({"weights": {"kind": -1}}, "but must be positive and finite"),
        ({"tasks": {"a.b": "sft"}}, "dots, slashes and spaces are not allowed"),
        ({"tasks": {"a": "multi_task"}}, "multi_task cannot contain itself"),
        ({"tasks": {"a": {"name": "embedding", "mini_batch_size": 4}}}, "a needs step gradient_cache"),
        ({"regularizers": ["neftune"]}, "regularizers: each changes the loss of one task"),
        ({"heads": True}, "all heads share one head_learning_rate"),
    ],
)
def test_invalid_multi_task_refused(
    train_tiny: Any, recipe: dict[str, Any], tmp_path: Path, change: dict, words: str
) -> None:
    objective = recipe["objective"]
    if "data" in change:
        del recipe["data"][0]["task"]
    if "task" in change:
        recipe["data"][0]["task"] = change["task"]
    if "lacks" in change:
        del recipe["data"][2]
    if "one" in change:
        rows = [{"text": f"fox {i}", "label": "a"} for i in range(9)]
        recipe["data"][0]["path"] = str(write_jsonl(tmp_path / "one.jsonl", rows))
    if "best_metric" in change:
        recipe["train"]["best_metric"] = change["best_metric"]
    if "heads" in change:
        objective["tasks"]["kind"] = {"name": "classification", "head_learning_rate": 1e-2}
    recipe["objective"] = {**objective, **{key: change[key] for key in ("weights", "tasks") if key in change}}
    more = {"regularizers": change["regularizers"]} if "regularizers" in change else {}
    with pytest.raises((RecipeError, DataError)) as error:
        train_tiny(**recipe, **more)
    assert words in str(error.value)


def test_single_task_refused(train_tiny: Any, chat_file: Path) -> None:
    with pytest.raises(RecipeError, match="task: talk needs objective: multi_task; sft has one task"):
        train_tiny(data=[{"path": str(chat_file), "task": "talk"}])
