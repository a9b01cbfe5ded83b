"""Resume a run from its newest undamaged checkpoint."""

from weitiao.core import events
from weitiao.core.messages import Message
from weitiao.core.reporter import Reporter
from weitiao.core.run import Run, rewind
from weitiao.core.run_status import now
from weitiao.train.checkpoints import checkpoint
from weitiao.train.checkpoints.best import repair_best
from weitiao.train.checkpoints.state import State
from weitiao.train.distributed import Distributed
from weitiao.train.settings import Plan


def has_checkpoint(run: Run, distributed: Distributed) -> bool:
    """Whether there is, or was, a checkpoint. (A kill may come between a checkpoint and its event.)"""
    if distributed.is_main:
        checkpoint.clean_up(run.folder / "checkpoints")
    distributed.barrier()
    return bool(run.checkpoints) or any(run.events(events.Checkpoint))


def resume_from(run: Run, state: State, plan: Plan, distributed: Distributed, reporter: Reporter, exists: bool) -> None:
    """Load the newest undamaged checkpoint, and remove later events.

    Args:
        exists: there is a checkpoint; a run that was stopped before its first one starts again.
    """
    if exists:  # one process moves damaged checkpoints aside, then the others look
        folder = run.folder / "checkpoints"
        distributed.main_first(lambda _: checkpoint.load_newest(folder, state, plan.identity, reporter.warn))
        repair_best(run, state, plan.settings.best_metric, reporter.warn)
    rewind(run, state.data_step)
    run.log(events.Resume(state.step, state.data_step, now()))
    reporter.say(Message("resuming from step {step}", step=state.step))
