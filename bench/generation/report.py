"""The figures that were asked for beside those that were measured."""

from statistics import median
from typing import Any

from bench.shared.machine import machine_words

FIGURES = (  # what, case, side, the other side's case and name, at least
    ("8 concurrent requests, of one by one", "8 requests", "one by one", 6.0),
    ("32 requests, of a padded batch", "32 requests", "padded batch", 2.0),
    ("1 request, of transformers.generate", "1 request", "one by one", 1.5),
)
BUSY = 0.4


def ratios(rates: dict[str, list[float]], side: str, other: str) -> list[float]:
    """One ratio for each turn."""
    return [x / y for x, y in zip(rates[side], rates[other])]


def describe(results: dict[str, Any]) -> str:
    """A table in Markdown, and whether each figure is reached."""
    setup, lines = results["setup"], []
    what = f"{setup['model']}, {setup['precision']}, {setup['tokens']} new tokens"
    lines.append(f"{what}; {machine_words(setup['machine'])}")
    lines += ["", "| case | side | tokens/s, median | engine's ratio to it, median (range) |", "| --- | --- | --- | --- |"]
    for case, rates in results["cases"].items():
        for side, values in rates.items():
            found = ratios(rates, "engine", side)
            ratio = "" if side == "engine" else f"{median(found):.2f}x ({min(found):.2f} to {max(found):.2f})"
            lines.append(f"| {case} | {side} | {median(values):.1f} | {ratio} |")
    lines.append("")
    for what, case, other, limit in FIGURES:
        found = median(ratios(results["cases"][case], "engine", other))
        lines.append(f"- {'pass' if found >= limit else 'FAIL'}: {what}: {found:.2f}x (target: at least {limit}x)")
    found = median(ratios(results["busy"], "beside another program", "alone"))
    lines.append(
        f"- {'pass' if found >= BUSY else 'FAIL'}: while another program takes one core: {found:.2f}x (at least {BUSY}x)"
    )
    seconds = {name: median(values) for name, values in results["prompt"].items()}
    lines.append(
        f"- note: a prompt of 1,000 tokens takes {seconds['engine']:.2f} s, by transformers {seconds['one by one']:.2f} s"
    )
    same, total = results["equal"]
    lines.append(f"- note: {same} of {total} greedy answers equal those of transformers.generate")
    if isinstance(setup["llama_cpp"], str):
        lines.append(f"- skipped: llama.cpp: {setup['llama_cpp']}")
    return "\n".join(lines)
