"""Golden losses: a change that should not move numbers must not. `pytest --record` writes them anew; review the diff.

Tiny models made here, fp32, one thread's worth of work: the same on any CPU to 1e-4.
"""

import json
from pathlib import Path

import pytest

from weitiao.core.registry import names

FILE = Path(__file__).parent / "losses.json"
CASES = [
    *((f"sft_{method}", {"method": method}) for method in names("method")),
    *((f"sft_lora_{optimizer}", {"train": {"optimizer": optimizer}}) for optimizer in names("optimizer")),
    (
        "sft_lora_linear_tokens",
        {"train": {"batch_size": None, "batch_tokens": 200, "micro_tokens": 80, "schedule": "linear"}},
    ),
]


@pytest.mark.parametrize(("name", "changes"), CASES, ids=[name for name, _ in CASES])
def test_losses_are_as_recorded(name: str, changes: dict, quick, request: pytest.FixtureRequest) -> None:
    train = {"steps": 8, "learning_rate": 5e-3, "evaluate_every": 4, **changes.get("train", {})}
    run = quick(**{**changes, "train": train})
    found = {
        "loss": [round(line["loss"], 6) for line in run.journal("step")],
        "grad_norm": [round(line["grad_norm"], 6) for line in run.journal("step")],
        "validation": [round(line["loss"], 6) for line in run.journal("validation")],
    }
    known = json.loads(FILE.read_text()) if FILE.exists() else {}
    if request.config.getoption("--record"):
        FILE.write_text(json.dumps({**known, name: found}, indent=1, sort_keys=True) + "\n")
        return
    assert name in known, f"no golden losses for {name}: run pytest --record and review the diff"
    for key, values in known[name].items():
        assert found[key] == pytest.approx(values, rel=2e-4, abs=1e-5), key


@pytest.mark.parametrize("method", names("method"))
def test_it_learns(method: str, quick) -> None:
    """The loss falls to less than four fifths (a random frozen base and head bound what a tiny LoRA can reach)."""
    run = quick(
        method=method, train={"steps": 60, "learning_rate": 2e-2 if method != "full" else 5e-3, "evaluate_every": 0}
    )
    losses = [line["loss"] for line in run.journal("step")]
    assert sum(losses[-5:]) < 0.8 * sum(losses[:5])
