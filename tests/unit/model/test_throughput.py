"""The journal's line "speed": what a run needed, what it reached, what this machine reaches."""

import html
from pathlib import Path
from typing import Any

import pytest
import torch

from support.command import weitiao
from support.models import save_model
from support.rows import rated_rows, write_jsonl
from support.runs import stop_at
from weitiao.core.errors import Interrupted
from weitiao.core.events import Step, Throughput
from weitiao.core.history import describe, throughput
from weitiao.core.messages import Message
from weitiao.core.run import Run
from weitiao.model.profiling.flops import profile_flops
from weitiao.model.profiling.throughput import ThroughputMeter, matmul_limit

SENTENCE = "tokens/s; "


def throughputs(run: Run) -> list[dict[str, Any]]:
    return [event for event in run.history if event["event"] == "throughput"]


def test_run_reports_throughput(train_tiny: Any) -> None:
    run = train_tiny()
    (line,) = throughputs(run)
    assert line["steps"] == 3, "four steps, the first left out"
    each = sorted(x.tokens / x.seconds for x in run.events(Step))
    assert each[0] <= line["tokens_per_second"] * 1.01 and line["tokens_per_second"] <= each[-1] * 1.01
    reached = line["needed_gflop_per_token"] * line["tokens_per_second"]
    assert line["gflop_per_second"] == pytest.approx(reached, rel=1e-2)
    assert line["share_of_limit"] == pytest.approx(line["gflop_per_second"] / line["limit_gflop_per_second"], rel=1e-2)
    text = str(throughput(run))
    assert text in html.unescape((run.folder / "report.html").read_text()) and SENTENCE in text
    assert text in weitiao("why", run.folder)[1]


def test_command_prints_throughput_line(recipe_file: Any) -> None:
    code, text = weitiao("train", recipe_file(train={"steps": 3}))
    assert code == 0 and "of what this machine's matrix products reach" in text


def test_one_step_no_throughput(train_tiny: Any) -> None:
    run = train_tiny(train={"steps": 1})
    assert not throughputs(run) and throughput(run) is None and run.is_finished


def test_resumed_run_counts_own_steps(train_tiny: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = str(tmp_path / "stopped")
    with stop_at(2, monkeypatch), pytest.raises(Interrupted):
        train_tiny(train={"steps": 6, "save_every": 1}, out=out)
    assert not throughputs(Run(Path(out))), "interrupted: nothing is reported yet"
    (line,) = throughputs(train_tiny(again=True, train={"steps": 6, "save_every": 1}, out=out))
    assert line["steps"] == 3, "steps 3 to 6, but for the first"


def test_measuring_changes_nothing(train_tiny: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    unchanged: list[bool] = []
    real = ThroughputMeter.report

    def report(self: ThroughputMeter, run: Run) -> None:
        model = self.model
        before = {name: x.clone() for name, x in model.model.state_dict().items()}
        drawn, gradients = torch.get_rng_state(), [x.grad is None for x in model.model.parameters()]
        modes = [x.training for x in model.model.modules()]
        real(self, run)
        same = all(torch.equal(x, before[name]) for name, x in model.model.state_dict().items())
        same = same and torch.equal(drawn, torch.get_rng_state()) and modes == [x.training for x in model.model.modules()]
        unchanged.append(same and gradients == [x.grad is None for x in model.model.parameters()])

    monkeypatch.setattr(ThroughputMeter, "report", report)
    for method in ("lora", "adalora", "prefix_tuning"):
        run = train_tiny(method={"name": method}, out=str(tmp_path / method))
        assert throughputs(run)
    assert unchanged == [True] * 3


def test_throughput_of_encoders_and_multi_task(train_tiny: Any, tmp_path: Path) -> None:
    kinds = [{"text": f"{'fox ' * (i % 7)}{i}", "label": "ab"[i % 2]} for i in range(24)]
    files = {"kind": write_jsonl(tmp_path / "kinds.jsonl", kinds)}
    files["number"] = write_jsonl(tmp_path / "numbers.jsonl", rated_rows(24))
    tasks = {"kind": "classification", "number": "regression"}
    run = train_tiny(
        base=str(save_model(tmp_path / "bert", "bert")),
        data=[{"path": str(file), "task": task} for task, file in files.items()],
        objective={"name": "multi_task", "tasks": tasks},
        evaluate={"metrics": ["loss"], "samples": 0},
    )
    assert throughputs(run)[0]["share_of_limit"] > 0


def test_throughput_uncounted_reason(train_tiny: Any, tmp_path: Path) -> None:
    rows = [{"source": f"fox {i}", "target": "the lazy dog"} for i in range(16)]
    run = train_tiny(
        base=str(save_model(tmp_path / "t5", "t5")),
        data=[{"path": str(write_jsonl(tmp_path / "rows.jsonl", rows))}],
        objective={"name": "seq2seq", "max_new_tokens": 8},
        evaluate={"metrics": ["loss"], "samples": 0},
    )
    (line,) = throughputs(run)
    assert "encoder-decoder" in str(Message.from_json(line["unsupported_reason"])) and "gflop_per_second" not in line
    assert str(throughput(run)).endswith("tokens/s")


def test_limit_is_torch_mm(open_model: Any) -> None:
    model = open_model()
    rate = matmul_limit(profile_flops(model), 64, torch.float32, torch.device("cpu"), 0.1)
    assert 0 < rate.low <= rate.median <= rate.high and rate.n >= 3


def test_throughput_sentence() -> None:
    rates = {"gflop_per_second": 97.9, "limit_gflop_per_second": 160.3, "share_of_limit": 0.611}
    measured = "120 tokens/s; 61% of what this machine's matrix products reach (97.9 GFLOP/s of 160)"
    assert str(describe(Throughput(120.4, 3, **rates))) == measured
    assert str(describe(Throughput(1234.5, 3))) == "1,234 tokens/s"
    shared = str(describe(Throughput(120.4, 3, **rates, shared_prefix_fraction=0.195)))
    assert shared == f"{measured}; 20% of the tokens were computed together with a row that starts the same"


def test_shared_prefix_reported(train_tiny: Any, tmp_path: Path) -> None:
    """Not where it ran in each row: with dropout, or noise on embeddings."""
    lines = []
    for i, (dropout, more) in enumerate(((0.0, {}), (0.1, {}), (0.0, {"regularizers": ["neftune"]}))):
        lines += throughputs(train_tiny(method={"name": "lora", "dropout": dropout}, out=str(tmp_path / str(i)), **more))
    shared, dropout, noise = lines
    assert shared["shared_prefix_fraction"] > 0.05 and "shared_prefix_fraction" not in dropout | noise
    assert shared["needed_gflop_per_token"] < dropout["needed_gflop_per_token"] == noise["needed_gflop_per_token"]
