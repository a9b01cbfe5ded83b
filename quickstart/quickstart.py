"""The quickstart: fine-tune SmolLM2-135M on real data, on a CPU, and show with numbers what it brought.

python quickstart/quickstart.py            about five minutes on 2 cores
python quickstart/quickstart.py --short    a few steps of the same, to see that everything runs
"""

import argparse
import json
import time
from collections import Counter
from pathlib import Path

from rich.console import Console
from rich.table import Table

import prepare_data
from weitiao.core.errors import WeitiaoError
from weitiao.core.eval_set import EvalSet
from weitiao.core.example import Chat, Turn
from weitiao.core.generation import generate
from weitiao.core.recipe import read_recipe
from weitiao.core.reporter import Reporter
from weitiao.core.score import Score, proportion
from weitiao.evaluate.measure import measure
from weitiao.evaluate.report import write_report
from weitiao.pipeline.inference import Model, open_model
from weitiao.pipeline.train import resume, train

SHORT = ("out=runs/quickstart-short", "train.steps=6", "train.evaluate_every=3", "evaluate.limit=16")
RECIPE = "recipes/smollm2/sft_lora.yaml"


def main() -> None:
    """Prepare, train, compare with the fairest baselines, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--short", action="store_true", help="a few steps only")
    short = parser.parse_args().short
    started, console = time.time(), Console(highlight=False)
    try:
        prepare_data.main()
        recipe = read_recipe(RECIPE, SHORT if short else ())
        console.rule("weitiao 微调 quickstart")
        run = go_on_or_begin(recipe, Reporter(console))
        opened = open_model(str(run.folder))
        limit = recipe.evaluate.limit
        baselines = measure_baselines(opened, limit, Reporter(console))
    except WeitiaoError as error:
        console.print(str(error), style="bold red")
        raise SystemExit(error.exit_code) from None
    scores = run.read("scores.json")
    run.write("scores.json", {**scores, "baselines": {name: score.as_json() for name, score in baselines.items()}})
    write_report(run)
    before, after = ({name: Score(**s) for name, s in scores[when].items()} for when in ("before", "after"))
    show_table(console, before, after, baselines, short)
    show_answers(console, run.read("samples.jsonl"))
    show_small_talk(console, opened)
    console.print(f"\n[bold]The whole story[/]: {run.folder}/report.html   (this took {time.time() - started:.0f} s)")
    print(
        "Next, try:\n"
        f'  .venv/bin/weitiao chat {run.folder} --compare --system "{prepare_data.SYSTEM}"\n'
        f"  .venv/bin/weitiao merge {run.folder} {run.folder}-merged\n"
        f"  .venv/bin/weitiao train {RECIPE} method.rank=32 out=runs/mine"
    )


def go_on_or_begin(recipe, reporter: Reporter):
    """A quickstart that was interrupted goes on; a finished one is put aside and made again."""
    if (Path(recipe.out) / "checkpoints").exists() and not (Path(recipe.out) / "report.html").exists():
        return resume(recipe.out, reporter)
    return train(recipe, reporter, overwrite=True)


def measure_baselines(opened: Model, limit: int | None, reporter: Reporter) -> dict[str, Score]:
    """What the base model can do at its best, and what needs no model at all."""
    examples = [as_chat(row) for row in rows("test.jsonl")]
    shots = json.loads((prepare_data.DATA / "few_shot.json").read_text())
    shown = tuple(t for message, topic in shots for t in (Turn("user", message), Turn("assistant", topic)))
    five_shot = [Chat((x.turns[0], *shown, *x.turns[1:])) for x in examples]
    most = Counter(row["messages"][2]["content"] for row in rows("train.jsonl")).most_common(1)[0][0]
    asked = examples[:limit]
    majority = proportion("accuracy", sum(x.answer == most for x in asked), len(asked))
    eval_set = EvalSet(five_shot, list, five_shot.__getitem__)
    with opened.model.reference():
        track = lambda items, words: reporter.track(items, f"base model, five examples: {words}")  # noqa: E731
        measured = measure(opened.model, opened.objective, eval_set, ("accuracy",), limit, progress=track)
    return {f"always '{most}'": majority, "base, 5 examples, most probable topic": measured.scores["accuracy"]}


def rows(name: str) -> list[dict]:
    return [json.loads(line) for line in (prepare_data.DATA / name).read_text(encoding="utf-8").splitlines()]


def as_chat(row: dict) -> Chat:
    return Chat(tuple(Turn(t["role"], t["content"]) for t in row["messages"]))


def show_table(console: Console, before: dict, after: dict, baselines: dict, short: bool) -> None:
    """Every figure with its interval; the gain is over the best baseline."""
    fair = {"base, most probable topic": before["accuracy"], **baselines}
    best = max(fair, key=lambda name: fair[name].value)
    table = Table("on held-out messages", "share right [95 % interval]", title="Routing a message to its topic")
    for name, score in fair.items():
        table.add_row(name + ("  (best baseline)" if name == best else ""), str(score))
    table.add_row("tuned, most probable topic", str(after["accuracy"]), style="bold green")
    table.add_section()
    for name in ("exact_match", "f1", "loss"):
        table.add_row(f"base, {name}", str(before[name]))
        table.add_row(f"tuned, {name}", str(after[name]), style="green")
    console.print(table)
    gain = after["accuracy"].value - fair[best].value
    apart = after["accuracy"].differs_from(fair[best])
    words = "the intervals are apart" if apart else "the intervals overlap"
    note = " (the short form takes 6 steps: it shows that all runs, not what is learnt)" if short else ""
    console.print(f"gain over the best baseline: [bold]{100 * gain:+.1f} points[/]; {words}{note}")


def show_answers(console: Console, samples: list[dict]) -> None:
    table = Table("message", "before", "after", "right answer", title="The same questions, before and after")
    for sample in samples[:5]:
        message = sample["prompt"].split("\nuser: ")[-1]
        right = sample["after"] == sample["reference"]
        table.add_row(
            message, sample["before"], f"[{'green' if right else 'red'}]{sample['after']}[/]", sample["reference"]
        )
    console.print(table)


def show_small_talk(console: Console, opened: Model) -> None:
    """The chat part, asked with words that are not among the rows."""
    table = Table("small talk", "before", "after")
    for words in ("Hey there, how do you feel today?", "Do you have a sister?"):
        turns = (Turn("system", "You are a friendly robot."), Turn("user", words))
        ids, said = opened.assets.processor.prompt(turns), []
        with opened.model.reference():
            said.append(generate(opened.model, [ids], max_new_tokens=30)[0])
        said.append(generate(opened.model, [ids], max_new_tokens=30)[0])
        table.add_row(words, *(opened.assets.processor.decode(x).strip() for x in said))
    console.print(table)


if __name__ == "__main__":
    main()
