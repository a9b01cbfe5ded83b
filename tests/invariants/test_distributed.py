"""Two processes train as one: the same rows, the same gradient, the same weights. Real processes, torchrun and gloo."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from safetensors.torch import load_file

from support.processes import ForkServer, two_processes
from support.rows import rated_rows, write_jsonl
from weitiao.core.events import Step
from weitiao.core.run import Run


def torchrun(recipe: Path, out: Path) -> None:
    """`weitiao train` in two processes, started by torchrun."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "weitiao"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run([*command, "train", recipe, f"out={out}"], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("method", ["lora", {"name": "bilora", "upper_fraction": 0.3}])
def test_two_processes_same_weights_as_one(
    method: object, fork_server: ForkServer, recipe_dict: dict, tmp_path: Path
) -> None:
    """Rows of unequal length and a last batch that does not divide: the sum is divided by the count of all processes."""
    settings = {"steps": 5, "batch_size": 5, "micro_batch_tokens": 60, "optimizer": {"name": "sgd"}, "learning_rate": 0.5}
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(yaml.safe_dump({**recipe_dict, "method": method, "train": {**recipe_dict["train"], **settings}}))
    fork_server.run("train", recipe, f"out={tmp_path / 'one'}")
    torchrun(recipe, tmp_path / "two") if method == "lora" else two_processes(fork_server, recipe, tmp_path / "two")
    assert_same_weights(tmp_path)


def test_two_processes_same_pcgrad(fork_server: ForkServer, recipe_dict: dict, tmp_path: Path) -> None:
    """PCGrad compares the tasks' gradients over all processes; also of heads that a process has no rows for."""
    kinds = [{"text": f"{'fox ' * (i % 7)}{i}", "label": "ab"[i % 2]} for i in range(30)]
    files = {"kind": write_jsonl(tmp_path / "kinds.jsonl", kinds)}
    files["number"] = write_jsonl(tmp_path / "numbers.jsonl", rated_rows(20))
    tasks = {"kind": {"name": "classification", "dropout": 0.0}, "number": {"name": "regression", "dropout": 0.0}}
    settings = {"steps": 5, "batch_size": 5, "micro_batch_tokens": 60, "optimizer": {"name": "sgd"}, "learning_rate": 0.1}
    objective = {"name": "multi_task", "tasks": tasks, "gradients": "pcgrad"}
    data = [{"path": str(file), "task": task} for task, file in files.items()]
    recipe = tmp_path / "recipe.yaml"
    changes = {"objective": objective, "data": data, "train": {**recipe_dict["train"], **settings}}
    recipe.write_text(yaml.safe_dump({**recipe_dict, **changes}))
    fork_server.run("train", recipe, f"out={tmp_path / 'one'}")
    two_processes(fork_server, recipe, tmp_path / "two")
    assert_same_weights(tmp_path)


def assert_same_weights(folder: Path) -> None:
    one, two = Run(folder / "one"), Run(folder / "two")
    a, b = (load_file(run.folder / "best" / "weights.safetensors") for run in (one, two))
    assert a.keys() == b.keys()
    worst = max(float((a[name] - b[name]).norm() / a[name].norm()) for name in a if a[name].norm())
    assert worst <= 1e-6
    steps = [[(x.step, x.tokens, x.num_targets) for x in run.events(Step)] for run in (one, two)]
    assert steps[0] == steps[1] and len(steps[0]) == 5
