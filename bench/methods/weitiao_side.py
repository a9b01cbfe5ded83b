"""weitiao's side of the methods suite: its own training loop, whose loader waits for the next round.

    python -m bench.methods.weitiao_side --recipe recipe.json --round-steps 2 --steps 8 --out FOLDER

Everything before step 1 is weitiao's own pipeline, and the loop is the one that `weitiao train` runs, with its guard and
its events. A round is timed from when the loader releases its first step until the loop asks for the step after its
last. Before the first round, the untrained method is written in PEFT's format to OUT/adapter (where PEFT has it), and
the rows, in the loop's order, to OUT/rows.jsonl.
"""

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path

import torch
from rich.console import Console

from bench.shared.memory import memory_mb
from bench.shared.workers import Channel, StdioChannel
from weitiao.core.batch import Batch
from weitiao.core.events import Event, Step
from weitiao.core.hardware import device
from weitiao.core.recipe import make_recipe
from weitiao.core.reporter import Reporter
from weitiao.core.run import Run
from weitiao.model.adapters.peft_format import save_adapter
from weitiao.pipeline.assemble import TrainingSetup, assemble
from weitiao.train.distributed import Distributed
from weitiao.train.loop import train
from weitiao.train.signals import Stop
from weitiao.train.step import count_targets


class Finished(Exception):
    """The benchmark has closed the connection."""


class RoundLoader:
    """The loop's loader: step number -> its batches, when the benchmark says go."""

    def __init__(self, channel: Channel, loader: Callable[[int], list[Batch]], run: Run, round_steps: int) -> None:
        self.channel, self.loader, self.round_steps = channel, loader, round_steps
        self.losses, self.started = [], 0.0
        run.callbacks.append(self)

    def on_event(self, run: Run, event: Event) -> None:
        if isinstance(event, Step):
            self.losses.append(event.loss)

    def __call__(self, step: int) -> list[Batch]:
        if step % self.round_steps == 0:
            if step:
                self.channel.send(seconds=time.perf_counter() - self.started, losses=self.losses)
            if not self.channel.wait_for_go():
                raise Finished
            self.losses, self.started = [], time.perf_counter()
        return self.loader(step)


def write_rows(setup: TrainingSetup, steps: int, path: Path) -> None:
    """One line per step: its rows, each with ids and labels as transformers expects them (not shifted)."""
    with open(path, "w", encoding="utf-8") as file:
        for step in range(steps):
            row_ids = [i for batch in setup.loader[step] for i in batch.row_ids]
            rows = [setup.data.encoded.rows[i] for i in row_ids]
            # weitiao's labels are shifted: position t holds token t + 1. So the last label is the row's last token.
            shifted = [([*map(int, row["input_ids"])], [*map(int, row["labels"])]) for row in rows]
            lines = [{"input_ids": [*ids, labels[-1]], "labels": [-100, *labels]} for ids, labels in shifted]
            file.write(json.dumps(lines) + "\n")


@torch.no_grad()
def untrained_loss(setup: TrainingSetup, step: int) -> float:
    """The loss of a step's rows before training: the mean over supervised tokens."""
    objective, batches = setup.data.objective, setup.loader[step]
    total = sum(float(sum(objective.loss(setup.state.model, batch).totals.values())) for batch in batches)
    return total / sum(count_targets(objective, batches).values())


def run_side(options: argparse.Namespace, channel: Channel) -> None:
    recipe = make_recipe(json.loads(options.recipe.read_text(encoding="utf-8")))
    run, distributed = Run.create(recipe), Distributed(device())
    with run.locked():
        setup = assemble(run, recipe, distributed, Reporter(Console(quiet=True)))
        model, state, plan = setup.state.model, setup.state, setup.plan
        save_adapter(model.attachment, options.out / "adapter", recipe.base)
        write_rows(setup, options.steps, options.out / "rows.jsonl")
        trained = sum(weight.numel() for weight in model.trainable().values())
        untrained = untrained_loss(setup, options.steps - 1)
        channel.send(learning_rate=plan.learning_rate, trained=trained, untrained=untrained)
        loader = RoundLoader(channel, setup.loader.__getitem__, run, options.round_steps)
        try:
            train(model, setup.data.objective, loader, state, plan, run, dict, distributed, Stop())
        except Finished:
            before, peak = setup.memory_before_model / 2**20, memory_mb("VmHWM")
            channel.send(before_model_mb=before, peak_mb=peak)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--recipe", type=Path, required=True, help="a recipe as JSON")
    parser.add_argument("--round-steps", type=int, required=True, help="steps per round")
    parser.add_argument("--steps", type=int, required=True, help="steps in total")
    parser.add_argument("--out", type=Path, required=True)
    run_side(parser.parse_args(), StdioChannel())


if __name__ == "__main__":
    main()
