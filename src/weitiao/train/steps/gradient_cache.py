"""A batch whose rows depend on each other, in little memory: embed twice, a few texts at a time.

Gao et al. 2021, "Scaling Deep Contrastive Learning Batch Size under Memory Limited Setup", arXiv 2101.06983, sec. 3.2:

    1   v_c = embed(texts of chunk c), without a graph           for every chunk; the random state before it is kept
    2   g = d loss(v_1 ... v_C) / d v                            the cache; only vectors are in memory
    3   embed(texts of chunk c) once more, with a graph,         with the same random numbers (dropout)
        and back-propagate g_c through it                        for every chunk

By the chain rule this is the plain step's gradient. The objective says what its `texts` are, how they are embedded
(`embed`) and what the vectors' loss is (`compare`), and how many texts fit (`gradient_cache`).
"""

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

from weitiao.core.batch import Batch, Loss
from weitiao.core.trainable_model import TrainableModel
from weitiao.train.distributed import Distributed
from weitiao.train.step import StepResult, count_targets, reduce


class Compares(Protocol):
    """An objective whose loss is one of vectors."""

    mini_batch_size: int
    counts: Callable[[Batch], dict[str, float]]

    def texts(self, batch: Batch) -> list[Any]: ...
    def embed(self, model: TrainableModel, texts: Sequence[Any]) -> Tensor: ...
    def compare(self, vectors: Tensor, texts: Sequence[Any]) -> Loss: ...


def compute_gradients(
    model: TrainableModel, objective: Compares, window: list[Batch], distributed: Distributed, scale: float = 1.0
) -> StepResult:
    """Leave the gradient of the window's mean loss, times `scale`, in every trainable parameter.

    Returns:
        The window's loss and what was counted, over all machines.
    """
    counts = distributed.all_reduce(count_targets(objective, window))  # pyright: ignore[reportArgumentType]
    sums: dict[str, float] = {}
    for batch in window:
        for task, total in _back(model, objective, batch, counts, scale).items():
            sums[task] = sums.get(task, 0.0) + total
    return reduce(model, window, distributed, counts, (sums, {}), scale)


def _back(
    model: TrainableModel, objective: Compares, batch: Batch, counts: dict[str, float], scale: float
) -> dict[str, float]:
    """Add one batch's gradient; its sums by task."""
    texts = objective.texts(batch)
    chunks = [texts[at : at + objective.mini_batch_size] for at in range(0, len(texts), objective.mini_batch_size)]
    before, found = [], []
    with torch.no_grad():
        for chunk in chunks:
            before.append(_random(model))
            found.append(objective.embed(model, chunk))
    vectors = torch.cat(found).requires_grad_()
    loss = objective.compare(vectors, texts)
    sum(total * (scale / counts[task]) for task, total in loss.totals.items() if counts[task]).backward()  # pyright: ignore
    assert vectors.grad is not None
    for chunk, state, cached in zip(chunks, before, vectors.grad.split(objective.mini_batch_size)):
        _replay(model, state)
        objective.embed(model, chunk).backward(cached)
    return {task: float(total.detach()) for task, total in loss.totals.items()}


def _random(model: TrainableModel) -> list[Tensor]:
    on_gpu = [torch.cuda.get_rng_state(model.device)] if model.device.type == "cuda" else []
    return [torch.get_rng_state(), *on_gpu]


def _replay(model: TrainableModel, state: list[Tensor]) -> None:
    torch.set_rng_state(state[0])
    for on_gpu in state[1:]:
        torch.cuda.set_rng_state(on_gpu, model.device)
