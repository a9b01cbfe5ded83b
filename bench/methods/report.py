"""The results of the methods suite as a table: distance between the curves, ratios of speed and memory.

python -m bench.methods.report bench/results/methods.json        prints the block for bench/RESULTS.md again
"""

import json
import sys
from pathlib import Path
from statistics import median

from bench.shared.machine import machine_words

MAX_BACKGROUND = 0.05  # share of the processor that other programs use
HEAD = [
    *("method", "loss of the last rows, before and after", "loss difference, first step", "loss difference, maximum"),
    *("weitiao tokens/s", "PEFT tokens/s", "speed ratio", "weitiao MB", "PEFT MB", "memory ratio"),
]


def loss_differences(case: dict) -> list[float]:
    """|ours - PEFT's| / PEFT's loss, for each step."""
    ours, theirs = case["losses"]["weitiao"], case["losses"]["peft"]
    return [abs(a - b) / abs(b) for a, b in zip(ours, theirs, strict=True)]


def speeds(case: dict, who: str) -> list[float]:
    """Real tokens per second in each timed round."""
    return [tokens / seconds for tokens, seconds in zip(case["tokens"], case["seconds"][who], strict=True)][1:]


def ratios(case: dict) -> list[float]:
    """Our speed over PEFT's, round by round: both sides run the same rows."""
    seconds = case["seconds"]
    return [theirs / ours for ours, theirs in zip(seconds["weitiao"], seconds["peft"], strict=True)][1:]


def memory_used(case: dict, who: str) -> float:
    """Peak in MB above what was held before the model."""
    return case["memory"][who]["peak_mb"] - case["memory"][who]["before_model_mb"]


def cells(name: str, case: dict) -> list[str]:
    """One row of the table, in the order of HEAD."""
    losses, speedups, gaps = case["losses"]["weitiao"], ratios(case), loss_differences(case)
    spread = f" ({min(speedups):.2f} to {max(speedups):.2f})" if len(speedups) > 1 else ""
    curves = ["different networks", "-"] if case["apart"] else [f"{gaps[0]:.0e}", f"{max(gaps):.0e}"]
    return [
        name,
        f"{case['untrained']:.4f}, {losses[-1]:.4f}",
        *curves,
        f"{median(speeds(case, 'weitiao')):.1f}",
        f"{median(speeds(case, 'peft')):.1f}",
        f"{median(speedups):.2f}x{spread}",
        f"{memory_used(case, 'weitiao'):.0f}",
        f"{memory_used(case, 'peft'):.0f}",
        f"{memory_used(case, 'weitiao') / memory_used(case, 'peft'):.2f}x",
    ]


def line(name: str, case: dict) -> str:
    """One line for the terminal while the suite runs."""
    busy = case["share_of_others"]
    warning = f"   (other programs used {busy:.0%} of the machine)" if busy > MAX_BACKGROUND else ""
    facts = "; ".join(f"{head} {cell}" for head, cell in zip(HEAD[1:], cells(name, case)[1:], strict=True))
    return f"  {name}: {facts}{warning}"


def table(cases: dict) -> str:
    """Markdown."""
    rows = [HEAD, ["---"] * len(HEAD), *(cells(name, case) for name, case in cases.items())]
    return "\n".join("| " + " | ".join(row) + " |" for row in rows)


def conditions(results: dict) -> str:
    """One paragraph: model, rows, machine, versions."""
    setup, cases = results["setup"], results["cases"]
    machine, versions, first = setup["machine"], setup["versions"], next(iter(cases.values()))
    timed = setup["steps"] // setup["turn"] - 1
    return (
        f"{setup['model']}, rows: {setup['rows']}, {setup['batch_size']} per step; {setup['steps']} steps in rounds of "
        f"{setup['turn']}, n = {timed} timed rounds per side (the first is not timed), {sum(first['tokens'])} real tokens "
        f"in {sum(first['padded'])} padded positions; fp32, AdamW unless stated otherwise, each method's own learning rate "
        f"and settings in weitiao, clipping at 1.0, no weight decay, no dropout. {machine_words(machine)}. torch "
        f"{versions['torch']}, transformers {versions['transformers']}, PEFT {versions['peft']}, weitiao at "
        f"{versions['weitiao'] or 'no commit'}."
    )


def notes(results: dict) -> list[str]:
    """Notes below the table."""
    lines = ["Speed ratio: median, least and greatest of the rounds' ratios; too few for an interval."]
    busy = {name: case["share_of_others"] for name, case in results["cases"].items()}
    disturbed = [f"{name} {share:.0%}" for name, share in busy.items() if share > MAX_BACKGROUND]
    if disturbed:
        names = ", ".join(disturbed)
        lines.append(f"Other programs used much of the machine, so these speeds cannot be trusted: {names}.")
    return lines


def markdown(results: dict) -> str:
    """A block to paste into bench/RESULTS.md."""
    items = "\n".join(f"- {note}" for note in notes(results))
    return "\n\n".join([conditions(results), table(results["cases"]), items]) + "\n"


def main() -> None:
    print(markdown(json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))))


if __name__ == "__main__":
    main()
