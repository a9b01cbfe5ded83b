"""weitiao's side of bench/trainer.py: `weitiao train` on a written recipe, and what its Run folder says.

Seconds are those of the journal's steps, from asking for a step's rows until the weights have moved, guard and journal
included; and those of running frozen layers once before them. What was said of each held-out row is in row_results.json.
"""

import json
from collections.abc import Callable
from pathlib import Path

from trainer_tasks import LONGEST, OVERLAP, RANK, read_lines

SETTINGS = {
    "classification": {},
    "token_classification": {},
    "question_answering": {"doc_stride": OVERLAP},
    "seq2seq": {"longest": LONGEST},
    "sft": {},
}
METRIC = {
    "classification": "accuracy",
    "token_classification": "entity_f1",
    "question_answering": "squad_em",
    "seq2seq": "exact_match",
    "sft": "loss",
}
METHODS = {
    "full": lambda layers: "full",
    "freeze": lambda layers: {"name": "freeze", "layers": layers},
    "lora": lambda layers: {"name": "lora", "rank": RANK, "alpha": 2 * RANK},
}


def recipe(asked: dict, out: Path) -> dict:
    """The task as a recipe: the head's rate is the body's, nothing is validated or saved between the steps."""
    objective = {"name": asked["objective"], **SETTINGS[asked["objective"]]}
    if asked["objective"] not in ("seq2seq", "sft"):
        objective["head_learning_rate"] = asked["learning_rate"]
    return {
        "base": asked["model"],
        "data": asked["train"],
        "validation": 0,
        "method": METHODS[asked["method"]](asked["layers"]),
        "objective": objective,
        "context": asked["context"],
        "train": {
            "epochs": asked["epochs"],
            "batch_size": asked["batch_size"],
            "learning_rate": asked["learning_rate"],
            "lr_schedule": "linear",
            "warmup_ratio": 0,
            "max_grad_norm": 1.0,
            "precision": asked["precision"],
            "evaluate_every": 0,
            "save_every": 0,
            "threads": asked["threads"],
        },
        "evaluate": {
            "data": asked["test"],
            "metrics": list(dict.fromkeys(["loss", METRIC[asked["objective"]]])),
            "limit": None,
            "samples": 0,
        },
        "out": str(out),
        "seed": asked["seed"],
    }


def play(asked: dict, folder: Path, call: Callable[..., str]) -> dict:
    """One training.

    Args:
        call: runs Python with these words.

    Returns:
        Seconds of training, steps, the loss of each held-out row before and after, and what was said of it.
    """
    file, run = folder / "recipe.json", folder / "run"
    file.write_text(json.dumps(recipe(asked, run)), encoding="utf-8")
    call("-m", "weitiao", "train", str(file), "--quiet")
    journal = read_lines(run / "events.jsonl")
    steps = [line for line in journal if line["event"] == "step"]
    outcomes = json.loads((run / "row_results.json").read_text(encoding="utf-8"))
    return {
        "seconds": sum(line["seconds"] for line in journal if line["event"] in ("step", "frozen_layers")),
        "steps": len(steps),
        "before": outcomes["before"]["row_losses"],
        "losses": outcomes["after"]["row_losses"],
        "said": outcomes["after"].get("choices") or outcomes["after"].get("answers", []),
    }
