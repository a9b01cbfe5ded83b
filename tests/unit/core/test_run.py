"""Run: one folder, its records and its events."""

import contextlib
import json
from pathlib import Path

import pytest

from weitiao.core import event_log
from weitiao.core.errors import RunError
from weitiao.core.events import (
    Checkpoint,
    CheckpointFailed,
    EarlyStop,
    End,
    Event,
    Outcome,
    Phase,
    Resume,
    Rollback,
    Start,
    Step,
    as_json,
    kind_of,
)
from weitiao.core.files import write_text
from weitiao.core.finding import Decision
from weitiao.core.messages import Message
from weitiao.core.recipe import Recipe, make_recipe
from weitiao.core.run import Run, rewind
from weitiao.core.run_status import Status, now


@pytest.fixture
def recipe(tmp_path: Path) -> Recipe:
    return make_recipe({"base": "somewhere", "data": "a.jsonl", "out": str(tmp_path / "run")})


def step(number: int, data_step: int = 0) -> Step:
    return Step(number, data_step or number, 2.5, 1.0, 1e-3, 64, 32, 0.1)


def end(outcome: Outcome, number: int) -> End:
    return End(outcome, number, number, now())


def steps(run: Run) -> list[int]:
    return [x.step for x in run.events(Step)]


def test_new_run_has_recipe_and_start_event(recipe: Recipe) -> None:
    run = Run.create(recipe)
    assert Run.open(run.folder).recipe == recipe and run.status == Status("no_step")
    (start,) = run.events()
    assert isinstance(start, Start) and (start.method, start.objective) == ("lora", "sft")


def test_events_on_disk_at_once_and_sent_to_callbacks(recipe: Recipe) -> None:
    class Listener:
        def on_event(self, run: Run, event: Event) -> None:
            received.append(event)
            assert list(run.events(Step)) == [event]

    run, received = Run.create(recipe), []
    run.callbacks.append(Listener())
    run.log(step(1))
    assert received == [step(1)]
    assert run.history[1] == {
        "event": "step", "step": 1, "data_step": 1, "loss": 2.5, "grad_norm": 1.0, "learning_rate": 1e-3, "tokens": 64,
        "num_targets": 32, "seconds": 0.1,
    }  # fmt: skip


def test_processes_other_than_main_log_nothing(recipe: Recipe) -> None:
    run = Run.create(recipe)
    other = Run(run.folder, can_write=False)
    other.log(step(1))
    other.record(Decision("train.steps", 4, "x"))
    assert not steps(run) and run.decisions == {}


@pytest.mark.parametrize("torn", ['{"event": "step", "st', '{"event": "step", "step": 3', "{"])
def test_torn_last_line_skipped(recipe: Recipe, torn: str) -> None:
    run = Run.create(recipe)
    for number in (1, 2):
        run.log(step(number))
    with open(run.folder / "events.jsonl", "a") as file:
        file.write(torn)
    assert steps(run) == [1, 2] and str(run.status) == "killed at step 2"
    Run(run.folder).log(step(3))  # on a line of its own
    assert steps(run) == [1, 2, 3] and str(run.status) == "killed at step 3"
    rewind(run, 2)
    run.log(step(3))
    assert steps(run) == [1, 2, 3]


def test_line_torn_inside_character_skipped(recipe: Recipe) -> None:
    run = Run.create(recipe)
    run.log(step(1))
    with open(run.folder / "events.jsonl", "ab") as file:
        file.write('{"event": "checkpoint_failed", "reason": "磁'.encode()[:-1])
    assert len(list(run.events())) == 2 and steps(run) == [1]


@pytest.mark.parametrize("line", ['{"event": "step", "step": 3}', '{"event": "comet"}', "[]", "3", '{"step": 3}'])
def test_unknown_or_incomplete_event_skipped(recipe: Recipe, line: str) -> None:
    run = Run.create(recipe)
    run.log(step(1))
    with open(run.folder / "events.jsonl", "a") as file:
        file.write(line + "\n")
    assert steps(run) == [1] and len(run.history) == 2


@pytest.mark.parametrize("separator", ["\u2028", "\u2029", "\x85"])
def test_any_character_in_event(recipe: Recipe, separator: str) -> None:
    run = Run.create(recipe)
    run.log(CheckpointFailed(1, 1, 0.1, Message("a{separator}b", separator=separator)))
    assert [str(x.reason) for x in run.events(CheckpointFailed)] == [f"a{separator}b"]
    run.write("samples.jsonl", [{"prompt": f"a{separator}b"}])
    assert run.read("samples.jsonl") == [{"prompt": f"a{separator}b"}]


def test_rewind_removes_later_events(recipe: Recipe) -> None:
    run = Run.create(recipe)
    run.log(Resume(0, 0, now()))
    for number in range(1, 6):
        run.log(step(number))
        if number == 3:
            run.log(Checkpoint(3, 3, 0.0, 0.1, "step-000003"))
    run.log(end("interrupted", 5))
    rewind(run, 3)
    assert [kind_of(x) for x in run.events()] == ["start", "resume", "step", "step", "step", "checkpoint"]


def test_status_from_last_event(recipe: Recipe) -> None:
    run = Run.create(recipe)
    run.log(end("failed", 0))
    assert run.status == Status("no_step")
    run.log(step(1))
    assert run.status == Status("killed", 1)
    run.log(end("interrupted", 1))
    assert run.status == Status("interrupted", 1)
    rewind(run, 1)
    run.log(step(2))
    run.log(EarlyStop(2, 2, 1))
    assert str(run.status) == "killed at step 2"
    run.log(Rollback(1, 3, 2, 0.5, Message("x")))
    assert run.status == Status("killed", 1)
    run.log(end("stopped", 2))
    assert str(run.status) == "stopped by the guard at step 2" and not run.is_finished
    run.log(end("finished", 2))
    run.log(Phase("report", "start", now()))
    assert run.status == Status("finished", 2) and run.is_finished


def test_status_reads_the_end_of_a_long_run_only(recipe: Recipe, monkeypatch: pytest.MonkeyPatch) -> None:
    run = Run.create(recipe)
    with open(run.folder / "events.jsonl", "a") as file:
        file.writelines(json.dumps(as_json(step(i))) + "\n" for i in range(1, 20_001))
    read = []
    monkeypatch.setattr(event_log.json, "loads", lambda text, loads=json.loads: read.append(text) or loads(text))
    assert run.status == Status("killed", 20_000) and len(read) < 10


def test_existing_run_untouched(recipe: Recipe) -> None:
    run = Run.create(recipe)
    run.log(step(7))
    with pytest.raises(RunError) as error:
        Run.create(recipe)
    text = str(error.value)
    assert f"out: {run.folder} holds a run already (killed at step 7)." in text
    assert f"Go on with: weitiao train --resume {run.folder}." in text
    assert "--overwrite (the old run is moved away, not deleted)" in text
    assert steps(run) == [7]


def test_overwrite_moves_old_run_aside(recipe: Recipe) -> None:
    old = Run.create(recipe)
    old.log(step(7))
    new = Run.create(recipe, overwrite=True)
    assert new.folder == old.folder and str(new.status) == "no step taken"
    (aside,) = old.folder.parent.glob("run.before-*")
    assert new.previous == aside
    assert str(Run.open(aside).status) == "killed at step 7"


def test_overwrite_twice_within_a_second(recipe: Recipe) -> None:
    for _ in range(3):
        Run.create(recipe, overwrite=True).log(step(1))
    assert len(list(Path(recipe.out).parent.glob("run.before-*"))) == 2


def test_run_failed_before_first_step_frees_folder(recipe: Recipe) -> None:
    run = Run.create(recipe)
    with run.locked():
        run.record(environment={})
    assert Run.create(recipe).read("resolved.json") is None


def test_user_recipe_never_deleted(recipe: Recipe) -> None:
    """`weitiao train mine/recipe.yaml out=mine`: the folder is no run of ours."""
    mine = Path(recipe.out) / "recipe.yaml"
    mine.parent.mkdir()
    mine.write_text("# my notes\n" + recipe.to_yaml())
    with contextlib.suppress(RunError):
        Run.create(recipe)
    everywhere = Path(recipe.out).parent.rglob("recipe.yaml")
    assert any(file.read_text().startswith("# my notes") for file in everywhere)


def test_out_empty_folder_ok_file_refused(recipe: Recipe) -> None:
    Path(recipe.out).write_text("thesis")
    with pytest.raises(RunError, match="run is a file; it must be a folder that does not exist yet"):
        Run.create(recipe)
    Path(recipe.out).unlink()
    Path(recipe.out).mkdir()
    assert Run.create(recipe).status == Status("no_step")


def test_not_a_run_refused(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="is no Run .it has no recipe.yaml.*weitiao runs"):
        Run.open(tmp_path)
    with pytest.raises(RunError, match="nowhere does not exist"):
        Run.open(tmp_path / "nowhere")


def test_last_choice_wins(recipe: Recipe) -> None:
    run = Run.create(recipe)
    run.record(Decision("max_length", 256, "first"), Decision.from_recipe("train.steps", 4))
    run.record(environment={"cores": 2})
    assert run.record(Decision("max_length", 128, Message("of {limit}", limit=512)), Decision("train.steps", 4, "x")) == [
        ("max_length", 256, 128)
    ]
    record = run.read("resolved.json")["decisions"]["max_length"]
    assert record == {"value": 128, "reason": {"template": "of {limit}", "fields": {"limit": 512}}, "requested": False}
    assert str(run.decisions["max_length"].reason) == "of 512" and run.decisions["train.steps"].value == 4
    assert run.read("resolved.json")["environment"] == {"cores": 2}


def test_environment_changes_on_resume_named(recipe: Recipe) -> None:
    run = Run.create(recipe)
    here = {"device": "EPYC", "threads": 2, "cores": 2, "packages": {"torch": "2.13.0"}}
    assert run.record(environment=here) == [] == run.record(environment=here)
    there = {**here, "threads": 8, "cores": 8, "packages": {"torch": "2.14.0", "peft": "1"}}
    assert run.record(environment=there) == [("torch", "2.13.0", "2.14.0"), ("threads", 2, 8)]
    assert run.read("resolved.json")["environment"] == there


@pytest.mark.parametrize("was", [None, [], "x", {}, {"packages": None}, {"packages": ["torch"]}])
def test_unreadable_old_environment_is_no_change(recipe: Recipe, was: object) -> None:
    run = Run.create(recipe)
    run.record(environment=was)
    assert run.record(environment={"threads": 2, "packages": {"torch": "2.13.0"}}) == []


def test_records_replaced_atomically(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "scores.json"
    write_text(file, json.dumps({"loss": 1}))

    def crash(handle: int) -> None:
        raise OSError("the plug was pulled")

    monkeypatch.setattr("os.fsync", crash)
    with pytest.raises(OSError, match="plug"):
        write_text(file, "half of")
    assert json.loads(file.read_text()) == {"loss": 1}
