"""Going on with a run: is there a State, and back to the newest sound one."""

from weitiao.core.reporter import Reporter
from weitiao.core.run import Run
from weitiao.train.checkpoints import checkpoint
from weitiao.train.checkpoints.best import repair_best
from weitiao.train.checkpoints.state import State
from weitiao.train.distributed import Distributed
from weitiao.train.settings import Plan


def has_begun(run: Run, distributed: Distributed) -> bool:
    """Whether there is, or was, a State to go on from. (A kill may come between a State and its line in the journal.)"""
    folder = run.folder / "checkpoints"
    if distributed.is_main:
        checkpoint.tidy(folder)
    distributed.barrier()
    return bool(checkpoint.newest_first(folder)) or any(run.events("saved"))


def go_back(run: Run, state: State, plan: Plan, distributed: Distributed, reporter: Reporter, begun: bool) -> None:
    """Load the newest sound State; a run that was stopped before its first State begins anew."""
    if begun:  # one machine puts broken States aside, then the others look
        folder = run.folder / "checkpoints"
        distributed.main_first(lambda _: checkpoint.load_newest(folder, state, plan.identity, reporter.warn))
        repair_best(run, state.model, state, reporter.warn)
    run.rewind(state.position)
    run.log_event("resumed", step=state.step, position=state.position)
    reporter.console.print(f"going on from step {state.step}")
