"""weitiao's side of the trainer suite: `weitiao train` on a generated recipe, and the results in its Run folder.

The time is that of the steps in events.jsonl, from fetching a step's rows until the weights have moved, guard and events
included, plus the one-time pass through frozen layers. The predictions of held-out rows are in row_results.json.
"""

import json
from collections.abc import Callable
from pathlib import Path

from bench.trainer.tasks import DOC_STRIDE, MAX_NEW_TOKENS, RANK, read_lines

SETTINGS = {
    "classification": {},
    "token_classification": {},
    "question_answering": {"doc_stride": DOC_STRIDE},
    "seq2seq": {"max_new_tokens": MAX_NEW_TOKENS},
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
    "full": lambda _: "full",
    "freeze": lambda num_layers: {"name": "freeze", "num_layers": num_layers},
    "lora": lambda _: {"name": "lora", "rank": RANK, "alpha": 2 * RANK},
}


def recipe(job: dict, out: Path) -> dict:
    """The task as a recipe: one learning rate for backbone and head, no validation and no checkpoints between the steps."""
    objective = {"name": job["objective"], **SETTINGS[job["objective"]]}
    if job["objective"] not in ("seq2seq", "sft"):
        objective["head_learning_rate"] = job["learning_rate"]
    return {
        "base": job["model"],
        "data": job["train"],
        "validation": 0,
        "method": METHODS[job["method"]](job["num_layers"]),
        "objective": objective,
        "max_length": job["max_length"],
        "train": {
            "epochs": job["epochs"],
            "batch_size": job["batch_size"],
            "learning_rate": job["learning_rate"],
            "lr_schedule": "linear",
            "warmup_ratio": 0,
            "max_grad_norm": 1.0,
            "precision": job["precision"],
            "evaluate_every": 0,
            "save_every": 0,
            "num_threads": job["threads"],
        },
        "evaluate": {
            "data": job["test"],
            "metrics": list(dict.fromkeys(["loss", METRIC[job["objective"]]])),
            "limit": None,
            "samples": 0,
            "forgetting": False,
        },
        "out": str(out),
        "seed": job["seed"],
    }


def run_side(job: dict, folder: Path, call: Callable[..., str]) -> dict:
    """One training.

    Args:
        call: runs Python with these arguments.

    Returns:
        Training seconds, steps, the loss of each held-out row before and after, and its predictions.
    """
    file, run = folder / "recipe.json", folder / "run"
    file.write_text(json.dumps(recipe(job, run)), encoding="utf-8")
    call("-m", "weitiao", "train", str(file), "--quiet")
    events = read_lines(run / "events.jsonl")
    steps = [line for line in events if line["event"] == "step"]
    results = json.loads((run / "row_results.json").read_text(encoding="utf-8"))
    return {
        "seconds": sum(line["seconds"] for line in events if line["event"] in ("step", "activations_cached")),
        "steps": len(steps),
        "before": results["before"]["row_losses"],
        "losses": results["after"]["row_losses"],
        "predictions": results["after"].get("choices") or results["after"].get("answers", []),
    }
