"""PEFT's side of the methods suite: the usual training loop with get_peft_model, one round at a time.

    python -m bench.methods.peft_side --model FOLDER --rows rows.jsonl --adapter FOLDER --changes '{}' --round-steps 2 \
        --optimizer adamw --learning-rate 2e-4 --max-norm 1.0

The adapter's config, with the changes applied, makes the method; the adapter's tensors are its starting weights. Without
--adapter the changes are the whole config, and PEFT initializes it. Batches are padded to their longest row, attention
is SDPA, gradient checkpointing and the key-value cache are off, AdamW is fused.
"""

import argparse
import json
import time
from pathlib import Path

import peft
import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import AutoModelForCausalLM

from bench.shared.memory import memory_mb
from bench.shared.workers import StdioChannel

OPTIMIZERS = {
    "adamw": lambda weights, lr: torch.optim.AdamW(weights, lr=lr, weight_decay=0.0, fused=True),
    "sgd": lambda weights, lr: torch.optim.SGD(weights, lr=lr, momentum=0.9, fused=True),
}


def make_model(options: argparse.Namespace) -> nn.Module:
    """The base with the method attached.

    Raises:
        SystemExit: PEFT changed a tensor of the adapter while loading it.
    """
    file = options.adapter / "adapter_config.json" if options.adapter else None
    settings = json.loads(file.read_text(encoding="utf-8")) if file else {}
    config = peft.get_peft_config({**settings, **json.loads(options.changes), "inference_mode": False})
    base = AutoModelForCausalLM.from_pretrained(options.model, dtype=torch.float32, local_files_only=True)
    base.config.use_cache = False
    model = peft.get_peft_model(base, config)
    if options.adapter:
        start = load_file(options.adapter / "adapter_model.safetensors")
        peft.set_peft_model_state_dict(model, start)
        loaded = peft.get_peft_model_state_dict(model)
        changed = sorted(name for name in start if name not in loaded or not torch.equal(loaded[name], start[name]))
        if changed:
            raise SystemExit(f"PEFT did not load the adapter unchanged: {changed[0]} and {len(changed) - 1} more.")
    return model.train()


def padded(rows: list[dict]) -> dict[str, Tensor]:
    """Rows as one batch, padded on the right. [B, longest row] each."""
    longest = max(len(row["input_ids"]) for row in rows)

    def fill(lists: list[list[int]], value: int) -> Tensor:
        return torch.tensor([[*row, *[value] * (longest - len(row))] for row in lists])

    ids, labels = ([row[key] for row in rows] for key in ("input_ids", "labels"))
    mask = [[1] * len(row) for row in ids]
    return {"input_ids": fill(ids, 0), "attention_mask": fill(mask, 0), "labels": fill(labels, -100)}


def run_side(options: argparse.Namespace, channel: StdioChannel) -> None:
    before = memory_mb("VmRSS")
    model = make_model(options)
    steps = [json.loads(line) for line in options.rows.read_text(encoding="utf-8").splitlines()]
    trained = [weight for weight in model.parameters() if weight.requires_grad]
    optimizer = OPTIMIZERS[options.optimizer](trained, options.learning_rate)
    allocate = getattr(model.base_model, "update_and_allocate", None)  # AdaLoRA's
    channel.send(trained=sum(weight.numel() for weight in trained))
    for first in range(0, len(steps), options.round_steps):
        if not channel.wait_for_go():
            break
        started, losses = time.perf_counter(), []
        for number in range(first, first + options.round_steps):
            loss = model(**padded(steps[number])).loss
            loss.backward()
            nn.utils.clip_grad_norm_(trained, options.max_norm)
            optimizer.step()
            if allocate is not None:
                allocate(number)
            optimizer.zero_grad()
            losses.append(loss.item())
        channel.send(seconds=time.perf_counter() - started, losses=losses)
    channel.send(before_model_mb=before, peak_mb=memory_mb("VmHWM"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--rows", type=Path, required=True, help="the rows.jsonl of weitiao_side.py")
    parser.add_argument("--adapter", type=Path, help="its starting weights, in PEFT's format")
    parser.add_argument("--changes", default="{}", help="JSON, applied to the adapter's config")
    parser.add_argument("--round-steps", type=int, required=True, help="steps per round")
    parser.add_argument("--optimizer", choices=sorted(OPTIMIZERS), default="adamw")
    parser.add_argument("--learning-rate", type=float, required=True)
    parser.add_argument("--max-norm", type=float, required=True)
    run_side(parser.parse_args(), StdioChannel())


if __name__ == "__main__":
    main()
