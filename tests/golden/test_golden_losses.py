"""Golden losses: a change that should move no number must not. `pytest --record` writes them; review the diff.

Tiny models made here, fp32, one thread's worth of work: the same on any CPU to 2e-4, and gradient norms over eight steps to
1e-3 (bilora: 3.2e-4 between two CPUs).
"""

import json
from pathlib import Path
from typing import Any

import pytest

from make_small_bert import characters, make
from support.models import WORDS
from support.parts import VARIANTS, method_config
from support.rows import chat_rows, question_rows, rated_rows, write_jsonl
from support.runs import overfitted_model
from weitiao.core.events import Step, Validation
from weitiao.core.method import Method
from weitiao.core.optimizer import Optimizer
from weitiao.core.registry import names

TOLERANCE = {"loss": 2e-4, "validation": 2e-4, "grad_norm": 1e-3}
FILE = Path(__file__).parent / "losses.json"
TAGGED = [
    {"tokens": ["the", "fox", *["asks"] * (i % 4), "paris"], "tags": ["O", "B-who", *["O"] * (i % 4), "B-where"]}
    for i in range(24)
]
CASES = [
    *((f"sft_{method}", {"method": method}) for method in (*names(Method), *VARIANTS)),
    *((f"sft_lora_{optimizer}", {"train": {"optimizer": optimizer}}) for optimizer in names(Optimizer)),
    (
        "sft_lora_linear_tokens",
        {"train": {"batch_size": None, "batch_tokens": 200, "micro_batch_tokens": 80, "lr_schedule": "linear"}},
    ),
    ("token_classification_lora", {"objective": "token_classification"}),
    ("token_classification_crf_lora", {"objective": {"name": "token_classification", "crf": True}}),
]
ENCODERS = {  # what BERT learns
    "masked_lm": [{"text": row["messages"][0]["content"] * 2} for row in chat_rows(24)],
    "embedding": [{"query": f"{a} fox", "document": f"the {a}"} for a in WORDS.split()],
}


@pytest.mark.parametrize("name", ENCODERS)
def test_encoder_losses_match_record(name: str, recorded: Any, train_tiny: Any, tmp_path: Path) -> None:
    data = [{"path": str(write_jsonl(tmp_path / "rows.jsonl", ENCODERS[name]))}]
    shape = {"steps": 8, "learning_rate": 5e-3, "evaluate_every": 4}
    make(tmp_path / "bert", characters(iter([WORDS]), 1), 3, 32, 4, 64, seed=1)
    recorded(f"{name}_lora", train_tiny(base=str(tmp_path / "bert"), data=data, objective=name, train=shape))


@pytest.fixture
def recorded(request: pytest.FixtureRequest) -> Any:
    """recorded(name, run): holds a run's losses against those that were written down, or writes them down."""

    def hold(name: str, run: Any) -> None:
        found = {
            "loss": [round(line.loss, 6) for line in run.events(Step)],
            "grad_norm": [round(line.grad_norm, 6) for line in run.events(Step)],
            "validation": [round(line.loss, 6) for line in run.events(Validation)],
        }
        known = json.loads(FILE.read_text()) if FILE.exists() else {}
        if request.config.getoption("--record"):
            FILE.write_text(json.dumps({**known, name: found}, indent=1, sort_keys=True) + "\n")
            return
        assert name in known, f"no golden losses for {name}: run pytest --record and review the diff"
        for key, values in known[name].items():
            assert found[key] == pytest.approx(values, rel=TOLERANCE[key], abs=1e-5), key

    return hold


@pytest.mark.parametrize(("name", "changes"), CASES, ids=[name for name, _ in CASES])
def test_method_losses_match_record(name: str, changes: dict, train_tiny: Any, recorded: Any, tmp_path: Path) -> None:
    if name.startswith("token_classification"):
        changes = {**changes, "data": [{"path": str(write_jsonl(tmp_path / "tagged.jsonl", TAGGED))}]}
    if "method" in changes:
        changes = {**changes, "method": method_config(changes["method"])}
    train = {"steps": 8, "learning_rate": 5e-3, "evaluate_every": 4, **changes.get("train", {})}
    recorded(name, train_tiny(**{**changes, "train": train}))


LABELLED = [{"text": row["text"], "label": "abc"[i % 3]} for i, row in enumerate(rated_rows(24))]
ROWS = {
    "classification": LABELLED,
    "generative_classification": LABELLED,
    "question_answering": question_rows(24),
    "regression": rated_rows(24),
}


@pytest.mark.parametrize("objective", ROWS)
def test_objective_losses_match_record(objective: str, train_tiny: Any, recorded: Any, tmp_path: Path) -> None:
    rows = write_jsonl(tmp_path / "rows.jsonl", ROWS[objective])
    changes = {"data": [{"path": str(rows)}], "objective": objective}
    test_method_losses_match_record(f"{objective}_lora", changes, train_tiny, recorded, tmp_path)


@pytest.fixture(scope="session")
def taught(tiny_llama: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model that answers some questions; most methods can teach a random one hardly anything."""
    return overfitted_model(tmp_path_factory.mktemp("taught"), tiny_llama, chat_rows(24))


@pytest.mark.parametrize("method", names(Method))
def test_loss_falls(method: str, train_tiny, taught: Path, tmp_path: Path) -> None:
    """A model that gives certain answers learns to give others to the same questions: the loss falls below four fifths
    (a little with soft prompts, which steer so small a model hardly)."""
    data = write_jsonl(tmp_path / "second.jsonl", chat_rows(24, ("the wizards", "time", "quick boxes")))
    rate = {"full": 5e-3, "freeze": 5e-3}.get(method, 2e-2)
    shape = {"steps": 100, "batch_size": 8, "learning_rate": rate, "evaluate_every": 0, "save_every": 60}
    run = train_tiny(base=str(taught), data=[{"path": str(data)}], method=method_config(method, taught), train=shape)
    losses = [line.loss for line in run.events(Step)]
    bound = 0.95 if method in ("prompt_tuning", "p_tuning") else 0.8
    assert sum(losses[-5:]) < bound * sum(losses[:5]), (losses[:5], losses[-5:])
