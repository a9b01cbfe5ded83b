"""A run folder with a damaged file: one sentence, or repaired."""

from pathlib import Path
from typing import Any

import pytest

from support.command import weitiao
from weitiao.core.run import Run


@pytest.fixture
def done(train_tiny: Any) -> Path:
    return train_tiny().folder


def unfinish(folder: Path) -> None:
    journal = folder / "events.jsonl"
    kept = [x for x in journal.read_text().splitlines(keepends=True) if '"end"' not in x]
    journal.write_text("".join(kept))


@pytest.mark.parametrize("verb", ["generate", "evaluate", "merge"])
def test_damaged_result_refused(done: Path, tmp_path: Path, verb: str) -> None:
    (done / "best" / "weights.safetensors").write_bytes(b"torn")
    code, said = weitiao(verb, done, *{"generate": ["hi"], "merge": [tmp_path / "merged"]}.get(verb, []))
    assert code == 2 and "weights.safetensors is missing or damaged" in said


@pytest.mark.parametrize("how", ["gone", "torn"])
def test_lost_result_restored_from_best_checkpoint(done: Path, how: str) -> None:
    file = done / "best" / "weights.safetensors"
    before = file.read_bytes()
    unfinish(done)
    file.unlink() if how == "gone" else file.write_bytes(b"torn")
    code, said = weitiao("train", "--resume", done)
    assert code == 0 and "was missing or damaged; it was restored from step-" in said
    assert file.read_bytes() == before and Run(done).is_finished


def test_truncated_records(done: Path) -> None:
    (done / "suspects.jsonl").write_text('{"torn\n')
    with open(done / "events.jsonl", "a") as journal:
        journal.write('123\n{"foo": 1}\n{"torn')
    code, said = weitiao("why", done)
    assert code == 0 and "finished: 4 steps taken" in said
    (done / "resolved.json").write_text("{")
    code, said = weitiao("why", done)
    assert code == 2 and "resolved.json is damaged: it is not JSON" in said


def test_broken_run_does_not_hide_others(done: Path) -> None:
    (done.parent / "broken").mkdir()
    (done.parent / "broken" / "recipe.yaml").write_text("nonsense: [")
    code, said = weitiao("runs", done.parent)
    assert code == 0 and "cannot be read" in said and "finished" in said
