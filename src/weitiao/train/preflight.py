"""The rehearsal before step 1: a few steps on a few of the user's own rows, and then everything as before, to the bit.

It finds what healthy-looking curves hide: weights that never get a gradient, frozen weights that move, rows that see
their neighbours when packed, a reported loss that is not the loss.
"""

import itertools
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial

import torch

from weitiao.core.batch import IGNORE, Batch, Row, pack, task_of
from weitiao.core.finding import Finding
from weitiao.core.objective import LossFunction
from weitiao.core.registry import find_module
from weitiao.core.trainable_model import HEAD, TrainableModel, checksum, evaluating, reference_logits
from weitiao.train.checkpoints.state import State
from weitiao.train.distributed import Distributed
from weitiao.train.settings import Plan
from weitiao.train.step import Step

STEPS = 3  # at most: until every weight has had a gradient
TOKENS = 512  # of the rows that are rehearsed with
COUPLED = 4  # rows, at least, where they learn from each other: one alone has nothing to learn
TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 5e-2, torch.float16: 1e-2}  # relative, of a row's loss
NEAR = 100  # steps whose rows are looked through for a task that the first has none of
NAMED = 5
BY_HAND = 2**25  # logits of a row that is scored by hand, at most


def preflight_steps(
    model: TrainableModel,
    objective: LossFunction,
    loader: Callable[[int], list[Batch]],
    state: State,
    plan: Plan,
    distributed: Distributed,
    computes_in: torch.dtype,
) -> Iterator[Finding]:
    """Take a few steps, each machine for itself, and go back: model, random generators and optimizer are as before."""
    alone = distributed.single()
    batch = _few_rows(loader, objective)
    if batch is None:
        return
    batch, tolerance = batch.to(model.device), TOLERANCE[computes_in]
    with evaluating(model), torch.no_grad():
        told = (
            objective.segment_losses(model, batch) if objective.traits.is_nll or not objective.traits.batch_coupled else []
        )
    if not objective.traits.batch_coupled:
        yield _packed_is_alone(model, objective, batch, told, tolerance)
    if objective.traits.is_nll:
        yield _loss_by_hand(model, batch, told, tolerance)
    yield from _steps(model, objective, batch, state, plan, alone)


def _steps(
    model: TrainableModel, objective: LossFunction, batch: Batch, state: State, plan: Plan, alone: Distributed
) -> Iterator[Finding]:
    tensors = {kind: {n: x.clone() for n, x in group.items()} for kind, group in state.tensors().items()}
    numbers, frozen = state.numbers(), _frozen(model)
    take = find_module(Step, plan.step).compute_gradients
    optimizer = torch.optim.SGD(model.trainable().values(), plan.learning_rate)  # no moments: less memory than training
    taken, moved, wanted = 0, set[str](), model.trainable().keys()
    was, thaw = model.model.training, model.attachment.before_step or (lambda step: None)
    model.model.train()
    thaw(plan.steps)  # as it will be in the end: every weight that is ever trained
    try:
        while taken < STEPS and moved < wanted:
            taken += 1
            window = [objective.rollout(model, rows) for rows in _at_each_level(model, batch)]
            state.loss_scale.compute_gradients(partial(take, model, objective, window, alone), model.trainable().values())
            moved |= {n for n, p in model.trainable().items() if p.grad is not None and bool(p.grad.any())}
            optimizer.step()
            optimizer.zero_grad()
        now = dict(model.model.named_parameters())
        changed = [name for name, before in frozen.items() if checksum(now[name]) != before]
    finally:
        model.model.train(was)
        thaw(0)
        state.load(tensors, numbers)
    absent = tuple(f"{HEAD}{task}/" for task in objective.task_names if batch.tasks and task not in batch.tasks)
    still = sorted(name for name in wanted - moved if not name.startswith(absent))
    every = len(wanted)
    if still:
        names = ", ".join(still[:NAMED])
        yield Finding(
            "gradients", "error", f"{len(still)} of {every} trained tensors got no gradient in {STEPS} steps: {names}"
        )
    else:
        yield Finding("gradients", "fine", f"all {every} trained tensors got a gradient by rehearsal step {taken}")
    if changed:
        yield Finding("frozen", "error", f"{len(changed)} frozen tensors moved: {', '.join(changed[:NAMED])}")
    else:
        yield Finding("frozen", "fine", f"none of {len(frozen)} frozen tensors moved")
    same = all(torch.equal(x, tensors[kind][n]) for kind in ("weights", "random") for n, x in state.tensors()[kind].items())
    words = "after the rehearsal everything is as before, to the bit"
    yield Finding("restored", "fine" if same else "error", words if same else "the rehearsal could not be undone")


def _at_each_level(model: TrainableModel, batch: Batch) -> list[Batch]:
    """With a method of two levels few rows may all belong to one: here they are rehearsed at both."""
    upper = model.attachment.upper
    if upper is None:
        return [batch]
    numbers = (next(i for i in itertools.count() if upper.holds(i) == wanted) for wanted in (False, True))
    return [replace(batch, row_ids=(number,) * len(batch.row_ids)) for number in numbers]


def _packed_is_alone(
    model: TrainableModel, objective: LossFunction, batch: Batch, together: list[tuple[float, float]], tolerance: float
) -> Finding:
    rows = batch.rows
    with evaluating(model), torch.no_grad():
        alone = [objective.segment_losses(model, pack([row]).to(model.device))[0] for row in rows]
    gap = max(abs(a - b) / max(abs(b), 1e-6) for (a, _), (b, _) in zip(together, alone))
    words = f"{len(rows)} rows packed have the losses of each row alone (largest difference {gap:.0e})"
    if gap > tolerance:
        words = f"packed rows have other losses than each row alone: they differ by {gap:.0e} of the loss"
    return Finding("packing", "fine" if gap <= tolerance else "error", words)


def _loss_by_hand(model: TrainableModel, batch: Batch, told: list[tuple[float, float]], tolerance: float) -> Finding:
    """The plain forward pass of transformers, row by row, scored in the textbook way."""
    longest = BY_HAND // len(model.lm_head.weight())  # tokens
    some = [i for i, many in enumerate(batch.lengths) if many <= longest] or [batch.lengths.index(min(batch.lengths))]
    rows = [batch.rows[i] for i in some]
    with evaluating(model), torch.no_grad():
        reported, by_hand = sum(told[i][0] for i in some), 0.0
        for row in rows:
            logits, labels = reference_logits(model, row["input_ids"]), torch.as_tensor(row["labels"], device=model.device)
            by_hand += float(torch.nn.functional.cross_entropy(logits, labels, ignore_index=IGNORE, reduction="sum"))
    gap = abs(reported - by_hand) / max(abs(by_hand), 1e-6)
    words = f"the loss reported is the loss by hand ({reported:.4f}, {by_hand:.4f} summed over {len(rows)} rows)"
    if gap > tolerance:
        words = f"the loss reported is {reported:.4f}, by hand it is {by_hand:.4f} (summed over {len(rows)} rows)"
    return Finding("loss", "fine" if gap <= tolerance else "error", words)


def _few_rows(loader: Callable[[int], list[Batch]], objective: LossFunction) -> Batch | None:
    """Some rows of the first window, shortest first, up to a bound; as many of each task as it needs, if they are near."""
    missing, rows = set(objective.task_names), list[Row]()
    for number in range(NEAR):
        some = [row for batch in loader(number) if batch.tokens for row in batch.rows]
        rows += some if number == 0 else [row for row in some if task_of(row) in missing]
        missing -= {task_of(row) for row in rows}
        if not missing:
            break
    rows.sort(key=lambda row: len(row["input_ids"]))
    least = COUPLED if objective.traits.batch_coupled else 1
    chosen = [row for task in objective.task_names for row in [x for x in rows if task_of(x) == task][:least]]
    tokens = sum(len(row["input_ids"]) for row in chosen)
    taken = {id(row) for row in chosen}
    for row in rows:
        if id(row) not in taken and tokens + len(row["input_ids"]) <= TOKENS:
            chosen.append(row)
            tokens += len(row["input_ids"])
    return pack(chosen) if chosen else None


def _frozen(model: TrainableModel) -> dict[str, int]:
    """A checksum of every weight that is not trained."""
    trained = {id(p) for p in model.trainable().values()}
    return {name: checksum(p) for name, p in model.model.named_parameters() if id(p) not in trained}
