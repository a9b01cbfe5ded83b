"""The commit protocol: a checkpoint is complete or not there, and a damaged one is never used."""

import errno
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from weitiao.core.errors import RunError
from weitiao.core.events import Checkpoint, CheckpointFailed
from weitiao.train.checkpoints import checkpoint
from weitiao.train.checkpoints.checkpoint import FILES, MANIFEST, commit, find_damage, load_newest, newest_first, snapshot
from weitiao.train.checkpoints.state import State

SAME = {"data": "abc", "method": "lora"}


@pytest.fixture
def state(open_model: Any) -> State:
    """A small State with an optimizer that has memory."""
    model = open_model({"name": "lora", "rank": 2, "target_modules": ["q_proj"]})
    new_state = State(model, torch.optim.AdamW(model.trainable().values(), lr=1e-2))
    take_steps(new_state)
    return new_state


def save(folder: Path, state: State, identity: dict[str, str], keep: int) -> Path:
    return commit(folder, snapshot(state, identity), keep)


def take_steps(state: State, steps: int = 1) -> None:
    """Steps down a hill that depends on the random generator."""
    for _ in range(steps):
        loss = sum((p - torch.randn(p.shape)).pow(2).sum() for p in state.model.trainable().values())
        loss.backward()
        state.optimizer.step()
        state.optimizer.zero_grad()
        state.step += 1
        state.data_step += 1


def weights(state: State) -> list[torch.Tensor]:
    return [p.detach().clone() for p in state.model.trainable().values()]


def two_states(folder: Path, state: State) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    """Save step 1 and step 2; their weights."""
    save(folder, state, SAME, keep=3)
    first = weights(state)
    take_steps(state)
    save(folder, state, SAME, keep=3)
    return first, weights(state)


def equal(a: list[torch.Tensor], b: list[torch.Tensor]) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


def test_load_restores_everything(tmp_path: Path, state: State) -> None:
    state.lr_factor, state.best_score, state.best_step, state.evals_since_best = 0.5, 1.25, 1, 3
    save(tmp_path, state, SAME, keep=2)
    take_steps(state, 3)
    expected = weights(state)
    state.lr_factor, state.best_score, state.best_step, state.evals_since_best = 1.0, None, 0, 0
    path = load_newest(tmp_path, state, SAME, print)
    assert path.name == "step-000001"
    assert (state.step, state.data_step, state.lr_factor, state.best_score, state.best_step, state.evals_since_best) == (
        1,
        1,
        0.5,
        1.25,
        1,
        3,
    )
    take_steps(state, 3)
    assert equal(weights(state), expected), "weights, moments or random generator were not restored bit-exactly"


def truncate(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-1])


def delete(file: Path) -> None:
    file.unlink()


def flip(file: Path) -> None:
    """One bit, in the middle."""
    raw = bytearray(file.read_bytes())
    raw[len(raw) // 2] ^= 1
    file.write_bytes(raw)


def empty(file: Path) -> None:
    file.write_bytes(b"")


@pytest.mark.parametrize("harm", [truncate, delete, flip, empty])
@pytest.mark.parametrize("name", [*FILES, MANIFEST])
def test_damage_detected_and_older_checkpoint_loaded(
    tmp_path: Path, state: State, name: str, harm: Callable[[Path], None]
) -> None:
    first, second = two_states(tmp_path, state)
    assert not equal(first, second)
    harm(tmp_path / "step-000002" / name)
    warnings: list[Any] = []
    path = load_newest(tmp_path, state, SAME, warnings.append)
    assert (path.name, state.step) == ("step-000001", 1)
    assert equal(weights(state), first)
    assert len(warnings) == 1 and str(warnings[0]).startswith("step-000002 is damaged (")
    assert "renamed broken-step-000002, and the next older one is tried" in str(warnings[0])
    assert (tmp_path / "broken-step-000002").is_dir() and newest_first(tmp_path) == [path]


def test_async_save_is_snapshot(tmp_path: Path, state: State) -> None:
    """A snapshot does not follow the training that goes on."""
    saved, then = snapshot(state, SAME), weights(state)
    take_steps(state)
    commit(tmp_path, saved, keep=2)
    load_newest(tmp_path, state, SAME, print)
    assert equal(weights(state), then) and state.step == saved.step


def test_nearly_full_disk_prunes_old_checkpoints(tmp_path: Path, state: State, monkeypatch: pytest.MonkeyPatch) -> None:
    for _ in range(4):
        save(tmp_path, state, SAME, keep=9)
        take_steps(state)
    usage = shutil.disk_usage(tmp_path)
    free = lambda folder: usage._replace(free=10**9 if len(newest_first(tmp_path)) <= 3 else 1000)  # noqa: E731
    monkeypatch.setattr(checkpoint.shutil, "disk_usage", free)
    commit(tmp_path, snapshot(state, SAME), 9, pinned={1})
    assert [p.name for p in newest_first(tmp_path)] == ["step-000005", "step-000004", "step-000003", "step-000001"]
    monkeypatch.setattr(checkpoint.shutil, "disk_usage", lambda folder: usage._replace(free=1000))
    take_steps(state)
    with pytest.raises(OSError, match="a checkpoint needs .* MB, 0.0 MB are free"):
        commit(tmp_path, snapshot(state, SAME), 9, pinned={1, 3})
    assert [p.name for p in newest_first(tmp_path)] == ["step-000005", "step-000003", "step-000001"]


def test_no_sound_checkpoint_error(tmp_path: Path, state: State) -> None:
    two_states(tmp_path, state)
    for path in newest_first(tmp_path):
        flip(path / "weights.safetensors")
    with pytest.raises(RunError, match="no undamaged checkpoint to resume from"):
        load_newest(tmp_path, state, SAME, lambda message: None)


def test_partial_save_is_no_checkpoint(tmp_path: Path, state: State) -> None:
    path = save(tmp_path, state, SAME, keep=2)
    shutil.copytree(path, tmp_path / ".step-9.tmp-1234")
    assert newest_first(tmp_path) == [path]
    assert load_newest(tmp_path, state, SAME, print) == path


def test_changed_identity_refused(tmp_path: Path, state: State) -> None:
    save(tmp_path, state, SAME, keep=2)
    before = weights(state)
    with pytest.raises(RunError) as error:
        load_newest(tmp_path, state, {"data": "xyz", "method": "lora", "steps": "9"}, print)
    assert "something it depends on has changed: data (was abc, is xyz); steps (was None, is 9)." in str(error.value)
    assert "method" not in str(error.value)
    assert equal(weights(state), before)


@pytest.mark.parametrize("at", range(len(FILES) + 1))
def test_full_disk_keeps_older_checkpoints(tmp_path: Path, state: State, monkeypatch: pytest.MonkeyPatch, at: int) -> None:
    first, _ = two_states(tmp_path, state)
    paths = sorted(p.name for p in tmp_path.iterdir())
    written = 0

    def full(write: Callable) -> Callable:
        def attempt(file: Path, value: Any) -> None:
            nonlocal written
            if written == at:
                file.write_bytes(b"half of it")
                raise OSError(errno.ENOSPC, "No space left on device")
            written += 1
            write(file, value)

        return attempt

    monkeypatch.setattr(checkpoint, "write_tensors", full(checkpoint.write_tensors))
    monkeypatch.setattr(checkpoint, "_write", full(checkpoint._write))
    take_steps(state)
    with pytest.raises(OSError, match="No space left on device"):
        save(tmp_path, state, SAME, keep=1)
    assert sorted(p.name for p in tmp_path.iterdir()) == paths
    assert not any(find_damage(path) for path in newest_first(tmp_path))


def test_safetensors_write_failure_is_os_error(tmp_path: Path) -> None:
    with pytest.raises(OSError):
        checkpoint.write_tensors(tmp_path / "no folder" / "x.safetensors", {"x": torch.zeros(2)})


def test_newest_checkpoints_kept(tmp_path: Path, state: State) -> None:
    for _ in range(4):
        save(tmp_path, state, SAME, keep=2)
        take_steps(state)
    assert [p.name for p in newest_first(tmp_path)] == ["step-000004", "step-000003"]


def test_checkpoint_of_same_step_replaced(tmp_path: Path, state: State) -> None:
    save(tmp_path, state, SAME, keep=2)
    with torch.no_grad():
        next(iter(state.model.trainable().values())).fill_(3.0)
    save(tmp_path, state, SAME, keep=2)
    take_steps(state)
    load_newest(tmp_path, state, SAME, print)
    assert float(next(iter(state.model.trainable().values())).detach().mean()) == 3.0


def test_checkpoints_sorted_numerically(tmp_path: Path) -> None:
    for name in ("step-999999", "step-1000000"):
        (tmp_path / name).mkdir()
    assert newest_first(tmp_path)[0].name == "step-1000000"


def test_mismatched_weights_refused(tmp_path: Path, state: State, open_model: Any) -> None:
    save(tmp_path, state, SAME, keep=2)
    other = open_model({"name": "lora", "rank": 2, "target_modules": ["v_proj"]})
    another = State(other, torch.optim.AdamW(other.trainable().values()))
    with pytest.raises(RunError, match="does not fit this run: saved weights and model differ in 12 names"):
        load_newest(tmp_path, another, SAME, print)


def test_failed_save_not_recorded(train_tiny: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """A full disk is said and the run goes on; what is no fault of the disk ends the run."""

    def harmed(error: Exception) -> Any:
        def commit(*args: Any) -> None:
            raise error

        monkeypatch.setattr(checkpoint, "commit", commit)
        return train_tiny(train={"steps": 2})

    run = harmed(OSError(errno.ENOSPC, "No space left on device"))
    assert not list(run.events(Checkpoint)) and len(list(run.events(CheckpointFailed))) >= 1
    monkeypatch.undo()
    shutil.rmtree(run.folder)
    with pytest.raises(ZeroDivisionError, match="a mistake"):
        harmed(ZeroDivisionError("a mistake"))
    assert not list(run.events(Checkpoint))
