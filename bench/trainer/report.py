"""The results of the trainer suite as two tables: the quality of each side, and its speed.

python -m bench.trainer.report bench/results/trainer.json        prints the block for bench/RESULTS.md again
"""

import json
import sys
from pathlib import Path
from statistics import median

import numpy as np

from bench.shared.machine import machine_words
from bench.trainer.tasks import parse_fractions
from weitiao.core.score import BOOTSTRAP_DRAWS, Score, proportion, ratio_of_sums

MAX_BACKGROUND = 0.05  # share of the processor that other programs use
NAMES = {"Trainer": "Trainer", "grouped": "Trainer, grouped by length", "weitiao": "weitiao"}
TOLERANCE = 1.0  # points below the Trainer that are allowed
QUALITY = ["task", "figure", "side", "mean over seeds [95 % over rows]", "minus Trainer [95 % over rows]", "each seed"]
SPEED = ["task", "steps", "Trainer s", "weitiao s", "speed ratio", "grouped s", "speed ratio to grouped"]


def fractions_of(trainings: list[dict], name: str) -> np.ndarray:
    """[seeds, 2, rows]: numerators and denominators."""
    return np.array([parse_fractions(training["rows"][name]) for training in trainings])


def mean_of(name: str, fractions: np.ndarray) -> Score:
    """A figure over all seeds; proportions have Wilson's interval with n = number of rows."""
    numerators, denominators = fractions.sum(0)
    if name != "squad_f1" and (fractions[:, 1] == 1).all() and name != "loss":
        return proportion(name, numerators.sum() / len(fractions), len(numerators))  # pyright: ignore[reportArgumentType]
    return ratio_of_sums(name, numerators.tolist(), denominators.tolist())


def gap(ours: np.ndarray, theirs: np.ndarray) -> tuple[float, float, float]:
    """Ours minus theirs on the same rows and seeds: the mean over seeds, with a paired bootstrap interval over rows."""

    def value(pick: np.ndarray) -> float:
        a, b = (x[:, 0, pick].sum(1) / np.maximum(x[:, 1, pick].sum(1), 1e-12) for x in (ours, theirs))
        return float((a - b).mean())

    rows = ours.shape[2]
    picks = np.random.default_rng(0).integers(0, rows, (BOOTSTRAP_DRAWS, rows))
    low, high = np.quantile([value(pick) for pick in picks], [0.025, 0.975])
    return value(np.arange(rows)), float(low), float(high)


def both(case: dict, side: str, other: str = "Trainer") -> list[tuple[dict, dict]]:
    """The trainings of the turns that both sides have finished."""
    shared = [turn for turn in case.get(side, {}) if turn in case.get(other, {})]
    return [(case[side][turn], case[other][turn]) for turn in shared]


def in_units(name: str, x: float) -> str:
    """A difference: in nats for a loss, otherwise in points."""
    return f"{x:+.4f}" if name == "loss" else f"{100 * x:+.1f}"


def quality_cells(task: str, name: str, side: str, case: dict) -> list[str]:
    """One row of the table, in the order of QUALITY."""
    fractions = fractions_of(list(case[side].values()), name)
    difference = "–"
    if side != "Trainer":
        pairs = both(case, side)
        value, low, high = gap(*(fractions_of([pair[i] for pair in pairs], name) for i in (0, 1)))
        difference = f"{in_units(name, value)} [{in_units(name, low)}, {in_units(name, high)}]"
    values = [one[0].sum() / max(one[1].sum(), 1e-12) for one in fractions]
    seeds = ", ".join(f"{x:.4f}" if name == "loss" else f"{100 * x:.1f}" for x in values)
    return [task, name, NAMES[side], str(mean_of(name, fractions)), difference, seeds]


def ratio(pairs: list[tuple[dict, dict]]) -> str:
    """The first side's speed over the second's: median and range over the turns."""
    if not pairs:
        return "–"
    ratios = [theirs["seconds"] / ours["seconds"] for ours, theirs in pairs]
    spread = f" ({min(ratios):.2f} to {max(ratios):.2f})" if len(ratios) > 1 else " (one turn)"
    return f"{median(ratios):.2f}x{spread}"


def seconds(trainings: dict) -> str:
    values = [training["seconds"] for training in trainings.values()]
    return f"{median(values):.1f}" if values else "–"


def speed_cells(task: str, case: dict) -> list[str]:
    """One row of the table, in the order of SPEED."""
    steps = sorted({training["steps"] for side in case.values() for training in side.values()})
    ratios = [ratio(both(case, "weitiao", other)) for other in ("Trainer", "grouped")]
    times = [seconds(case.get(side, {})) for side in ("Trainer", "weitiao", "grouped")]
    return [task, ", ".join(map(str, steps)), times[0], times[1], ratios[0], times[2], ratios[1]]


def line(task: str, side: str, turn: int, training: dict) -> str:
    """One line for the terminal while the suite runs."""
    sums = {name: np.array(parse_fractions(text)).sum(1) for name, text in training["rows"].items()}
    figures = ", ".join(f"{name} {total / max(count, 1e-12):.4f}" for name, (total, count) in sums.items())
    busy = training["share_of_others"]
    warning = f"   (other programs used {busy:.0%} of the machine)" if busy > MAX_BACKGROUND else ""
    facts = (
        f"{training['seconds']:.1f} s, {training['steps']} steps; loss of the first rows before {training['before']:.5f}"
    )
    return f"  {task}, {NAMES[side]}, seed {turn}: {facts}; {figures}{warning}"


def conditions(results: dict) -> str:
    """One paragraph: tasks, settings, machine, versions."""
    machine, versions = results["setup"]["machine"], results["setup"]["versions"]
    tasks = [results["setup"]["tasks"][name] for name in results["cases"]]
    limit = results["setup"]["limit"]
    described = [
        f"{x['name']}: {x['model']} on {x['data']}, up to {limit or x['train']} rows, {x['epochs']} epochs, "
        f"{x['batch_size']} per step, learning rate {x['learning_rate']:g}, "
        f"{x.get('max_length', x.get('context'))} tokens, up to {limit or x['test']} test rows"
        for x in tasks
    ]
    return (
        f"{'; '.join(described)}. {results['setup'].get('precision', 'fp32')}, all weights unless the name says "
        f"otherwise, AdamW without weight decay, one learning rate for backbone and head, linear schedule, clipping 1.0. "
        f"{machine_words(machine)}. torch {versions['torch']}, transformers {versions['transformers']}, "
        f"weitiao at {versions['weitiao'] or 'no commit'}."
    )


def compared(task: str, name: str, pairs: list[tuple[dict, dict]]) -> str:
    """Whether ours is within a point of the Trainer's; for a loss, the difference."""
    ours, theirs = (fractions_of([pair[i] for pair in pairs], name) for i in (0, 1))
    value, low, high = gap(ours, theirs)
    if name == "loss":
        share = value / mean_of(name, theirs).value
        return f"{task}, {name}: {value:+.4f} nats [{low:+.4f}, {high:+.4f}], {share:+.1%} of Trainer's."
    if not ours[:, 0].any() and not theirs[:, 0].any():
        return f"{task}, {name}: nothing is right on either side, so it shows nothing."
    holds = "no more than" if 100 * value >= -TOLERANCE else "MORE than"
    sure = "all of the interval is, too" if 100 * low >= -TOLERANCE else "the interval reaches further"
    return f"{task}, {name}: {100 * value:+.1f} points, {holds} {TOLERANCE:g} point below Trainer; {sure}."


def notes(results: dict) -> list[str]:
    """Notes below the tables."""
    lines = [
        compared(task, name, pairs)
        for task, case in results["cases"].items()
        for name in results["setup"]["tasks"][task]["figures"]
        if (pairs := both(case, "weitiao"))
    ]
    lines.append("Seconds are of training alone. Speed ratio: median, least and greatest over the turns.")
    background = [
        (f"{task} {NAMES[side]} {turn}", training["share_of_others"])
        for task, case in results["cases"].items()
        for side, trainings in case.items()
        for turn, training in trainings.items()
    ]
    disturbed = [f"{name} {share:.0%}" for name, share in background if share > MAX_BACKGROUND]
    if disturbed:
        names = ", ".join(disturbed)
        lines.append(f"Other programs used much of the machine, so these speeds cannot be trusted: {names}.")
    return lines


def table(head: list[str], rows: list[list[str]]) -> str:
    """Markdown."""
    return "\n".join("| " + " | ".join(row) + " |" for row in [head, ["---"] * len(head), *rows])


def markdown(results: dict) -> str:
    """A block to paste into bench/RESULTS.md."""
    quality = [
        quality_cells(task, name, side, case)
        for task, case in results["cases"].items()
        for name in results["setup"]["tasks"][task]["figures"]
        for side in NAMES
        if side in case
    ]
    speed = [speed_cells(task, case) for task, case in results["cases"].items()]
    items = "\n".join(f"- {note}" for note in notes(results))
    return "\n\n".join([conditions(results), table(QUALITY, quality), table(SPEED, speed), items]) + "\n"


def main() -> None:
    print(markdown(json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))))


if __name__ == "__main__":
    main()
