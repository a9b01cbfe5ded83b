"""Run: one folder and its journal."""

import contextlib
import json
from pathlib import Path

import pytest

from weitiao.core.errors import RunError
from weitiao.core.files import write_text
from weitiao.core.finding import Decision
from weitiao.core.messages import Message
from weitiao.core.recipe import Recipe, make_recipe
from weitiao.core.run import Run


@pytest.fixture
def recipe(tmp_path: Path) -> Recipe:
    return make_recipe({"base": "somewhere", "data": "a.jsonl", "out": str(tmp_path / "run")})


def test_new_run_has_recipe(recipe: Recipe) -> None:
    run = Run.create(recipe)
    assert Run.open(run.folder).recipe == recipe and run.status == "no step taken"


def test_events_flushed_and_sent_to_listeners(recipe: Recipe) -> None:
    run, input_features = Run.create(recipe), []
    run.listeners.append(input_features.append)
    run.log_event("step", step=1, loss=2.5)
    assert list(Run.open(run.folder).events()) == input_features == [{"event": "step", "step": 1, "loss": 2.5}]


@pytest.mark.parametrize("torn", ['{"event": "step", "st', '{"event": "step", "step": 3', "{"])
def test_torn_last_line_skipped(recipe: Recipe, torn: str) -> None:
    run = Run.create(recipe)
    for step in (1, 2):
        run.log_event("step", step=step)
    with open(run.folder / "events.jsonl", "a") as journal:
        journal.write(torn)
    assert [x["step"] for x in run.events("step")] == [1, 2]
    run.rewind(2)  # as resuming does
    run.log_event("step", step=3)
    assert [x["step"] for x in run.events("step")] == [1, 2, 3]


def test_line_torn_inside_character_skipped(recipe: Recipe) -> None:
    run = Run.create(recipe)
    run.log_event("step", step=1)
    with open(run.folder / "events.jsonl", "ab") as journal:
        journal.write('{"event": "save_failed", "words": "磁'.encode()[:-1])
    assert [x["step"] for x in run.events()] == [1]


@pytest.mark.parametrize("separator", ["\u2028", "\u2029", "\x85"])
def test_any_character_in_event(recipe: Recipe, separator: str) -> None:
    run = Run.create(recipe)
    run.log_event("save_failed", words=f"a{separator}b")
    assert [x["words"] for x in run.events()] == [f"a{separator}b"]
    run.write_lines("samples.jsonl", [{"prompt": f"a{separator}b"}])
    assert run.read_lines("samples.jsonl") == [{"prompt": f"a{separator}b"}]


def test_rollback_drops_later_events(recipe: Recipe) -> None:
    run = Run.create(recipe)
    run.log_event("resumed", step=0)
    for step in range(1, 6):
        run.log_event("step", step=step, position=step)
        if step == 3:
            run.log_event("saved", step=3, position=3)
    run.log_event("interrupted", step=5, position=5)
    run.rewind(3)
    assert [(x["event"], x["step"]) for x in run.events()] == [
        ("resumed", 0), ("step", 1), ("step", 2), ("step", 3), ("saved", 3),
    ]  # fmt: skip


def test_status_from_journal(recipe: Recipe) -> None:
    run = Run.create(recipe)
    run.log_event("step", step=1)
    assert run.status == "unfinished at step 1"
    run.log_event("interrupted", step=1)
    assert run.status == "interrupted at step 1"
    run.rewind(1)
    run.log_event("step", step=2)
    run.log_event("early_stop", step=2)
    assert run.status == "unfinished at step 2"
    run.log_event("finished", step=2)
    assert run.status == "finished"


def test_existing_run_untouched(recipe: Recipe) -> None:
    run = Run.create(recipe)
    run.log_event("step", step=7)
    with pytest.raises(RunError) as error:
        Run.create(recipe)
    words = str(error.value)
    assert f"out: {run.folder} holds a run already (unfinished at step 7)." in words
    assert f"Go on with: weitiao train --resume {run.folder}." in words and "--replace (the old run is kept aside)" in words
    assert [x["step"] for x in run.events()] == [7]


def test_overwrite_moves_old_run_aside(recipe: Recipe) -> None:
    old = Run.create(recipe)
    old.note("step", step=7)
    new = Run.create(recipe, replace=True)
    assert new.folder == old.folder and new.status == "no step taken"
    (aside,) = old.folder.parent.glob("run.before-*")
    assert new.aside == aside
    assert Run.open(aside).status == "unfinished at step 7"


def test_overwrite_twice_within_a_second(recipe: Recipe) -> None:
    for _ in range(3):
        Run.create(recipe, replace=True).note("step", step=1)
    assert len(list(Path(recipe.out).parent.glob("run.before-*"))) == 2


def test_run_failed_before_first_step_frees_folder(recipe: Recipe) -> None:
    run = Run.create(recipe)
    with run.locked():
        run.add_to_resolved(environment={})
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
    assert Run.create(recipe).status == "no step taken"


def test_not_a_run_refused(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="is no Run .it has no recipe.yaml.*weitiao runs"):
        Run.open(tmp_path)
    with pytest.raises(RunError, match="nowhere does not exist"):
        Run.open(tmp_path / "nowhere")


def test_last_choice_wins(recipe: Recipe) -> None:
    run = Run.create(recipe)
    run.record(Decision("max_length", 256, "first"), Decision.from_recipe("train.steps", 4))
    run.add_to_resolved(environment={"cores": 2})
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
    assert run.stands_in(here) == [] == run.stands_in(here)
    there = {**here, "threads": 8, "cores": 8, "packages": {"torch": "2.14.0", "peft": "1"}}
    assert run.stands_in(there) == [("torch", "2.13.0", "2.14.0"), ("threads", 2, 8)]
    assert run.read("resolved.json")["environment"] == there


@pytest.mark.parametrize("was", [None, [], "x", {}, {"packages": None}, {"packages": ["torch"]}])
def test_unreadable_old_environment_is_no_change(recipe: Recipe, was: object) -> None:
    run = Run.create(recipe)
    run.add_to_resolved(environment=was)
    assert run.stands_in({"threads": 2, "packages": {"torch": "2.13.0"}}) == []


def test_records_replaced_atomically(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "scores.json"
    write_text(file, json.dumps({"loss": 1}))

    def crash(handle: int) -> None:
        raise OSError("the plug was pulled")

    monkeypatch.setattr("os.fsync", crash)
    with pytest.raises(OSError, match="plug"):
        write_text(file, "half of")
    assert json.loads(file.read_text()) == {"loss": 1}
