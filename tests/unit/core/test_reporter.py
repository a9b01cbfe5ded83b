"""Reporter: what a command prints by default and with -v, and what it shows while something takes long."""

import io
import logging
import warnings
from pathlib import Path

import pytest
from rich.console import Console

from weitiao.core import reporter as module
from weitiao.core.events import Phase
from weitiao.core.finding import Decision, Finding
from weitiao.core.messages import Message
from weitiao.core.recipe import make_recipe
from weitiao.core.reporter import Reporter
from weitiao.core.run import Run
from weitiao.core.third_party import LOGGERS, muted


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return Run.create(make_recipe({"base": "somewhere", "data": "a.jsonl", "out": str(tmp_path / "run")}))


def make(verbose: bool = False, terminal: bool = False, quiet: bool = False) -> tuple[Reporter, io.StringIO]:
    file = io.StringIO()
    console = Console(file=file, force_terminal=terminal, width=100, quiet=quiet, highlight=False)
    return Reporter(console, verbose), file


DECISIONS = (Decision("max_length", 256, Message("the model takes {n}", n=256)), Decision.from_recipe("train.steps", 4))
FINDINGS = [
    Finding("packing", "fine", "rows do not see each other"),
    Finding("length", "fine", "no row was truncated"),
    Finding("near_duplicates", "warning", Message("{n} rows", n=3)),
]


def test_decisions_are_recorded_and_printed_with_verbose_only(run: Run) -> None:
    for verbose, lines in ((False, ""), (True, "max_length = 256  (the model takes 256)\n")):
        reporter, file = make(verbose)
        reporter.report(run, *DECISIONS)
        assert file.getvalue() == lines, "what the recipe says needs no reason"
    assert {x.key for x in run.decisions.values()} == {"max_length", "train.steps"}


def test_a_changed_decision_is_warned_of(run: Run) -> None:
    reporter, file = make()
    reporter.report(run, *DECISIONS)
    reporter.report(run, Decision("max_length", 128, "x"))
    assert file.getvalue() == "max_length was 256, now it is 128: results may differ in the last bits\n"


def test_passed_checks_are_counted(run: Run) -> None:
    reporter, file = make()
    reporter.show(FINDINGS)
    assert file.getvalue() == "! near_duplicates: 3 rows\n✓ 2 of 3 preflight checks passed\n"
    reporter, file = make(verbose=True)
    reporter.show(FINDINGS)
    assert file.getvalue().count("\n") == 3 and "no row was truncated" in file.getvalue()


def test_phase_logs_start_end_and_seconds(run: Run) -> None:
    reporter, file = make(terminal=True)
    with reporter.phase(run, "load", Message("loading the model"), 7):
        assert run.status.phase == ""  # nobody holds the lock
    start, end = run.events(Phase)
    assert (start.name, start.status, start.total, start.seconds) == ("load", "start", 7, None)
    assert (end.status, end.total) == ("end", 7) and end.seconds is not None and end.seconds >= 0
    assert "loading the model" in file.getvalue()


def test_a_failed_phase_has_no_end(run: Run) -> None:
    reporter, _ = make()
    with pytest.raises(OSError, match="disk"), reporter.phase(run, "read", Message("reading")):
        raise OSError("disk")
    assert [x.status for x in run.events(Phase)] == ["start"]


def test_bar_inside_a_spinner(run: Run) -> None:
    """One of them draws at a time; rich refuses two."""
    reporter, file = make(terminal=True)
    with reporter.phase(run, "encode", Message("encoding the rows")):
        assert list(reporter.track([1, 2, 3], Message("rows"))) == [1, 2, 3]
        with reporter.spin("inner"):
            reporter.say(Message("{n} rows", n=3))
    assert "3 rows" in file.getvalue()


def test_outside_a_terminal_only_long_waits_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    reporter, file = make()
    assert list(reporter.track(range(3), "measuring")) == [0, 1, 2]
    assert file.getvalue() == ""
    monkeypatch.setattr(module, "PATIENCE", 0.0)
    assert list(reporter.track(range(3), "measuring")) == [0, 1, 2]
    assert file.getvalue() == "measuring: 0 of 3\n"


def test_quiet_prints_nothing(run: Run) -> None:
    reporter, file = make(verbose=True, terminal=True, quiet=True)
    reporter.show(FINDINGS)
    reporter.report(run, *DECISIONS)
    with reporter.phase(run, "load", Message("loading")):
        list(reporter.track([1, 2], "rows"))
    assert file.getvalue() == ""


def test_libraries_are_muted_and_then_as_before(caplog: pytest.LogCaptureFixture) -> None:
    from transformers.utils import logging as transformers_logging

    transformers_logging.enable_progress_bar()
    levels = [logging.getLogger(name).level for name in LOGGERS]
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        with muted():
            warnings.warn("leaks", stacklevel=1)
            logging.getLogger("transformers").warning("leaks")
            assert not transformers_logging.is_progress_bar_enabled()
        assert not caught
        with muted(False):
            warnings.warn("wanted", stacklevel=1)
        assert len(caught) == 1
    assert transformers_logging.is_progress_bar_enabled() and not caplog.records
    assert [logging.getLogger(name).level for name in LOGGERS] == levels
    transformers_logging.disable_progress_bar()
