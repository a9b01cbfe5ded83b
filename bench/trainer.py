"""weitiao beside the Hugging Face Trainer on a classification task: the same rows, rate, steps and precision.

    python bench/trainer.py                 SpamAssassin, 2,000 mails once; about 10 minutes on 2 cores
    python bench/trainer.py --limit 64      does everything work?

Both tune all of MiniLM's weights with AdamW, one rate for head and body, a linear schedule, clipping at 1.0, 64 tokens a
mail, 16 mails a step, and are asked about the same 1,200 mails. What differs: the head (Trainer's model has BERT's pooler,
a dense layer and tanh over [CLS], begun at random; weitiao takes the mean of the hidden states) and the order of the rows.
`weitiao, as it comes` has its own rate for the new head. Seconds are those of training alone.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
DATA = ROOT / "quickstart" / "data"
RATE, BATCH, CONTEXT, SEED = 5e-5, 16, 64, 0


def main() -> None:
    """Train with each side, and print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--limit", type=int, default=2000, help="mails to learn from")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--trainer", action="store_true", help="be the Trainer's side")
    asked = parser.parse_args()
    if asked.trainer:
        print(json.dumps(with_trainer(asked.limit, asked.threads)))
        return
    found = {
        "Trainer": json.loads(_call(__file__, "--trainer", "--limit", str(asked.limit), "--threads", str(asked.threads))),
        "weitiao, the same rate for the head": with_weitiao(asked.limit, asked.threads, RATE),
        "weitiao, as it comes": with_weitiao(asked.limit, asked.threads, None),
    }
    print(table(found))


def with_trainer(limit: int, threads: int) -> dict:
    """Accuracy row by row, and seconds, of the usual script."""
    import torch
    from transformers import (
        AutoModelForSequenceClassification,
        AutoTokenizer,
        DataCollatorWithPadding,
        Trainer,
        TrainingArguments,
    )

    torch.set_num_threads(threads)
    folder = _call("-m", "weitiao", "base", "package:all-minilm-l6-v2", "--print-folder")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForSequenceClassification.from_pretrained(folder, num_labels=2, dtype=torch.float32)

    def encoded(name: str, many: int | None) -> list[dict]:
        rows = [json.loads(line) for line in (DATA / f"spam_{name}.jsonl").read_text(encoding="utf-8").splitlines()[:many]]
        labels = sorted({row["label"] for row in rows})
        cut = tokenizer([row["text"] for row in rows], truncation=True, max_length=CONTEXT)
        return [{"input_ids": ids, "labels": labels.index(row["label"])} for ids, row in zip(cut.input_ids, rows)]

    with tempfile.TemporaryDirectory() as place:
        settings = TrainingArguments(
            output_dir=place,
            num_train_epochs=1,
            per_device_train_batch_size=BATCH,
            per_device_eval_batch_size=64,
            learning_rate=RATE,
            lr_scheduler_type="linear",
            warmup_steps=0,
            weight_decay=0.0,
            max_grad_norm=1.0,
            seed=SEED,
            use_cpu=True,
            report_to=[],
            save_strategy="no",
            disable_tqdm=True,
        )
        trainer = Trainer(model, settings, DataCollatorWithPadding(tokenizer), encoded("train", limit))
        begun = time.perf_counter()
        trainer.train()
        seconds = time.perf_counter() - begun
        test = encoded("test", None)
        said = trainer.predict(test).predictions.argmax(-1)  # pyright: ignore
    return {"right": [bool(a == row["labels"]) for a, row in zip(said, test)], "seconds": seconds}


def with_weitiao(limit: int, threads: int, head: float | None) -> dict:
    """The same of `weitiao train`."""
    with tempfile.TemporaryDirectory() as place:
        recipe = {
            "base": "package:all-minilm-l6-v2",
            "data": {"path": str(DATA / "spam_train.jsonl"), "limit": limit},
            "validation": 0,
            "method": "full",
            "objective": {"name": "classification", **({"head_learning_rate": head} if head else {})},
            "context": CONTEXT,
            "train": {
                "epochs": 1, "batch_size": BATCH, "learning_rate": RATE, "schedule": "linear", "warmup": 0, "clip": 1.0,
                "precision": "fp32", "threads": threads,
            },
            "evaluate": {"data": str(DATA / "spam_test.jsonl"), "metrics": ["accuracy"], "samples": 0},
            "out": f"{place}/run",
            "seed": SEED,
        }  # fmt: skip
        file = Path(place) / "recipe.yaml"
        file.write_text(json.dumps(recipe), encoding="utf-8")
        _call("-m", "weitiao", "train", str(file), "--quiet")
        outcomes = json.loads((Path(place) / "run" / "outcomes.json").read_text(encoding="utf-8"))["after"]["choices"]
        lines = (Path(place) / "run" / "journal.jsonl").read_text(encoding="utf-8").splitlines()
    steps = [x for x in map(json.loads, lines) if x["event"] == "step"]
    return {"right": [said == wanted for said, wanted in outcomes], "seconds": sum(x["seconds"] for x in steps)}


def table(found: dict[str, dict]) -> str:
    """Accuracy with its interval, the difference from the Trainer row by row, seconds and their ratio."""
    from weitiao.core.score import proportion, ratio_of_sums

    other = found["Trainer"]
    lines = ["| | right | less Trainer, points | seconds | times as fast |", "|---|---|---|---|---|"]
    for name, x in found.items():
        right = proportion("accuracy", sum(x["right"]), len(x["right"]))
        gap = ratio_of_sums("gap", [float(a) - float(b) for a, b in zip(x["right"], other["right"])], [1.0] * right.n)
        shown = "–" if x is other else f"{100 * gap.value:+.1f} [{100 * gap.low:+.1f}, {100 * gap.high:+.1f}]"
        lines.append(f"| {name} | {right} | {shown} | {x['seconds']:.0f} | {other['seconds'] / x['seconds']:.2f} |")
    return "\n".join(lines)


def _call(*command: str) -> str:
    """The last line that a Python process prints."""
    done = subprocess.run([sys.executable, *command], check=True, stdout=subprocess.PIPE, text=True)
    return (done.stdout.strip().splitlines() or [""])[-1]


if __name__ == "__main__":
    main()
