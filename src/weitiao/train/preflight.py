"""The preflight steps before step 1: a few steps on a few of the user's own rows; afterwards everything is as before.

They find what healthy-looking loss curves hide: weights that never get a gradient, frozen weights that change, packed rows
that attend to their neighbors, a reported loss that is not the loss.
"""

import itertools
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial

import torch

from weitiao.core.batch import IGNORE, Batch, Row, pack, task_of
from weitiao.core.finding import Finding
from weitiao.core.messages import Message
from weitiao.core.objective import LossFunction
from weitiao.core.registry import find_module
from weitiao.core.trainable_model import HEAD, TrainableModel, checksum, evaluating, reference_logits
from weitiao.train.checkpoints.state import State
from weitiao.train.distributed import Distributed
from weitiao.train.settings import Plan
from weitiao.train.step import Step

MAX_STEPS = 3  # fewer, if every weight has had a gradient before
MAX_TOKENS = 512  # of the rows used
MIN_COUPLED_ROWS = 4  # for objectives whose rows depend on each other: one row alone has no loss
TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 5e-2, torch.float16: 1e-2}  # relative, of a row's loss
MAX_WINDOWS = 100  # that are searched for a task of which the first has no rows
MAX_NAMES = 5  # tensors named in a finding
MAX_LOGITS = 2**25  # of a row that is scored by the reference

SegmentLosses = list[tuple[float, float]]
"""For each segment: the sum of its losses, and the count to divide it by."""


def preflight_steps(
    model: TrainableModel,
    objective: LossFunction,
    loader: Callable[[int], list[Batch]],
    state: State,
    plan: Plan,
    distributed: Distributed,
    compute_dtype: torch.dtype,
) -> Iterator[Finding]:
    """Take a few steps, each process for itself, and undo them: model, optimizer and random generators are as before."""
    batch = _few_rows(loader, objective)
    if batch is None:
        return
    batch, tolerance = batch.to(model.device), TOLERANCE[compute_dtype]
    losses: SegmentLosses = []
    is_nll, batch_coupled = objective.traits.is_nll, objective.traits.batch_coupled
    if is_nll or not batch_coupled:
        with evaluating(model), torch.no_grad():
            losses = objective.segment_losses(model, batch)
    if not batch_coupled:
        yield _check_packing(model, objective, batch, losses, tolerance)
    if is_nll:
        yield _check_loss(model, batch, losses, tolerance)
    yield from _check_gradients(model, objective, batch, state, plan, distributed.single())


def _check_gradients(
    model: TrainableModel, objective: LossFunction, batch: Batch, state: State, plan: Plan, distributed: Distributed
) -> Iterator[Finding]:
    """Whether trained weights get gradients, frozen ones do not change, and the steps can be undone."""
    tensors = {kind: {n: x.clone() for n, x in group.items()} for kind, group in state.tensors().items()}
    numbers, frozen = state.numbers(), _frozen_checksums(model)
    compute_gradients = find_module(Step, plan.step).compute_gradients
    optimizer = torch.optim.SGD(model.trainable().values(), plan.learning_rate)  # no moments: less memory than training
    steps, with_gradient, trained = 0, set[str](), model.trainable().keys()
    was_training, unfreeze = model.model.training, model.attachment.before_step or (lambda step: None)
    model.model.train()
    unfreeze(plan.steps)  # as at the end of training: every weight that is ever trained
    try:
        while steps < MAX_STEPS and with_gradient < trained:
            steps += 1
            window = [objective.rollout(model, rows) for rows in _rows_of_all_levels(model, batch)]
            compute = partial(compute_gradients, model, objective, window, distributed)
            state.loss_scale.compute_gradients(compute, model.trainable().values())
            with_gradient |= {n for n, p in model.trainable().items() if p.grad is not None and bool(p.grad.any())}
            optimizer.step()
            optimizer.zero_grad()
        weights = dict(model.model.named_parameters())
        changed = [name for name, before in frozen.items() if checksum(weights[name]) != before]
    finally:
        model.model.train(was_training)
        unfreeze(0)
        state.load(tensors, numbers)
    # heads of tasks that have no rows among the few are not expected to get a gradient
    other_heads = tuple(f"{HEAD}{task}/" for task in objective.task_names if batch.tasks and task not in batch.tasks)
    without = sorted(name for name in trained - with_gradient if not name.startswith(other_heads))
    yield _gradient_finding(without, len(trained), steps)
    yield _frozen_finding(changed, len(frozen))
    same = all(torch.equal(x, tensors[kind][n]) for kind in ("weights", "random") for n, x in state.tensors()[kind].items())
    if same:
        yield Finding("restored", "fine", Message("after the preflight steps everything is restored bit-exactly"))
    else:
        yield Finding("restored", "error", Message("the preflight steps could not be undone"))


def _gradient_finding(without: list[str], num_trained: int, steps: int) -> Finding:
    if without:
        message = Message(
            "{count} of {total} trained tensors got no gradient in {steps} steps: {names}",
            count=len(without),
            total=num_trained,
            steps=MAX_STEPS,
            names=", ".join(without[:MAX_NAMES]),
        )
        return Finding("gradients", "error", message)
    message = Message("all {total} trained tensors got a gradient by preflight step {step}", total=num_trained, step=steps)
    return Finding("gradients", "fine", message)


def _frozen_finding(changed: list[str], num_frozen: int) -> Finding:
    if changed:
        names = ", ".join(changed[:MAX_NAMES])
        message = Message("{count} frozen tensors changed: {names}", count=len(changed), names=names)
        return Finding("frozen", "error", message)
    return Finding("frozen", "fine", Message("none of {total} frozen tensors changed", total=num_frozen))


def _rows_of_all_levels(model: TrainableModel, batch: Batch) -> list[Batch]:
    """The batch; for a method of two levels (bilevel) once for each, because all of the few rows may belong to one."""
    upper = model.attachment.upper
    if upper is None:
        return [batch]
    row_ids = (next(i for i in itertools.count() if upper.holds(i) == is_upper) for is_upper in (False, True))
    return [replace(batch, row_ids=(row_id,) * len(batch.row_ids)) for row_id in row_ids]


def _check_packing(
    model: TrainableModel, objective: LossFunction, batch: Batch, packed: SegmentLosses, tolerance: float
) -> Finding:
    """Whether packed rows have the same losses as each row alone."""
    rows = batch.rows
    with evaluating(model), torch.no_grad():
        alone = [objective.segment_losses(model, pack([row]).to(model.device))[0] for row in rows]
    error = max(abs(a - b) / max(abs(b), 1e-6) for (a, _), (b, _) in zip(packed, alone))
    if error > tolerance:
        message = Message("packed rows have other losses than each row alone: they differ by {error:.0e}", error=error)
        return Finding("packing", "error", message)
    message = Message(
        "{rows} packed rows have the same losses as each row alone (largest difference {error:.0e})",
        rows=len(rows),
        error=error,
    )
    return Finding("packing", "fine", message)


def _check_loss(model: TrainableModel, batch: Batch, losses: SegmentLosses, tolerance: float) -> Finding:
    """Whether the loss equals the reference: transformers' own forward pass, row by row, and the textbook formula."""
    max_tokens = MAX_LOGITS // len(model.lm_head.weight())
    segments = [i for i, n in enumerate(batch.lengths) if n <= max_tokens] or [batch.lengths.index(min(batch.lengths))]
    rows = [batch.rows[i] for i in segments]
    with evaluating(model), torch.no_grad():
        reported, reference = sum(losses[i][0] for i in segments), 0.0
        for row in rows:
            logits, labels = reference_logits(model, row["input_ids"]), torch.as_tensor(row["labels"], device=model.device)
            reference += float(torch.nn.functional.cross_entropy(logits, labels, ignore_index=IGNORE, reduction="sum"))
    fields = {"reported": reported, "reference": reference, "rows": len(rows)}
    if abs(reported - reference) / max(abs(reference), 1e-6) > tolerance:
        message = Message(
            "the reported loss is {reported:.4f}, the reference loss {reference:.4f} (sum over {rows} rows)", **fields
        )
        return Finding("loss", "error", message)
    message = Message(
        "the reported loss equals the reference loss ({reported:.4f}, {reference:.4f}, sum over {rows} rows)", **fields
    )
    return Finding("loss", "fine", message)


def _few_rows(loader: Callable[[int], list[Batch]], objective: LossFunction) -> Batch | None:
    """Some rows, shortest first, up to MAX_TOKENS; at least as many of each task as it needs, if they are found.

    They are of the first window, and of the next ones only where a task has no rows yet.
    """
    missing, rows = set(objective.task_names), list[Row]()
    for index in range(MAX_WINDOWS):
        window_rows = [row for batch in loader(index) if batch.tokens for row in batch.rows]
        rows += window_rows if index == 0 else [row for row in window_rows if task_of(row) in missing]
        missing -= {task_of(row) for row in rows}
        if not missing:
            break
    rows.sort(key=lambda row: len(row["input_ids"]))
    min_rows = MIN_COUPLED_ROWS if objective.traits.batch_coupled else 1
    selected = [row for task in objective.task_names for row in [x for x in rows if task_of(x) == task][:min_rows]]
    num_tokens = sum(len(row["input_ids"]) for row in selected)
    selected_ids = {id(row) for row in selected}
    for row in rows:
        if id(row) not in selected_ids and num_tokens + len(row["input_ids"]) <= MAX_TOKENS:
            selected.append(row)
            num_tokens += len(row["input_ids"])
    return pack(selected) if selected else None


def _frozen_checksums(model: TrainableModel) -> dict[str, int]:
    """A checksum of every weight that is not trained."""
    trained = {id(p) for p in model.trainable().values()}
    return {name: checksum(p) for name, p in model.model.named_parameters() if id(p) not in trained}
