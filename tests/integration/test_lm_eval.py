"""lm-evaluation-harness, where it is installed (pip install lm-eval): our exams and our models in it, the same choices."""

import json
from pathlib import Path
from typing import Any

import pytest

from support.models import save_model
from weitiao.core.reporter import Reporter
from weitiao.pipeline.exam_data import export_exam, open_exams
from weitiao.pipeline.exams import take_exams
from weitiao.pipeline.harness_model import register_model
from weitiao.pipeline.inference import open_model

lm_eval: Any = pytest.importorskip("lm_eval")
WORDS = "the quick brown fox jumps over lazy dog time paris wizards liquid boxes 世界 天气".split()  # noqa: SIM905


@pytest.fixture
def exam(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Twenty questions with options of one to three words."""
    monkeypatch.setenv("WEITIAO_HOME", str(tmp_path / "home"))
    rows = [
        {
            "question": f"what {WORDS[i % 14]} is {WORDS[3 * i % 14]}",
            "options": [" ".join(WORDS[(i + k + j) % 14] for j in range(1 + k % 3)) for k in range(4)],
            "answer": i % 4,
        }
        for i in range(24)
    ]
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    (tmp_path / "small.yaml").write_text(
        'name: small\ndata: {path: rows.jsonl}\nquestion: "Q: {{ question }}?\\nA:"\noptions: "{{ options }}"\n'
        'answer: "{{ answer }}"\nanswer_form: number\nfew_shot: {n: 2}\ninstruction: "Answer.\\n\\n"\n'
    )
    return tmp_path / "small.yaml"


@pytest.mark.parametrize("family", ["llama", "gemma3_text"])
def test_choices_and_log_probabilities_are_those_of_the_harness(exam: Path, tmp_path: Path, family: str) -> None:
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager

    folder = save_model(tmp_path / family, family)
    export_exam(str(exam), tmp_path / "tasks")
    manager = TaskManager(include_path=str(tmp_path / "tasks"))
    register_model()
    ours = {"model": "weitiao", "model_args": f"target={folder},precision=fp32"}
    theirs = {"model": HFLM(pretrained=str(folder), dtype="float32", device="cpu", batch_size=4)}
    samples = []
    for side in (ours, theirs):
        found = lm_eval.simple_evaluate(tasks=["small"], task_manager=manager, bootstrap_iters=0, **side)
        samples.append([[y for y in x["filtered_resps"]] for x in found["samples"]["small"]])
    model = open_model(str(folder), "fp32")
    (result,) = take_exams(model.model, open_exams([str(exam)]), None, Reporter())
    assert len(samples[0]) == len(samples[1]) == len(result.items) == 22
    for a, b, item in zip(*samples, result.items):
        assert [x[0] for x in a] == pytest.approx([x[0] for x in b], abs=1e-3)
        assert [x[1] for x in a] == [x[1] for x in b], "is_greedy"
        assert list(item.logprobs) == pytest.approx([x[0] for x in b], abs=1e-3)
