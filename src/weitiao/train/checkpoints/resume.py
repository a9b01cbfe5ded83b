"""Going on with a run: is there a State, and back to the newest sound one."""

from weitiao.core.reporter import Desk
from weitiao.core.run import Run
from weitiao.train.checkpoints import checkpoint
from weitiao.train.distributed import Machines
from weitiao.train.checkpoints.best import mend_kept
from weitiao.train.settings import Plan
from weitiao.train.checkpoints.state import State


def has_begun(run: Run, machines: Machines) -> bool:
    """Whether there is, or was, a State to go on from. (A kill may come between a State and its line in the journal.)"""
    folder = run.folder / "states"
    if machines.first:
        checkpoint.tidy(folder)
    machines.wait()
    return bool(checkpoint.newest_first(folder)) or any(run.journal("saved"))


def go_back(run: Run, state: State, plan: Plan, machines: Machines, desk: Desk, begun: bool) -> None:
    """Load the newest sound State; a run that was stopped before its first State begins anew."""
    if begun:  # one machine puts broken States aside, then the others look
        folder = run.folder / "states"
        machines.after_the_first(lambda _: checkpoint.load_newest(folder, state, plan.identity, desk.warn))
        mend_kept(run, state.model, state, desk.warn)
    run.rewind(state.position)
    run.note("resumed", step=state.step, position=state.position)
    desk.console.print(f"going on from step {state.step}")
