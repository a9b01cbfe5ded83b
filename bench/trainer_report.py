"""What bench/trainer.py measured, as two tables: how good each side is, and how fast.

python bench/trainer_report.py bench/results/trainer.json        prints the block for bench/RESULTS.md again
"""

import json
import sys
from pathlib import Path
from statistics import median

import numpy as np

from trainer_tasks import parts_of
from weitiao.core.score import DRAWS, LEVEL, Score, proportion, ratio_of_sums

OTHERS_ALLOWED = 0.05  # share of the processor taken by other work
NAMES = {"Trainer": "Trainer", "grouped": "Trainer, grouped by length", "weitiao": "weitiao"}
NEAR = 1.0  # points that are asked for
QUALITY = ["task", "figure", "side", "mean of the seeds [95 % over rows]", "less Trainer [95 % over rows]", "each seed"]
SPEED = ["task", "steps", "Trainer s", "weitiao s", "weitiao is", "grouped s", "weitiao beside grouped is"]


def stacked(plays: list[dict], name: str) -> np.ndarray:
    """[seeds, 2, rows]: above and below the line."""
    return np.array([parts_of(play["rows"][name]) for play in plays])


def mean_of(name: str, parts: np.ndarray) -> Score:
    """A figure over all seeds; hits have Wilson's interval, for as many rows as there are."""
    above, below = parts.sum(0)
    if name != "squad_f1" and (parts[:, 1] == 1).all() and name != "loss":
        return proportion(name, above.sum() / len(parts), len(above))  # pyright: ignore[reportArgumentType]
    return ratio_of_sums(name, above.tolist(), below.tolist())


def gap(ours: np.ndarray, theirs: np.ndarray) -> tuple[float, float, float]:
    """Ours less theirs on the same rows and seeds: the mean over seeds, and its interval, a paired bootstrap over rows."""

    def value(pick: np.ndarray) -> float:
        a, b = (x[:, 0, pick].sum(1) / np.maximum(x[:, 1, pick].sum(1), 1e-12) for x in (ours, theirs))
        return float((a - b).mean())

    rows = ours.shape[2]
    picks = np.random.default_rng(0).integers(0, rows, (DRAWS, rows))
    low, high = np.quantile([value(pick) for pick in picks], [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return value(np.arange(rows)), float(low), float(high)


def both(case: dict, side: str, other: str = "Trainer") -> list[tuple[dict, dict]]:
    """The turns that both have played."""
    there = [turn for turn in case.get(side, {}) if turn in case.get(other, {})]
    return [(case[side][turn], case[other][turn]) for turn in there]


def in_units(name: str, x: float) -> str:
    """A difference: of a loss in nats, else in points."""
    return f"{x:+.4f}" if name == "loss" else f"{100 * x:+.1f}"


def quality_cells(task: str, name: str, side: str, case: dict) -> list[str]:
    """One row of the table, as QUALITY names it."""
    plays = list(case[side].values())
    parts = stacked(plays, name)
    shown = "–"
    if side != "Trainer":
        pairs = both(case, side)
        value, low, high = gap(*(stacked([pair[i] for pair in pairs], name) for i in (0, 1)))
        shown = f"{in_units(name, value)} [{in_units(name, low)}, {in_units(name, high)}]"
    each = [one[0].sum() / max(one[1].sum(), 1e-12) for one in parts]
    seeds = ", ".join(f"{x:.4f}" if name == "loss" else f"{100 * x:.1f}" for x in each)
    return [task, name, NAMES[side], str(mean_of(name, parts)), shown, seeds]


def ratio(pairs: list[tuple[dict, dict]]) -> str:
    """How many times as fast the first is: median and range of the turns' ratios."""
    if not pairs:
        return "–"
    found = [theirs["seconds"] / ours["seconds"] for ours, theirs in pairs]
    spread = f" ({min(found):.2f} to {max(found):.2f})" if len(found) > 1 else " (one turn)"
    return f"{median(found):.2f}x as fast{spread}"


def seconds(plays: dict) -> str:
    found = [play["seconds"] for play in plays.values()]
    return f"{median(found):.1f}" if found else "–"


def speed_cells(task: str, case: dict) -> list[str]:
    """One row of the table, as SPEED names it."""
    steps = sorted({play["steps"] for plays in case.values() for play in plays.values()})
    faster = [ratio(both(case, "weitiao", other)) for other in ("Trainer", "grouped")]
    times = [seconds(case.get(side, {})) for side in ("Trainer", "weitiao", "grouped")]
    return [task, ", ".join(map(str, steps)), times[0], times[1], faster[0], times[2], faster[1]]


def line(task: str, side: str, turn: int, play: dict) -> str:
    """For the terminal, while it runs."""
    found = {name: np.array(parts_of(written)).sum(1) for name, written in play["rows"].items()}
    figures = ", ".join(f"{name} {above / max(below, 1e-12):.4f}" for name, (above, below) in found.items())
    busy = play["share_of_others"]
    loud = f"   (others took {busy:.0%} of the machine)" if busy > OTHERS_ALLOWED else ""
    before = f"loss of the first rows before {play['before']:.5f}"
    return (
        f"  {task}, {NAMES[side]}, seed {turn}: {play['seconds']:.1f} s, {play['steps']} steps; {before}; {figures}{loud}"
    )


def conditions(results: dict) -> str:
    """One paragraph: on what, with what, from what."""
    machine, versions = results["setup"]["machine"], results["setup"]["versions"]
    tasks = [results["setup"]["tasks"][name] for name in results["cases"]]
    limit = results["setup"]["limit"]
    said = [
        f"{x['name']}: {x['model']} on {x['data']}, {limit or x['train']} rows at most, {x['epochs']} epochs, "
        f"{x['batch_size']} a step, rate {x['learning_rate']:g}, {x['context']} tokens, "
        f"asked about {limit or x['test']} at most"
        for x in tasks
    ]
    return (
        f"{'; '.join(said)}. {results['setup'].get('precision', 'fp32')}, all weights but where the name says so, AdamW "
        f"without decay, one rate for body and head, linear schedule, clipping at 1.0. "
        f"{machine['processor']}, {machine['cores']} cores, {machine['threads']} threads, "
        f"{machine['memory_gb']} GB. torch {versions['torch']}, transformers {versions['transformers']}, "
        f"weitiao at {versions['weitiao'] or 'no commit'}."
    )


def compared(task: str, name: str, pairs: list[tuple[dict, dict]]) -> str:
    """Whether ours is within a point of the Trainer's; of a loss, how far it is off."""
    ours, theirs = (stacked([pair[i] for pair in pairs], name) for i in (0, 1))
    value, low, high = gap(ours, theirs)
    if name == "loss":
        share = value / mean_of(name, theirs).value
        return f"{task}, {name}: {value:+.4f} nats [{low:+.4f}, {high:+.4f}], {share:+.1%} of Trainer's."
    if not ours[:, 0].any() and not theirs[:, 0].any():
        return f"{task}, {name}: nothing is right on either side, so it says nothing."
    holds = "no more than" if 100 * value >= -NEAR else "MORE than"
    sure = "all of the interval is, too" if 100 * low >= -NEAR else "the interval reaches further"
    return f"{task}, {name}: {100 * value:+.1f} points, {holds} {NEAR:g} point below Trainer; {sure}."


def notes(results: dict) -> list[str]:
    """What has to be known beside the tables."""
    said = [
        compared(task, name, pairs)
        for task, case in results["cases"].items()
        for name in results["setup"]["tasks"][task]["figures"]
        if (pairs := both(case, "weitiao"))
    ]
    said.append("Seconds are of training alone. Speed: median, least and greatest of the turns' ratios.")
    plays = [
        (f"{task} {NAMES[side]} {turn}", play["share_of_others"])
        for task, case in results["cases"].items()
        for side, turns in case.items()
        for turn, play in turns.items()
    ]
    loud = [f"{name} {share:.0%}" for name, share in plays if share > OTHERS_ALLOWED]
    if loud:
        said.append(f"Other work took much of the machine, so these speeds cannot be trusted: {', '.join(loud)}.")
    return said


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
    said = "\n".join(f"- {words}" for words in notes(results))
    return "\n\n".join([conditions(results), table(QUALITY, quality), table(SPEED, speed), said]) + "\n"


def main() -> None:
    print(markdown(json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))))


if __name__ == "__main__":
    main()
