"""One supervised LoRA run by weitiao, measured; run it with the Python that weitiao is installed in.

    python -m bench.sft.weitiao_side --model FOLDER --train train.jsonl --steps 12 --precision bf16 \
        --peer-report trl.json --out FOLDER

Learning rate, schedule, warm-up, weight decay, betas, epsilon and clipping are taken from the report of trl_side.py, so
both sides train with the same values. The run is `python -m weitiao train recipe.yaml --quiet` in a process of its
own; loss and real tokens are read from its events. Its steps are timed twice, by its own events and by watching the
file from outside, and the slower of the two counts. The last line printed is one JSON object of trl_side.py's form.
"""

import argparse
import json
import os
import platform
import resource
import subprocess
import sys
import time
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import yaml

POLL_SECONDS = 0.02  # between two looks at events.jsonl


def lora(options: argparse.Namespace) -> dict:
    """LoRA with TRL's settings."""
    sizes = {"rank": options.rank, "alpha": options.alpha}
    return {"name": "lora", **sizes, "dropout": 0.0, "target_modules": "all-linear"}


def make_recipe(options: argparse.Namespace, peer: dict) -> dict:
    """The recipe that trains what TRL trained."""
    if not peer["optim"].startswith("adamw_torch"):
        raise SystemExit(f"TRL used {peer['optim']}; this comparison supports AdamW only.")
    warmup, first_row = peer["warmup_steps"], options.train.read_text(encoding="utf-8").partition("\n")[0]
    return {
        "base": str(options.model.resolve()),
        "data": [{"path": str(options.train.resolve())}],
        "validation": {"path": str(options.validation.resolve())} if options.validation else 0,
        "method": lora(options) if options.rank else "full",
        "objective": "causal_lm" if "text" in json.loads(first_row) else "sft",
        "train": {
            "batch_size": options.batch_size,
            "steps": options.steps,
            "learning_rate": peer["learning_rate"],
            "lr_schedule": peer["lr_scheduler_type"],
            "warmup_ratio": warmup / options.steps if warmup >= 1 else warmup,
            "weight_decay": peer["weight_decay"],
            "max_grad_norm": peer["max_grad_norm"] or None,
            "optimizer": {
                "name": "adamw",
                "betas": [peer["adam_beta1"], peer["adam_beta2"]],
                "epsilon": peer["adam_epsilon"],
            },
            "precision": options.precision,
            "evaluate_every": 0,
            "save_every": 0,
            "num_threads": options.threads,
        },
        "evaluate": {"metrics": ["loss"], "samples": 0, "forgetting": False},
        "out": str((options.out / "run").resolve()),
        "seed": options.seed,
    }


def read_events(run: Path, event: str) -> list[dict]:
    """The complete lines of events.jsonl of one kind."""
    path = run / "events.jsonl"
    if not path.exists():
        return []
    whole_lines = path.read_text(encoding="utf-8").rpartition("\n")[0].splitlines()
    return [entry for entry in map(json.loads, whole_lines) if entry["event"] == event]


def train(recipe_path: Path, run: Path, threads: int) -> dict:
    """Runs weitiao and records from outside when each step's line appeared. Its cache is empty, so that it encodes the
    rows again, as TRL does."""
    command = [sys.executable, "-m", "weitiao", "train", str(recipe_path), "--quiet"]
    home = {"WEITIAO_HOME": str(run.with_name("home"))}
    variables = {**os.environ, **home, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": str(threads)}
    started, step_times, size = time.perf_counter(), [], -1
    child = subprocess.Popen(command, env=variables, stdout=sys.stderr)
    events = run / "events.jsonl"
    while child.poll() is None:
        time.sleep(POLL_SECONDS)
        new_size = events.stat().st_size if events.exists() else -1
        if new_size != size:
            now, size = time.perf_counter(), new_size
            step_times += [now] * (len(read_events(run, "step")) - len(step_times))
    if child.returncode:
        raise SystemExit(f"weitiao ended with status {child.returncode}; see its output above.")
    return {
        "wall_seconds": time.perf_counter() - started,
        "first_step_seconds": step_times[0] - started,
        "outside_seconds": step_times[-1] - step_times[0] if len(step_times) > 1 else 0.0,
        "outside_peak_mb": resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024,
    }


def installed_versions() -> dict[str, str]:
    versions = {"python": platform.python_version()}
    for name in ("weitiao", "torch", "transformers"):
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            versions[name] = "not installed as a package"
    return versions


def measure(options: argparse.Namespace) -> dict:
    peer = json.loads(options.peer_report.read_text(encoding="utf-8"))["settings"]
    recipe, run = make_recipe(options, peer), options.out / "run"
    if run.exists():
        raise SystemExit(f"{run} exists already: pass a new folder as --out.")
    options.out.mkdir(parents=True, exist_ok=True)
    recipe_path = options.out / "recipe.yaml"
    recipe_path.write_text(yaml.safe_dump(recipe, sort_keys=False), encoding="utf-8")
    outside = train(recipe_path, run, options.threads)
    steps, memory = read_events(run, "step"), read_events(run, "memory")[-1]
    if len(steps) != options.steps:
        raise SystemExit(f"{options.steps} steps were requested, events.jsonl has {len(steps)}.")
    inside_seconds = sum(step["seconds"] for step in steps[1:])
    timed_seconds = max(inside_seconds, outside["outside_seconds"])
    validation = read_events(run, "validation")
    return {
        "system": "weitiao",
        "variant": "defaults",
        "precision": options.precision,
        "seed": options.seed,
        "threads": options.threads,
        "versions": installed_versions(),
        "settings": {key: recipe["train"][key] for key in recipe["train"] if key != "num_threads"},
        "steps": [
            {**{key: step[key] for key in ("step", "loss", "tokens", "seconds")}, "supervised": step["num_targets"]}
            for step in steps
        ],
        "tokens": sum(step["tokens"] for step in steps),
        "supervised": sum(step["num_targets"] for step in steps),
        "tokens_per_second": sum(step["tokens"] for step in steps[1:]) / timed_seconds,
        "seconds_by_events": inside_seconds,
        "seconds_from_outside": outside["outside_seconds"],
        "own_validation_loss": validation[-1]["loss"] if validation else None,
        "memory": {
            "before_model_mb": memory["before_model_mb"],
            "peak_mb": memory["peak_mb"],
            "used_mb": memory["peak_mb"] - memory["before_model_mb"],
            "peak_mb_from_outside": outside["outside_peak_mb"],
        },
        "first_step_seconds": outside["first_step_seconds"],
        "wall_seconds": outside["wall_seconds"],
        "adapter": str(run / "adapter"),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--train", type=Path, required=True)
    parser.add_argument("--validation", type=Path, help="weitiao measures it at the end; optional")
    parser.add_argument("--peer-report", type=Path, required=True, help="a file with the JSON that trl_side.py printed")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--precision", choices=["bf16", "fp32"], default="bf16")
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument("--alpha", type=int, default=32)
    parser.add_argument("--threads", type=int, default=int(os.environ.get("OMP_NUM_THREADS", "2")))
    options = parser.parse_args()
    if options.steps < 2:
        parser.error("--steps must be 2 or more: the first step is not timed.")
    print(json.dumps(measure(options)), flush=True)


if __name__ == "__main__":
    main()
