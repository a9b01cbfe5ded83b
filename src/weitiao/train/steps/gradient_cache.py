"""Gradient caching: a batch whose rows depend on each other, in little memory. Texts are embedded twice, a few at a time.

Gao et al. 2021, "Scaling Deep Contrastive Learning Batch Size under Memory Limited Setup", arXiv 2101.06983, sec. 3.2:

    1   v_c = embed(texts of chunk c), without a graph           for every chunk; the random state before it is stored
    2   g = d loss(v_1 ... v_C) / d v                            the cache; only vectors are in memory
    3   embed(texts of chunk c) again, with a graph              with the same random numbers (dropout)
        and back-propagate g_c through it                        for every chunk

By the chain rule this is the gradient of the plain step. The objective defines its `texts`, how they are embedded
(`embed`), the loss of the vectors (`compare`), and how many texts fit in memory (`mini_batch_size`).
"""

from collections.abc import Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

from weitiao.core.batch import Batch, Loss
from weitiao.core.trainable_model import TrainableModel
from weitiao.train.distributed import Distributed
from weitiao.train.step import StepResult, count_targets, reduce


class EmbeddingObjective(Protocol):
    """An objective whose loss is a function of embedding vectors."""

    mini_batch_size: int

    def counts(self, batch: Batch) -> dict[str, float]: ...
    def texts(self, batch: Batch) -> list[Any]: ...
    def embed(self, model: TrainableModel, texts: Sequence[Any]) -> Tensor: ...
    def compare(self, vectors: Tensor, batch: Batch) -> Loss: ...


def compute_gradients(
    model: TrainableModel, objective: EmbeddingObjective, window: list[Batch], distributed: Distributed, scale: float = 1.0
) -> StepResult:
    """Leave the gradient of the window's mean loss, times `scale`, in every trainable parameter.

    Returns:
        The window's loss and counts, over all processes.
    """
    counts = distributed.all_reduce(count_targets(objective, window))
    sums: dict[str, float] = {}
    for batch in window:
        for task, total in _backward_cached(model, objective, batch, counts, scale).items():
            sums[task] = sums.get(task, 0.0) + total
    return reduce(model, window, distributed, counts, (sums, {}), scale)


def _backward_cached(
    model: TrainableModel, objective: EmbeddingObjective, batch: Batch, counts: dict[str, float], scale: float
) -> dict[str, float]:
    """Add one batch's gradient; returns the sums of its losses by task."""
    texts, size = objective.texts(batch), objective.mini_batch_size
    chunks = [texts[start : start + size] for start in range(0, len(texts), size)]
    random_states, embeddings = [], []
    with torch.no_grad():
        for chunk in chunks:
            random_states.append(_random_state(model))
            embeddings.append(objective.embed(model, chunk))
    vectors = torch.cat(embeddings).requires_grad_()
    loss = objective.compare(vectors, batch)
    means = [total * (scale / counts[task]) for task, total in loss.totals.items() if counts[task]]
    sum(means[1:], means[0]).backward()
    assert vectors.grad is not None
    for chunk, random_state, gradient in zip(chunks, random_states, vectors.grad.split(size)):
        _set_random_state(model, random_state)
        objective.embed(model, chunk).backward(gradient)
    return {task: float(total.detach()) for task, total in loss.totals.items()}


def _random_state(model: TrainableModel) -> list[Tensor]:
    """The state of the CPU's generator, and of the GPU's where the model is on one."""
    on_gpu = [torch.cuda.get_rng_state(model.device)] if model.device.type == "cuda" else []
    return [torch.get_rng_state(), *on_gpu]


def _set_random_state(model: TrainableModel, state: list[Tensor]) -> None:
    torch.set_rng_state(state[0])
    for on_gpu in state[1:]:
        torch.cuda.set_rng_state(on_gpu, model.device)
