"""One supervised LoRA run by LLaMA-Factory, measured; run it with a Python that has llamafactory.

    PEER_PYTHON -m bench.peers.llamafactory_side --model FOLDER --train train.jsonl --steps 12 --precision bf16 --out FOLDER

Nothing is passed except model, rows, LoRA, batch size, precision, steps, seed, output folder, and TRL's learning rate,
schedule, weight decay and clipping; so gradient checkpointing is on. `--variant best` switches it off and groups rows by
length. The rows are read in the "sharegpt" format with their own names (its "openai" format adds a system message,
"detailed thinking off", to each row); the template is its "chatml" with the model's system message. torchvision and
torchaudio, which it requires but text rows never use, are masked if they do not load (the package index has builds for
GPUs only). The last line printed is one JSON object of bench/sft/trl_side.py's form.
"""

import importlib
import json
import os
import sys
from importlib.machinery import ModuleSpec
from types import ModuleType

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("OMP_NUM_THREADS", "2")
for name in ("torchvision", "torchaudio"):
    try:
        importlib.import_module(name)
    except (ImportError, OSError, RuntimeError):
        for module in [x for x in sys.modules if x.split(".")[0] == name]:
            del sys.modules[module]
        sys.modules[name] = None  # "not installed", for transformers
import transformers  # noqa: E402  (checks what is installed while it is imported)

if sys.modules["torchaudio"] is None:
    sys.modules["torchaudio"] = ModuleType("torchaudio")  # LLaMA-Factory imports it for any rows
    sys.modules["torchaudio"].__spec__ = ModuleSpec("torchaudio", None)

from llamafactory.train.sft import workflow  # noqa: E402
from llamafactory.train.tuner import run_exp  # noqa: E402

from bench.peers.measurement import Measurement, print_report, read_options, trainable_facts  # noqa: E402

PACKAGES = ["llamafactory", "torch", "transformers", "peft", "accelerate", "datasets"]
SYSTEM = "You are a helpful AI assistant named SmolLM, trained by Hugging Face"  # as in the model's own template
BEST_SETTINGS = {"disable_gradient_checkpointing": True, "train_sampling_strategy": "group_by_length"}
REPORTED = (
    *("learning_rate", "lr_scheduler_type", "warmup_steps", "weight_decay", "max_grad_norm", "optim"),
    *("adam_beta1", "adam_beta2", "adam_epsilon", "gradient_accumulation_steps", "per_device_train_batch_size", "bf16"),
)


class Recorder(transformers.TrainerCallback):
    """Times, losses, peak memory and settings, from the Trainer's callbacks."""

    def __init__(self, measurement: Measurement) -> None:
        self.measurement, self.settings = measurement, {}

    def on_train_begin(self, args, state, control, model, **kwargs) -> None:
        used = {name: getattr(args, name) for name in REPORTED}
        self.settings = {name: str(value.value) if hasattr(value, "value") else value for name, value in used.items()}
        self.settings |= {"gradient_checkpointing": model.is_gradient_checkpointing, **trainable_facts(model)}
        self.measurement.start_training()

    def on_step_end(self, args, state, control, **kwargs) -> None:
        self.measurement.end_step()

    def on_log(self, args, state, control, logs, **kwargs) -> None:
        if "loss" in logs:
            self.measurement.losses.append(logs["loss"])

    def on_train_end(self, args, state, control, **kwargs) -> None:
        self.measurement.end_training()


def counted(trainer: type, measurement: Measurement) -> type:
    """LLaMA-Factory's trainer, unchanged except that it counts the batches it trains on."""

    class MeasuredTrainer(trainer):
        def training_step(self, model, inputs, *args, **kwargs):
            mask, supervised = inputs["attention_mask"], inputs["labels"] != -100
            counts = {"tokens": int(mask.sum()), "supervised": int(supervised.sum())}
            measurement.count(rows=mask.shape[0], positions=mask.numel(), **counts)
            return super().training_step(model, inputs, *args, **kwargs)

    return MeasuredTrainer


def model_folder(options) -> str:
    """The model; for bf16 a folder of links with a changed config.json, whose dtype LLaMA-Factory uses."""
    if options.precision == "fp32":
        return str(options.model)
    folder = options.out / "model"
    folder.mkdir()
    for file in options.model.iterdir():
        (folder / file.name).symlink_to(file)
    config = json.loads((options.model / "config.json").read_text(encoding="utf-8"))
    (folder / "config.json").unlink()
    (folder / "config.json").write_text(json.dumps(config | {"dtype": "bfloat16"}), encoding="utf-8")
    return str(folder)


def arguments(options) -> dict:
    """LLaMA-Factory's own YAML keys; the dataset is described as in its documentation."""
    tags = {"role_tag": "role", "content_tag": "content", "user_tag": "user", "assistant_tag": "assistant"}
    dataset = {
        "file_name": str(options.train),
        "formatting": "sharegpt",
        "columns": {"messages": "messages"},
        "tags": tags,
    }
    (options.out / "dataset_info.json").write_text(json.dumps({"rows": dataset}), encoding="utf-8")
    return {
        "model_name_or_path": model_folder(options),
        "stage": "sft",
        "do_train": True,
        "finetuning_type": "lora",
        "lora_rank": options.rank,
        "lora_alpha": options.alpha,
        "lora_target": "all",
        "dataset": "rows",
        "dataset_dir": str(options.out),
        "template": "chatml",
        "default_system": SYSTEM,
        "cache_dir": str(options.out / "cache"),
        "output_dir": str(options.out / "trainer"),
        "per_device_train_batch_size": options.batch_size,
        "max_steps": options.steps,
        "learning_rate": options.learning_rate,
        "lr_scheduler_type": "linear",
        "weight_decay": 0.0,
        "max_grad_norm": 1.0,
        "bf16": options.precision == "bf16",
        "use_cpu": True,
        "seed": options.seed,
        "report_to": "none",
        "logging_steps": 1,
        "save_strategy": "no",
        **(BEST_SETTINGS if options.variant == "best" else {}),
    }


def main() -> None:
    options, stdout = read_options(__doc__, ["defaults", "best"]), sys.stdout
    sys.stdout = sys.stderr  # LLaMA-Factory prints
    measurement = Measurement()
    recorder, workflow.CustomSeq2SeqTrainer = Recorder(measurement), counted(workflow.CustomSeq2SeqTrainer, measurement)
    run_exp(arguments(options), callbacks=[recorder])
    sys.stdout = stdout
    print_report(measurement.report(options, "llamafactory", PACKAGES, recorder.settings))


if __name__ == "__main__":
    main()
