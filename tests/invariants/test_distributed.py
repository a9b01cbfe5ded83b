"""Two machines are one: the same rows, the same gradient, the same weights. Two real processes, by torchrun and gloo."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from safetensors.torch import load_file

from support.rows import rated_rows, write_jsonl
from weitiao.core.run import Run


def train(recipe: Path, out: Path, processes: int) -> Run:
    """`weitiao train` in so many processes."""
    alone = [sys.executable, "-m", "weitiao"]
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    command = alone if processes == 1 else [*torchrun, "-m", "weitiao"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run([*command, "train", recipe, f"out={out}"], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return Run(out)


@pytest.mark.parametrize("method", ["lora", {"name": "bilora", "upper_fraction": 0.3}])
def test_two_processes_same_weights_as_one(method: object, recipe_dict: dict, tmp_path: Path) -> None:
    """Rows of unequal length and a last batch that does not divide: the sum is divided by what all machines count."""
    wishes = {"steps": 5, "batch_size": 5, "micro_batch_tokens": 60, "optimizer": {"name": "sgd"}, "learning_rate": 0.5}
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(yaml.safe_dump({**recipe_dict, "method": method, "train": {**recipe_dict["train"], **wishes}}))
    same_weights(recipe, tmp_path)


def test_two_processes_same_pcgrad(recipe_dict: dict, tmp_path: Path) -> None:
    """Gradient surgery looks at each task's gradient over all machines; heads that a machine has no rows for, too."""
    kinds = [{"text": f"{'fox ' * (i % 7)}{i}", "label": "ab"[i % 2]} for i in range(30)]
    files = {"kind": write_jsonl(tmp_path / "kinds.jsonl", kinds)}
    files["number"] = write_jsonl(tmp_path / "numbers.jsonl", rated_rows(20))
    tasks = {"kind": {"name": "classification", "dropout": 0.0}, "number": {"name": "regression", "dropout": 0.0}}
    wishes = {"steps": 5, "batch_size": 5, "micro_batch_tokens": 60, "optimizer": {"name": "sgd"}, "learning_rate": 0.1}
    aim = {"name": "multi_task", "tasks": tasks, "gradients": "pcgrad"}
    data = [{"path": str(file), "task": task} for task, file in files.items()]
    recipe = tmp_path / "recipe.yaml"
    more = {"objective": aim, "data": data, "train": {**recipe_dict["train"], **wishes}}
    recipe.write_text(yaml.safe_dump({**recipe_dict, **more}))
    same_weights(recipe, tmp_path)


def same_weights(recipe: Path, tmp_path: Path) -> None:
    one, two = train(recipe, tmp_path / "one", 1), train(recipe, tmp_path / "two", 2)
    a, b = (load_file(run.folder / "best" / "weights.safetensors") for run in (one, two))
    assert a.keys() == b.keys()
    worst = max(float((a[name] - b[name]).norm() / a[name].norm()) for name in a if a[name].norm())
    assert worst <= 1e-6
    told = [[(x["step"], x["tokens"], x["supervised"]) for x in run.events("step")] for run in (one, two)]
    assert told[0] == told[1] and len(told[0]) == 5
