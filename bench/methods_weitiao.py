"""weitiao's side of bench/methods.py: its own training loop, whose loader waits for its turn.

    python bench/methods_weitiao.py --recipe recipe.json --turn 2 --steps 8 --out FOLDER

Everything up to step 1 is weitiao's own pipeline, and the loop is the one that `weitiao train` runs, with its guard and
its journal. A turn is timed from when the loader lets its first step go until the loop asks for the step behind its last.
Before the first turn, the untrained method is written in PEFT's format to OUT/adapter (where PEFT knows it), and the
rows, in the order in which the loop takes them, to OUT/rows.jsonl.
"""

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

import torch
from rich.console import Console

from memory import memory_mb
from turns import Player
from weitiao.core.batch import Batch
from weitiao.core.hardware import device
from weitiao.core.recipe_file import make_recipe
from weitiao.core.reporter import Reporter
from weitiao.core.run import Run
from weitiao.model.adapters.peft_format import save_adapter
from weitiao.pipeline.train import TrainingSetup, assemble
from weitiao.train.distributed import Distributed
from weitiao.train.loop import train
from weitiao.train.signals import Stop
from weitiao.train.step import count


class Teller(Protocol):
    """Who waits for its turn, and says what came of it."""

    def say(self, **facts: Any) -> None: ...
    def my_turn(self) -> bool: ...


class Over(Exception):
    """The bench has no more turns to give."""


class RotaryTables:
    """The loop's loader: step number -> its batches, when it is this side's turn."""

    def __init__(self, player: Teller, loader: Callable[[int], list[Batch]], run: Run, turn: int) -> None:
        self.player, self.loader, self.turn = player, loader, turn
        self.losses, self.began = [], 0.0
        run.listeners.append(self.listen)

    def listen(self, line: dict) -> None:
        if line["event"] == "step":
            self.losses.append(line["loss"])

    def __call__(self, step: int) -> list[Batch]:
        if step % self.turn == 0:
            if step:
                self.player.say(seconds=time.perf_counter() - self.began, losses=self.losses)
            if not self.player.my_turn():
                raise Over
            self.losses, self.began = [], time.perf_counter()
        return self.loader(step)


def write_rows(ready: TrainingSetup, steps: int, path: Path) -> None:
    """One line a step: its rows, each with ids and labels as transformers wants them (not shifted)."""
    with open(path, "w", encoding="utf-8") as file:
        for step in range(steps):
            chosen = [i for batch in ready.loader[step] for i in batch.source]
            rows = [ready.prepared.made.rows[i] for i in chosen]
            # Ours are shifted: position t holds what it must say. So the last label is the row's last token.
            plain = [([*map(int, row["input_ids"])], [*map(int, row["labels"])]) for row in rows]
            lines = [{"input_ids": [*ids, labels[-1]], "labels": [-100, *labels]} for ids, labels in plain]
            file.write(json.dumps(lines) + "\n")


@torch.no_grad()
def untrained_loss(ready: TrainingSetup, step: int) -> float:
    """Of a step's rows, before anything is learnt: the mean over supervised tokens."""
    objective, batches = ready.prepared.objective, ready.loader[step]
    total = sum(float(sum(objective.loss(ready.state.model, batch).totals.values())) for batch in batches)
    return total / sum(count(objective, batches).values())


def play(options: argparse.Namespace, player: Player) -> None:
    recipe = make_recipe(json.loads(options.recipe.read_text(encoding="utf-8")))
    run, machines = Run.create(recipe), Distributed(device())
    with run.held():
        ready = assemble(run, recipe, machines, Reporter(Console(quiet=True)))
        model, state, plan = ready.state.model, ready.state, ready.plan
        save_adapter(model.attachment, options.out / "adapter", recipe.base)
        write_rows(ready, options.steps, options.out / "rows.jsonl")
        trained = sum(weight.numel() for weight in model.trainable().values())
        untrained = untrained_loss(ready, options.steps - 1)
        player.say(rate=plan.learning_rate, trained=trained, untrained=untrained)
        loader = RotaryTables(player, ready.loader.__getitem__, run, options.turn)
        try:
            train(model, ready.prepared.objective, loader, state, plan, run, dict, machines, Stop())
        except Over:
            before, peak = ready.before_model / 2**20, memory_mb("VmHWM")
            player.say(before_model_mb=before, peak_mb=peak)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--recipe", type=Path, required=True, help="a recipe as JSON")
    parser.add_argument("--turn", type=int, required=True, help="steps a turn")
    parser.add_argument("--steps", type=int, required=True, help="steps in all")
    parser.add_argument("--out", type=Path, required=True)
    play(parser.parse_args(), Player())


if __name__ == "__main__":
    main()
