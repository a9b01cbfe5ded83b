"""What bench/growth.py measured, as tables, one a series.

python bench/growth_report.py bench/results/growth.json        prints the block for bench/RESULTS.md again
"""

import json
import sys
from pathlib import Path
from statistics import median

OTHERS_ALLOWED = 0.05  # share of the processor taken by other work
TITLES = {
    "length": "Length of the rows",
    "vocabulary": "Vocabulary",
    "size": "Size of the model",
    "batch": "Tokens of a step, run at once",
    "share": "Share of the tokens that is learnt",
}
HEAD = ["weitiao tokens/s", "plain tokens/s", "weitiao is", "weitiao MB", "plain MB", "weitiao needs"]


def speeds(case: dict, who: str) -> list[float]:
    """Tokens a second in each timed step."""
    return [case["tokens"] / seconds for seconds in case["seconds"][who]]


def step_flops(case: dict, who: str) -> float:
    """MB at the peak above what was held before the model."""
    return case["memory"][who]["peak_mb"] - case["memory"][who]["before_model_mb"]


def with_range(values: list[float], words: str, digits: int) -> str:
    """Median, then least and greatest."""
    spread = f" ({min(values):.{digits}f} to {max(values):.{digits}f})" if len(values) > 1 else ""
    return f"{median(values):.{digits}f}{words}{spread}"


def cells(case: dict) -> list[str]:
    """One row, as HEAD names it."""
    ours, memory = with_range(speeds(case, "weitiao"), "", 0), step_flops(case, "weitiao")
    if case["left_out"]:
        return [ours, "-", "-", f"{memory:.0f}", "-", "-"]
    faster = [b / a for a, b in zip(case["seconds"]["weitiao"], case["seconds"]["plain"], strict=True)]
    plain = with_range(speeds(case, "plain"), "", 0)
    ratio = f"{memory / step_flops(case, 'plain'):.2f}x"
    times = with_range(faster, "x as fast", 2)
    return [ours, plain, times, f"{memory:.0f}", f"{step_flops(case, 'plain'):.0f}", ratio]


def line(name: str, case: dict) -> str:
    """For the terminal, while it runs."""
    busy = case["share_of_others"]
    loud = f"   (others took {busy:.0%} of the machine)" if busy > OTHERS_ALLOWED else ""
    return f"  {name}: " + "; ".join(f"{head} {cell}" for head, cell in zip(HEAD, cells(case), strict=True)) + loud


def measured(results: dict) -> dict[str, list[tuple[dict, dict]]]:
    """Of each series that has a line to draw: (place, case)."""
    found, cases = {}, results["cases"]
    for name, series in results["setup"]["series"].items():
        there = [(place, cases[place["case"]]) for place in series["places"] if place["case"] in cases]
        if len(there) > 1:
            found[name] = there
    return found


def kept(results: dict, name: str) -> str:
    """What does not grow in a series."""
    points = results["setup"]["points"]
    first, *_, last = [points[place["case"]] for place in results["setup"]["series"][name]["places"]]
    facts = {
        "shape": first["shape"]["name"],
        "vocabulary": f"{first['vocabulary']:,} words",
        "length": f"rows of {first['length']:,} tokens",
        "batch": f"{first['batch']:,} tokens a step",
        "at_once": f"{first['at_once']:,} of them at once, one row at least",
        "share": f"{first['share']} % learnt",
    }
    return ", ".join(words for key, words in facts.items() if first[key] == last[key])


def table(results: dict, name: str, places: list[tuple[dict, dict]]) -> str:
    """Markdown: a title, what stays, a row a point."""
    unit = results["setup"]["series"][name]["unit"]
    rows = [[unit, *HEAD], ["---"] * (len(HEAD) + 1)]
    for place, case in places:
        shape = results["setup"]["points"][place["case"]]["shape"]["name"]
        rows.append([f"{place['label']} ({shape})" if name == "size" else place["label"], *cells(case)])
    drawn = "\n".join("| " + " | ".join(row) + " |" for row in rows)
    return f"**{TITLES[name]}** ({kept(results, name)})\n\n{drawn}"


def tables(results: dict) -> str:
    return "\n\n".join(table(results, name, places) for name, places in measured(results).items())


def conditions(results: dict) -> str:
    """One paragraph: on what, with what."""
    setup = results["setup"]
    machine, versions, busy = setup["machine"], setup["versions"], [x["share_of_others"] for x in results["cases"].values()]
    (gpu,) = {x["device"] for x in results["cases"].values()}
    of_process = "process's peak (VmHWM) above what it held before the model was made."
    held = f"peak of what torch held on the GPU, {gpu}." if gpu else of_process
    return (
        f"Llamas of random weights, tied embeddings; rows of random tokens, all equally long, the last ones learnt; LoRA "
        f"rank {setup['rank']} on all linear layers, AdamW, {setup['precision']}. n = {setup['steps']} timed steps a side "
        f"and point, in turns, after one micro-batch that is not timed; median, least and greatest. Memory is the "
        f"{held} {machine['processor']}, "
        f"{machine['cores']} cores, {machine['threads']} threads, {machine['memory_gb']} GB, "
        f"{' '.join(machine['instructions']) or 'no vector instructions that matter'}. torch {versions['torch']}, "
        f"transformers {versions['transformers']}, weitiao at {versions['weitiao'] or 'no commit'}. Other work took "
        f"{median(busy):.0%} of the machine (median over the points), {max(busy):.0%} at most."
    )


def notes(results: dict) -> list[str]:
    """What has to be known beside the tables."""
    cases, names = results["cases"], results["setup"]["points"]
    said = [
        "plain: `train.implementation: plain`, transformers' own forward and autograd under the same loop, with the same LoRA."
    ]
    said.append(
        f"weitiao runs the last layer for learnt tokens only. With {results['setup']['layers']} layers that spares more "
        "than in a whole model of thirty, which stands under the size of the model."
    )
    gaps = [
        abs(a - b) / abs(b)
        for case in cases.values()
        if not case["left_out"]
        for a, b in zip(case["losses"]["weitiao"], case["losses"]["plain"], strict=True)
    ]
    if gaps:
        said.append(
            f"Both sides learn the same rows from the same weights: their losses differ by {max(gaps):.0e} at most."
        )
    said += [
        f"{name}: {cases[name]['left_out']}, so it is left out." for name in names if cases.get(name, {}).get("left_out")
    ]
    loud = [f"{name} ({x['share_of_others']:.0%})" for name, x in cases.items() if x["share_of_others"] > OTHERS_ALLOWED]
    if loud:
        said.append(f"Other work took much of the machine, so these speeds cannot be trusted: {'; '.join(loud)}.")
    if missing := sum(name not in cases for name in names):
        said.append(f"{missing} of {len(names)} points are not measured yet.")
    return said


def markdown(results: dict, picture: str) -> str:
    """A block to paste into bench/RESULTS.md."""
    said = "\n".join(f"- {words}" for words in notes(results))
    drawn = f"![tokens a second and memory of both sides, one row a series](results/{picture})"
    return "\n\n".join([conditions(results), tables(results), said, drawn]) + "\n"


def main() -> None:
    path = Path(sys.argv[1])
    print(markdown(json.loads(path.read_text(encoding="utf-8")), path.with_suffix(".svg").name))


if __name__ == "__main__":
    main()
