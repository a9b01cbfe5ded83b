"""The results of the growth suite as tables, one per series.

python -m bench.growth.report bench/results/growth.json        prints the block for bench/RESULTS.md again
"""

import json
import sys
from pathlib import Path
from statistics import median

from bench.shared.machine import machine_words

MAX_BACKGROUND = 0.05  # share of the processor that other programs use
TITLES = {
    "length": "Row length",
    "vocabulary": "Vocabulary size",
    "size": "Model size",
    "batch": "Tokens per step, in one micro-batch",
    "share": "Share of tokens that carry loss",
}
UNITS = {
    "length": "tokens per row",
    "vocabulary": "vocabulary size",
    "size": "weights",
    "batch": "tokens per step, one micro-batch",
    "share": "% of tokens supervised",
}
HEAD = ["weitiao tokens/s", "reference tokens/s", "speed ratio", "weitiao MB", "reference MB", "memory ratio"]


def speeds(case: dict, who: str) -> list[float]:
    """Tokens per second in each timed step."""
    return [case["tokens"] / seconds for seconds in case["seconds"][who]]


def memory_used(case: dict, who: str) -> float:
    """Peak in MB above what was held before the model."""
    return case["memory"][who]["peak_mb"] - case["memory"][who]["before_model_mb"]


def with_range(values: list[float], unit: str, digits: int) -> str:
    """Median, then least and greatest."""
    spread = f" ({min(values):.{digits}f} to {max(values):.{digits}f})" if len(values) > 1 else ""
    return f"{median(values):.{digits}f}{unit}{spread}"


def cells(case: dict) -> list[str]:
    """One row, in the order of HEAD."""
    ours, memory = with_range(speeds(case, "weitiao"), "", 0), memory_used(case, "weitiao")
    if case["left_out"]:
        return [ours, "-", "-", f"{memory:.0f}", "-", "-"]
    speedups = [b / a for a, b in zip(case["seconds"]["weitiao"], case["seconds"]["plain"], strict=True)]
    plain = with_range(speeds(case, "plain"), "", 0)
    ratio = f"{memory / memory_used(case, 'plain'):.2f}x"
    times = with_range(speedups, "x", 2)
    return [ours, plain, times, f"{memory:.0f}", f"{memory_used(case, 'plain'):.0f}", ratio]


def line(name: str, case: dict) -> str:
    """One line for the terminal while the suite runs."""
    busy = case["share_of_others"]
    warning = f"   (other programs used {busy:.0%} of the machine)" if busy > MAX_BACKGROUND else ""
    return f"  {name}: " + "; ".join(f"{head} {cell}" for head, cell in zip(HEAD, cells(case), strict=True)) + warning


def measured(results: dict) -> dict[str, list[tuple[dict, dict]]]:
    """The (point, case) pairs of each series with at least two measured points."""
    by_series, cases = {}, results["cases"]
    for name, series in results["setup"]["series"].items():
        pairs = [(point, cases[point["case"]]) for point in series["places"] if point["case"] in cases]
        if len(pairs) > 1:
            by_series[name] = pairs
    return by_series


def constants(results: dict, name: str) -> str:
    """What stays constant in a series."""
    points = results["setup"]["points"]
    first, *_, last = [points[point["case"]] for point in results["setup"]["series"][name]["places"]]
    facts = {
        "shape": first["shape"]["name"],
        "vocabulary": f"vocabulary of {first['vocabulary']:,}",
        "length": f"rows of {first['length']:,} tokens",
        "batch": f"{first['batch']:,} tokens per step",
        "at_once": f"{first['at_once']:,} tokens per micro-batch (at least one row)",
        "share": f"{first['share']} % supervised",
    }
    return ", ".join(fact for key, fact in facts.items() if first[key] == last[key])


def table(results: dict, name: str, points: list[tuple[dict, dict]]) -> str:
    """Markdown: title, constants, one row per point."""
    rows = [[UNITS[name], *HEAD], ["---"] * (len(HEAD) + 1)]
    for point, case in points:
        shape = results["setup"]["points"][point["case"]]["shape"]["name"]
        rows.append([f"{point['label']} ({shape})" if name == "size" else point["label"], *cells(case)])
    drawn = "\n".join("| " + " | ".join(row) + " |" for row in rows)
    return f"**{TITLES[name]}** ({constants(results, name)})\n\n{drawn}"


def tables(results: dict) -> str:
    return "\n\n".join(table(results, name, points) for name, points in measured(results).items())


def conditions(results: dict) -> str:
    """One paragraph: model, rows, machine, versions."""
    setup = results["setup"]
    machine, versions, busy = setup["machine"], setup["versions"], [x["share_of_others"] for x in results["cases"].values()]
    (gpu,) = {x["device"] for x in results["cases"].values()}
    process_peak = "process's peak (VmHWM) above what it held before the model was made."
    memory = f"peak of torch's allocations on the GPU, {gpu}." if gpu else process_peak
    return (
        f"Llamas of random weights, tied embeddings; rows of random tokens, one length, the last ones supervised; LoRA "
        f"rank {setup['rank']} on all linear layers, AdamW, {setup['precision']}. n = {setup['steps']} timed steps a side "
        f"and point, in alternation, after one untimed micro-batch; median, least and greatest. Memory is the {memory} "
        f"{machine_words(machine)}. torch {versions['torch']}, transformers {versions['transformers']}, weitiao at "
        f"{versions['weitiao'] or 'no commit'}. Other programs used {median(busy):.0%} of the machine (median over the "
        f"points), at most {max(busy):.0%}."
    )


def notes(results: dict) -> list[str]:
    """Notes below the tables."""
    cases, names = results["cases"], results["setup"]["points"]
    lines = [
        "reference: `train.implementation: reference`, transformers' own forward and autograd in the same loop, same LoRA.",
        f"weitiao runs the last layer for supervised tokens only. With {results['setup']['layers']} layers that saves a "
        "larger share than in a whole model of thirty, which is in the table of model sizes.",
    ]
    gaps = [
        abs(a - b) / abs(b)
        for case in cases.values()
        if not case["left_out"]
        for a, b in zip(case["losses"]["weitiao"], case["losses"]["plain"], strict=True)
    ]
    if gaps:
        lines.append(
            f"Both sides train on the same rows from the same weights: their losses differ by at most {max(gaps):.0e}."
        )
    lines += [
        f"{name}: {cases[name]['left_out']}, so it is left out." for name in names if cases.get(name, {}).get("left_out")
    ]
    disturbed = [
        f"{name} ({x['share_of_others']:.0%})" for name, x in cases.items() if x["share_of_others"] > MAX_BACKGROUND
    ]
    if disturbed:
        names = "; ".join(disturbed)
        lines.append(f"Other programs used much of the machine, so these speeds cannot be trusted: {names}.")
    if missing := sum(name not in cases for name in names):
        lines.append(f"{missing} of {len(results['setup']['points'])} points are not measured yet.")
    return lines


def markdown(results: dict, picture: str) -> str:
    """A block to paste into bench/RESULTS.md."""
    items = "\n".join(f"- {note}" for note in notes(results))
    drawn = f"![tokens per second and memory of both sides, one row per series](results/{picture})"
    return "\n\n".join([conditions(results), tables(results), items, drawn]) + "\n"


def main() -> None:
    path = Path(sys.argv[1])
    print(markdown(json.loads(path.read_text(encoding="utf-8")), path.with_suffix(".svg").name))


if __name__ == "__main__":
    main()
