"""PEFT's side of bench/methods.py: the usual training loop with get_peft_model, one turn at a time.

    python bench/methods_peft.py --model FOLDER --rows rows.jsonl --adapter FOLDER --changes '{}' --turn 2 \
        --optimizer adamw --rate 2e-4 --clip 1.0

The adapter's config, with the changes laid over it, makes the method; the adapter's tensors are what it starts from.
Without --adapter the changes are the whole config, and it starts from what PEFT draws. Batches are padded to their
longest row, attention is SDPA, gradient checkpointing is off, the key-value cache is off, AdamW is fused.
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

from memory import memory_mb
from turns import Player

OPTIMIZERS = {
    "adamw": lambda weights, rate: torch.optim.AdamW(weights, lr=rate, weight_decay=0.0, fused=True),
    "sgd": lambda weights, rate: torch.optim.SGD(weights, lr=rate, momentum=0.9, fused=True),
}


def make_model(options: argparse.Namespace) -> nn.Module:
    """The base with the method in it.

    Raises:
        SystemExit: PEFT did not take a tensor of the adapter as it stands.
    """
    given = options.adapter / "adapter_config.json" if options.adapter else None
    about = json.loads(given.read_text(encoding="utf-8")) if given else {}
    config = peft.get_peft_config({**about, **json.loads(options.changes), "inference_mode": False})
    base = AutoModelForCausalLM.from_pretrained(options.model, dtype=torch.float32, local_files_only=True)
    base.config.use_cache = False
    model = peft.get_peft_model(base, config)
    if options.adapter:
        start = load_file(options.adapter / "adapter_model.safetensors")
        peft.set_peft_model_state_dict(model, start)
        taken = peft.get_peft_model_state_dict(model)
        odd = sorted(name for name in start if name not in taken or not torch.equal(taken[name], start[name]))
        if odd:
            raise SystemExit(f"PEFT did not take the adapter as it is: {odd[0]} and {len(odd) - 1} more.")
    return model.train()


def padded(rows: list[dict]) -> dict[str, Tensor]:
    """Rows side by side, padded on the right. [B, longest] each."""
    longest = max(len(row["input_ids"]) for row in rows)

    def fill(values: list[list[int]], with_what: int) -> Tensor:
        return torch.tensor([[*row, *[with_what] * (longest - len(row))] for row in values])

    ids, labels = ([row[key] for row in rows] for key in ("input_ids", "labels"))
    mask = [[1] * len(row) for row in ids]
    return {"input_ids": fill(ids, 0), "attention_mask": fill(mask, 0), "labels": fill(labels, -100)}


def play(options: argparse.Namespace, player: Player) -> None:
    before = memory_mb("VmRSS")
    model = make_model(options)
    steps = [json.loads(line) for line in options.rows.read_text(encoding="utf-8").splitlines()]
    trained = [weight for weight in model.parameters() if weight.requires_grad]
    optimizer = OPTIMIZERS[options.optimizer](trained, options.rate)
    allocate = getattr(model.base_model, "update_and_allocate", None)  # AdaLoRA's
    player.say(trained=sum(weight.numel() for weight in trained))
    for first in range(0, len(steps), options.turn):
        if not player.my_turn():
            break
        began, losses = time.perf_counter(), []
        for number in range(first, first + options.turn):
            loss = model(**padded(steps[number])).loss
            loss.backward()
            nn.utils.clip_grad_norm_(trained, options.clip)
            optimizer.step()
            if allocate is not None:
                allocate(number)
            optimizer.zero_grad()
            losses.append(loss.item())
        player.say(seconds=time.perf_counter() - began, losses=losses)
    player.say(before_model_mb=before, peak_mb=memory_mb("VmHWM"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--rows", type=Path, required=True, help="what methods_weitiao.py wrote")
    parser.add_argument("--adapter", type=Path, help="what it starts from, in PEFT's format")
    parser.add_argument("--changes", default="{}", help="JSON, laid over the adapter's config")
    parser.add_argument("--turn", type=int, required=True, help="steps a turn")
    parser.add_argument("--optimizer", choices=sorted(OPTIMIZERS), default="adamw")
    parser.add_argument("--rate", type=float, required=True)
    parser.add_argument("--clip", type=float, required=True)
    play(parser.parse_args(), Player())


if __name__ == "__main__":
    main()
