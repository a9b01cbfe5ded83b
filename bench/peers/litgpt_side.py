"""One supervised LoRA run by LitGPT, measured; run it with a Python that has litgpt.

    PEER_PYTHON -m bench.peers.litgpt_side --model FOLDER --train train.jsonl --steps 12 --precision bf16 --out FOLDER

The model is converted first (`litgpt convert_to_litgpt`, a process of its own, not measured). Then it is `litgpt
finetune_lora` with LoRA on all linear layers except the head, loss on the answers only, LitGPT's prompt style for this
model, and its default of one row per micro-batch, so it never pads. Where it cannot match TRL: its schedule is always a
linear warm-up of at least one step followed by a cosine, it does not clip, the loss of a step is the mean of its rows'
means, and bf16 (bf16-true) holds LoRA's weights in bf16, too. Rows must be one question and one answer. The last line
printed is one JSON object of bench/sft/trl_side.py's form.
"""

import argparse
import contextlib
import json
import os
import subprocess
import sys
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("OMP_NUM_THREADS", "2")

from litgpt.args import EvalArgs, TrainArgs
from litgpt.data import JSON
from litgpt.finetune import lora

from bench.peers.measurement import Measurement, print_report, read_options, trainable_facts

PACKAGES = ["litgpt", "torch", "lightning", "tokenizers"]
KNOWN_AS = "SmolLM2-135M-Instruct"  # LitGPT finds the architecture, the prompt style and the use of bos by this name
WARMUP = 1  # 0 divides by zero in LitGPT's schedule


class CountedBatches:
    """LitGPT's rows, unchanged, counted as training fetches them."""

    def __init__(self, loader, measurement: Measurement) -> None:
        self.loader, self.dataset, self.measurement = loader, loader.dataset, measurement

    def __len__(self) -> int:
        return len(self.loader)

    def __iter__(self):
        for batch in self.loader:
            ids, supervised = batch["input_ids"], batch["labels"] != -100
            tokens = int(batch["token_counts"]["raw_plus_prompt_template"].sum())
            counts = {"tokens": tokens, "supervised": int(supervised.sum())}
            self.measurement.count(rows=ids.shape[0], positions=ids.numel(), **counts)
            yield batch


class TimedSchedule:
    """LitGPT advances its schedule at the end of a step: the time is read there."""

    def __init__(self, schedule, measurement: Measurement) -> None:
        self.schedule, self.measurement = schedule, measurement
        self.get_last_lr = schedule.get_last_lr

    def step(self) -> None:
        self.schedule.step()
        self.measurement.end_step()


def converted(options: argparse.Namespace) -> Path:
    """The model in LitGPT's format, next to links to its source files."""
    folder = options.out / KNOWN_AS
    folder.mkdir()
    for file in options.model.iterdir():
        (folder / file.name).symlink_to(file)
    command = [str(Path(sys.executable).parent / "litgpt"), "convert_to_litgpt", str(folder)]
    subprocess.run(command, check=True, stdout=sys.stderr)
    return folder


def write_rows(options: argparse.Namespace) -> Path:
    """The rows in LitGPT's format; it requires a validation file, whose one row is never used."""
    folder, rows = options.out / "rows", []
    folder.mkdir()
    for line in options.train.read_text(encoding="utf-8").splitlines():
        question, answer = json.loads(line)["messages"]
        assert (question["role"], answer["role"]) == ("user", "assistant")
        rows.append({"instruction": question["content"], "output": answer["content"]})
    for name, split in (("train", rows), ("val", rows[:1])):
        (folder / f"{name}.json").write_text(json.dumps(split), encoding="utf-8")
    return folder


def measured(fit, measurement: Measurement, settings: dict):
    """LitGPT's loop, unchanged; the loss of a step is the one logged after its last micro-batch."""

    def fit_and_measure(fabric, model, scheduler, train_dataloader, train: TrainArgs, **rest):
        own_log, every = fabric.log_dict, train.gradient_accumulation_iters(1)

        def log(metrics: dict, step: int | None = None) -> None:
            if "loss" in metrics and metrics["iter"] % every == 0:
                measurement.losses.append(metrics["loss"])
            own_log(metrics, step=step)

        fabric.log_dict = log
        settings.update(trainable_facts(model), micro_batch_size=train.micro_batch_size)
        schedule, batches = TimedSchedule(scheduler, measurement), CountedBatches(train_dataloader, measurement)
        measurement.start_training()
        result = fit(fabric=fabric, model=model, scheduler=schedule, train_dataloader=batches, train=train, **rest)
        measurement.end_training()
        return result

    return fit_and_measure


def train(options: argparse.Namespace, model: Path, rows: Path, settings: dict) -> None:
    betas = [settings["adam_beta1"], settings["adam_beta2"]]
    adamw = {"lr": options.learning_rate, "weight_decay": 0.0, "betas": betas, "eps": settings["adam_epsilon"]}
    layers = ("query", "key", "value", "projection", "mlp")
    lora.setup(
        model,
        options.out / "trained",
        precision="bf16-true" if options.precision == "bf16" else "32-true",
        lora_r=options.rank,
        lora_alpha=options.alpha,
        lora_dropout=0.0,
        **{f"lora_{layer}": True for layer in layers},
        data=JSON(rows, mask_prompt=True, prompt_style="smollm2", seed=options.seed),
        train=TrainArgs(
            save_interval=None,
            global_batch_size=options.batch_size,
            micro_batch_size=1,
            lr_warmup_steps=WARMUP,
            epochs=1,
            max_steps=options.steps,
        ),
        eval=EvalArgs(interval=options.steps + 1, max_new_tokens=1, final_validation=False),
        optimizer={"class_path": "torch.optim.AdamW", "init_args": adamw},
        seed=options.seed,
    )


def main() -> None:
    options = read_options(__doc__, ["defaults"])
    settings = {
        "learning_rate": options.learning_rate,
        "lr_scheduler_type": "cosine",
        "warmup_steps": WARMUP,
        "weight_decay": 0.0,
        "max_grad_norm": 0.0,
        "optim": "adamw_torch",
        "adam_beta1": 0.9,
        "adam_beta2": 0.999,
        "adam_epsilon": 1e-8,
        "gradient_checkpointing": False,
        "bf16": options.precision == "bf16",
    }
    with contextlib.redirect_stdout(sys.stderr):  # LitGPT prints
        model, rows, measurement = converted(options), write_rows(options), Measurement()
        # After the last step LitGPT reads its own command line again and merges: not part of training.
        lora.save_hyperparameters = lora.merge_lora = lambda *_, **__: None
        lora.fit = measured(lora.fit, measurement, settings)
        train(options, model, rows, settings)
    print_report(measurement.report(options, "litgpt", PACKAGES, settings))


if __name__ == "__main__":
    main()
