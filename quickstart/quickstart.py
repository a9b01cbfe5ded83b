"""The quickstart: fine-tune SmolLM2-135M on real data, on a CPU, and measure before and after.

python quickstart/quickstart.py            about five minutes on 2 cores
python quickstart/quickstart.py --short    a few steps, to check that everything runs
"""

import argparse
import json
import time
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

import prepare_data
from weitiao import Model, Recipe, Run, Score, WeitiaoError, load, resume, train
from weitiao.core.score import proportion
from weitiao.evaluate.report.run_report import write_report

RECIPE = "recipes/smollm2/sft_lora.yaml"
SHORT = {"out": "runs/quickstart-short", "train.steps": 6, "train.evaluate_every": 3, "evaluate.limit": 16} | {
    "evaluate.forgetting": False
}
SMALL_TALK = ("Hey there, how do you feel today?", "Do you have a sister?")  # not in the training data


def main() -> None:
    """Prepare the data, train, compare with the best baselines, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--short", action="store_true", help="a few steps only")
    short = parser.parse_args().short
    started, console = time.time(), Console(highlight=False)
    try:
        prepare_data.main()
        console.rule("weitiao 微调 quickstart")
        recipe = Recipe.load(RECIPE, **(SHORT if short else {}))
        run = train_or_resume(recipe)
        model = load(run)
        name, majority = majority_baseline(recipe.evaluate.limit)
    except WeitiaoError as error:
        console.print(str(error), style="bold red")
        raise SystemExit(error.exit_code) from None
    recorded = {name: majority.as_json(), **run.scores.get("baselines", {})}
    run.write("scores.json", {**run.scores, "baselines": recorded})
    write_report(run)
    show_scores(console, run.scores, {name: Score.from_json(x) for name, x in recorded.items()}, short)
    show_answers(console, run.read("samples.jsonl"))
    show_small_talk(console, model)
    console.print(f"\n[bold]All details[/]: {run.folder}/report.html   ({time.time() - started:.0f} s)")
    print(
        "Next, try:\n"
        f'  .venv/bin/weitiao chat {run.folder} --compare --system "{prepare_data.SYSTEM}"\n'
        f"  .venv/bin/weitiao merge {run.folder} {run.folder}-merged\n"
        f"  .venv/bin/weitiao train {RECIPE} method.rank=32 out=runs/mine"
    )


def train_or_resume(recipe: Recipe) -> Run:
    """An interrupted quickstart continues; a finished one is moved away and trained again."""
    if (Path(recipe.out) / "checkpoints").exists() and not Run.open(recipe.out).is_finished:
        return resume(recipe.out)
    return train(recipe, overwrite=True)


def majority_baseline(limit: int | None) -> tuple[str, Score]:
    """What needs no model at all; the best prompted base is measured in the run itself."""
    test = read_rows("test.jsonl")[:limit]
    topics = Counter(row["messages"][2]["content"] for row in read_rows("train.jsonl"))
    majority = topics.most_common(1)[0][0]
    hits = sum(row["messages"][2]["content"] == majority for row in test)
    return f"always '{majority}'", proportion("accuracy", hits, len(test))


def read_rows(name: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (prepare_data.DATA / name).read_text(encoding="utf-8").splitlines()]


def show_scores(console: Console, scores: Mapping[str, Any], baselines: dict[str, Score], short: bool) -> None:
    """Every score with its interval, and the gain over the best baseline."""
    before, after = ({name: Score.from_json(score) for name, score in scores[when].items()} for when in ("before", "after"))
    compared = {"base, most probable topic": before["accuracy"], **baselines}
    best = max(compared, key=lambda name: compared[name].value)
    table = Table("on held-out messages", "accuracy [95 % CI]", title="Routing a message to its topic")
    for name, score in compared.items():
        table.add_row(name + ("  (best baseline)" if name == best else ""), str(score))
    table.add_row("fine-tuned, most probable topic", str(after["accuracy"]), style="bold green")
    table.add_section()
    for name in ("exact_match", "f1", "loss"):
        table.add_row(f"base, {name}", str(before[name]))
        table.add_row(f"fine-tuned, {name}", str(after[name]), style="green")
    console.print(table)
    gain = 100 * (after["accuracy"].value - compared[best].value)
    separate = "do not overlap" if after["accuracy"].differs_from(compared[best]) else "overlap"
    note = " (6 steps only show that everything runs)" if short else ""
    console.print(f"gain over the best baseline: [bold]{gain:+.1f} points[/]; the intervals {separate}{note}")


def show_answers(console: Console, samples: list[dict[str, str]]) -> None:
    """The same test messages, answered before and after."""
    table = Table("message", "before", "after", "correct", title="The same messages, before and after")
    for sample in samples[:5]:
        message = sample["prompt"].split("\nuser: ")[-1]
        color = "green" if sample["after"] == sample["reference"] else "red"
        table.add_row(message, sample["before"], f"[{color}]{sample['after']}[/]", sample["reference"])
    console.print(table)


def show_small_talk(console: Console, model: Model) -> None:
    """The chat part of the data, tested with new messages."""
    table = Table("small talk", "before", "after")
    prompts = [[prepare_data.turn("system", "You are a friendly robot."), prepare_data.turn("user", x)] for x in SMALL_TALK]
    with model.disable_adapter():
        before = model.generate(prompts, max_new_tokens=30)
    for row in zip(SMALL_TALK, before, model.generate(prompts, max_new_tokens=30)):
        table.add_row(*row)
    console.print(table)


if __name__ == "__main__":
    main()
