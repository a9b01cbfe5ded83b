"""What bench/methods.py measured, as a table: how far the curves are apart, and the ratios of speed and memory.

python bench/methods_report.py bench/results/methods.json        prints the block for bench/RESULTS.md again
"""

import json
import sys
from pathlib import Path
from statistics import median

OTHERS_ALLOWED = 0.05  # share of the processor taken by other work
HEAD = [
    *("method", "loss of the last rows, before and there", "curves apart, first step", "curves apart, at most"),
    *("weitiao tokens/s", "PEFT tokens/s", "weitiao is", "weitiao MB", "PEFT MB", "weitiao needs"),
]


def apart(case: dict) -> list[float]:
    """|ours - PEFT's| / PEFT's loss, step by step."""
    ours, theirs = case["losses"]["weitiao"], case["losses"]["peft"]
    return [abs(a - b) / abs(b) for a, b in zip(ours, theirs, strict=True)]


def speeds(case: dict, who: str) -> list[float]:
    """Real tokens a second in each timed turn."""
    return [tokens / seconds for tokens, seconds in zip(case["tokens"], case["seconds"][who], strict=True)][1:]


def ratios(case: dict) -> list[float]:
    """How many times as fast we are, turn by turn: both sides' turns are the same rows."""
    seconds = case["seconds"]
    return [theirs / ours for ours, theirs in zip(seconds["weitiao"], seconds["peft"], strict=True)][1:]


def step_flops(case: dict, who: str) -> float:
    """MB at the peak above what was held before the model."""
    return case["memory"][who]["peak_mb"] - case["memory"][who]["before_model_mb"]


def cells(name: str, case: dict) -> list[str]:
    """One row of the table, as HEAD names it."""
    losses, faster, gaps = case["losses"]["weitiao"], ratios(case), apart(case)
    spread = f" ({min(faster):.2f} to {max(faster):.2f})" if len(faster) > 1 else ""
    curves = ["other networks", "-"] if case["apart"] else [f"{gaps[0]:.0e}", f"{max(gaps):.0e}"]
    return [
        name,
        f"{case['untrained']:.4f}, {losses[-1]:.4f}",
        *curves,
        f"{median(speeds(case, 'weitiao')):.1f}",
        f"{median(speeds(case, 'peft')):.1f}",
        f"{median(faster):.2f}x as fast{spread}",
        f"{step_flops(case, 'weitiao'):.0f}",
        f"{step_flops(case, 'peft'):.0f}",
        f"{step_flops(case, 'weitiao') / step_flops(case, 'peft'):.2f}x",
    ]


def line(name: str, case: dict) -> str:
    """For the terminal, while it runs."""
    busy = case["share_of_others"]
    loud = f"   (others took {busy:.0%} of the machine)" if busy > OTHERS_ALLOWED else ""
    facts = "; ".join(f"{head} {cell}" for head, cell in zip(HEAD[1:], cells(name, case)[1:], strict=True))
    return f"  {name}: {facts}{loud}"


def table(cases: dict) -> str:
    """Markdown."""
    rows = [HEAD, ["---"] * len(HEAD), *(cells(name, case) for name, case in cases.items())]
    return "\n".join("| " + " | ".join(row) + " |" for row in rows)


def conditions(results: dict) -> str:
    """One paragraph: on what, with what, from what."""
    setup, cases = results["setup"], results["cases"]
    machine, versions, one = setup["machine"], setup["versions"], next(iter(cases.values()))
    timed = setup["steps"] // setup["turn"] - 1
    return (
        f"{setup['model']}, rows: {setup['rows']}, {setup['batch_size']} a step; {setup['steps']} steps in turns of "
        f"{setup['turn']}, n = {timed} timed turns a side (the first is not timed), {sum(one['tokens'])} real tokens in "
        f"{sum(one['padded'])} padded places; fp32, AdamW (where not said otherwise), each method's own rate and settings "
        f"in weitiao, clipping at 1.0, no decay, no dropout. {machine['processor']}, {machine['cores']} cores, "
        f"{machine['threads']} threads, {machine['memory_gb']} GB. torch {versions['torch']}, transformers "
        f"{versions['transformers']}, PEFT {versions['peft']}, weitiao at {versions['weitiao'] or 'no commit'}."
    )


def notes(results: dict) -> list[str]:
    """What has to be known beside the table."""
    said = ["Speed and its range: median, least and greatest of the turns' ratios; no interval is claimed from so few."]
    busy = {name: case["share_of_others"] for name, case in results["cases"].items()}
    loud = [f"{name} {share:.0%}" for name, share in busy.items() if share > OTHERS_ALLOWED]
    if loud:
        said.append(f"Other work took much of the machine, so these speeds cannot be trusted: {', '.join(loud)}.")
    return said


def markdown(results: dict) -> str:
    """A block to paste into bench/RESULTS.md."""
    said = "\n".join(f"- {words}" for words in notes(results))
    return "\n\n".join([conditions(results), table(results["cases"]), said]) + "\n"


def main() -> None:
    print(markdown(json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))))


if __name__ == "__main__":
    main()
