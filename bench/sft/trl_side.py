"""One supervised LoRA run by TRL at its own defaults, measured; run it with a Python that has trl and peft.

    PEER_PYTHON -m bench.sft.trl_side --model FOLDER --train train.jsonl --steps 12 --precision bf16 --out FOLDER

Nothing is passed to TRL except model, rows, LoRA, batch size, precision, steps, seed and output folder; the values it
then uses are reported as they are in its SFTConfig. `--variant best` switches off gradient checkpointing and groups
rows by length, the two settings that make it fastest on a CPU. Prompts are given as prompt/completion, so TRL masks
them by its own default; rows of plain text are given as they are and trained on completely. The adapter is written to
OUT/adapter, the rows as TRL made them to OUT/rows.jsonl. The last line printed is one JSON object.
"""

import argparse
import json
import os
import platform
import time
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("OMP_NUM_THREADS", "2")

import datasets
import peft
import torch
import transformers
import trl
from peft import LoraConfig
from transformers import TrainerCallback
from trl import SFTConfig, SFTTrainer

from bench.shared.memory import memory_mb, process_age

BEST_SETTINGS = {"gradient_checkpointing": False, "train_sampling_strategy": "group_by_length"}
REPORTED = (
    *("learning_rate", "lr_scheduler_type", "warmup_steps", "weight_decay", "max_grad_norm", "loss_type"),
    *("optim", "adam_beta1", "adam_beta2", "adam_epsilon", "gradient_checkpointing", "gradient_accumulation_steps"),
    *("per_device_train_batch_size", "train_sampling_strategy", "packing", "padding_free", "pad_to_multiple_of"),
    *("max_length", "completion_only_loss", "bf16", "torch_compile"),
)


class MeasuredTrainer(SFTTrainer):
    """TRL's trainer, unchanged except that it counts the batches it trains on."""

    def __init__(self, *args, **kwargs) -> None:
        self.counts: list[dict[str, int]] = []
        super().__init__(*args, **kwargs)

    def training_step(self, model, inputs, *args, **kwargs):
        mask, labels = inputs["attention_mask"], inputs["labels"]
        self.counts.append(
            {
                "rows": mask.shape[0],
                "tokens": int(mask.sum()),
                "supervised": int((labels[:, 1:] != -100).sum()),  # nothing predicts a row's first token
                "positions": mask.numel(),
            }
        )
        return super().training_step(model, inputs, *args, **kwargs)


class StepTimer(TrainerCallback):
    """Seconds from the end of one step to the end of the next, so fetching rows and logging are included."""

    def __init__(self) -> None:
        self.seconds: list[float] = []
        self.last = self.first_step = 0.0

    def on_train_begin(self, args, state, control, **kwargs) -> None:
        self.last = time.perf_counter()

    def on_step_end(self, args, state, control, **kwargs) -> None:
        now = time.perf_counter()
        self.first_step = self.first_step or process_age()
        self.seconds.append(now - self.last)
        self.last = now


def rows_for_trl(path: Path) -> datasets.Dataset:
    """Plain text unchanged; messages in TRL's documented form for training on the answers only."""
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    if "messages" in rows[0]:
        rows = [{"prompt": row["messages"][:-1], "completion": row["messages"][-1:]} for row in rows]
    return datasets.Dataset.from_list(rows)


def build_trainer(options: argparse.Namespace, timer: StepTimer) -> MeasuredTrainer:
    bf16 = options.precision == "bf16"
    settings = dict(BEST_SETTINGS) if options.variant == "best" else {}
    if options.learning_rate is not None:
        settings["learning_rate"] = options.learning_rate
    config = SFTConfig(
        output_dir=str(options.out / "trainer"),
        model_init_kwargs={"dtype": "bfloat16" if bf16 else "float32"},
        per_device_train_batch_size=options.batch_size,
        bf16=bf16,
        use_cpu=True,
        max_steps=options.steps,
        seed=options.seed,
        report_to="none",
        logging_steps=1,
        save_strategy="no",
        **settings,
    )
    lora = LoraConfig(
        r=options.rank or 1,
        lora_alpha=options.alpha,
        lora_dropout=0.0,
        target_modules="all-linear",
        task_type="CAUSAL_LM",
    )
    rows = rows_for_trl(options.train)
    return MeasuredTrainer(
        str(options.model), args=config, train_dataset=rows, peft_config=lora if options.rank else None, callbacks=[timer]
    )


def settings_used(trainer: MeasuredTrainer) -> dict:
    """The values TRL trains with, read back from its configuration."""
    used = {name: getattr(trainer.args, name) for name in REPORTED}
    used = {name: str(value.value) if hasattr(value, "value") else value for name, value in used.items()}
    trained = [parameter for parameter in trainer.model.parameters() if parameter.requires_grad]
    used["completion_only_loss"] = trainer.completion_only_loss
    used["attention"] = trainer.model.config._attn_implementation
    used["base_dtype"] = str(getattr(trainer.model, "get_base_model", lambda: trainer.model)().dtype)
    used["trained_dtype"] = "/".join(sorted({str(parameter.dtype) for parameter in trained}))
    used["trained_parameters"] = sum(parameter.numel() for parameter in trained)
    return used


def write_rows(trainer: MeasuredTrainer, path: Path) -> None:
    """All rows as TRL made them, in the order of the file, for same_rows.py."""
    rows = ({"input_ids": row["input_ids"], "labels": row["labels"]} for row in trainer.train_dataset)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def measure(options: argparse.Namespace) -> dict:
    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    timer, before = StepTimer(), memory_mb("VmRSS")
    trainer = build_trainer(options, timer)
    trainer.train()
    peak = memory_mb("VmHWM")
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert len(losses) == len(timer.seconds) == len(trainer.counts) == options.steps
    steps = [
        {"step": number, "loss": loss, **counts, "seconds": seconds}
        for number, (loss, counts, seconds) in enumerate(zip(losses, trainer.counts, timer.seconds, strict=True), 1)
    ]
    timed = steps[1:]
    report = {
        "system": "trl",
        "variant": options.variant,
        "precision": options.precision,
        "seed": options.seed,
        "threads": torch.get_num_threads(),
        "versions": {
            "python": platform.python_version(),
            **{part.__name__: part.__version__ for part in (torch, transformers, trl, peft)},
        },
        "settings": settings_used(trainer),
        "steps": steps,
        "tokens": sum(step["tokens"] for step in steps),
        "supervised": sum(step["supervised"] for step in steps),
        "tokens_per_second": sum(step["tokens"] for step in timed) / sum(step["seconds"] for step in timed),
        "memory": {"before_model_mb": before, "peak_mb": peak, "used_mb": peak - before},
        "first_step_seconds": timer.first_step,
        "wall_seconds": process_age(),
        "adapter": str(options.out / "adapter"),
    }
    trainer.model.save_pretrained(options.out / "adapter")
    write_rows(trainer, options.out / "rows.jsonl")
    return report


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--train", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--precision", choices=["bf16", "fp32"], default="bf16")
    parser.add_argument("--variant", choices=["defaults", "best"], default="defaults")
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--rank", type=int, default=16, help="0: all weights are trained")
    parser.add_argument("--alpha", type=int, default=32)
    parser.add_argument("--learning-rate", type=float, help="TRL's own default when not given")
    options = parser.parse_args()
    if options.steps < 2:
        parser.error("--steps must be 2 or more: the first step is not timed.")
    print(json.dumps(measure(options)), flush=True)


if __name__ == "__main__":
    main()
