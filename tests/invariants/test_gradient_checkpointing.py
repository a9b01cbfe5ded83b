"""Gradient checkpointing changes nothing: loss, gradients and the random numbers afterwards are bit-exactly the same.

And it does what it is for: next to nothing is kept from inside the layers.
"""

import pytest
import torch
from torch import Tensor, nn

from support.laws import attached, loss_of, perturb
from support.models import FAMILIES
from support.rows import batch_of, make_rows
from weitiao.core.batch import Batch
from weitiao.core.errors import RecipeError
from weitiao.core.method import Method
from weitiao.core.registry import find, names
from weitiao.core.trainable_model import TrainableModel, evaluating
from weitiao.model.adapters.module_replacement import OriginalWeights
from weitiao.model.backbone.choose import choose_backbone
from weitiao.model.layers.gradient_checkpointing import enable_gradient_checkpointing

METHODS = names(Method)
DROPPED = 0.2
HARDEST = {"adapter": {"variant": "parallel"}}  # listens to what another module is given


def training(method: str, family: str) -> TrainableModel:
    """Dropout wherever the family and the method have one."""
    settings: dict = {"dropout": DROPPED} if "dropout" in find(Method, method).model_fields else {}
    model = attached(method, family, **settings, **HARDEST.get(method, {}))
    perturb(model)
    for module in model.model.modules():
        if isinstance(module, nn.Dropout):
            module.p = DROPPED
    model.model.train()
    return model


def made_again(method: str, family: str) -> TrainableModel:
    model = training(method, family)
    enable_gradient_checkpointing(model.model)
    return model


def loss_of_all(model: TrainableModel, batches: list[Batch]) -> Tensor:
    """Of all batches, with the base model asked in between. (Not where asking changes weights in place: torch itself
    refuses the backward pass then, recomputed or not.)"""
    set_enabled, losses = model.attachment.set_enabled, []
    for batch in batches:
        losses.append(loss_of(model, batch))
        in_place = isinstance(getattr(set_enabled, "__self__", None), OriginalWeights) or "FLearning" in getattr(
            set_enabled, "__qualname__", ""
        )
        if set_enabled is not None and not in_place:
            with model.reference(), torch.no_grad():
                model.hidden(batch)
    return torch.stack(losses).sum()


def step(model: TrainableModel, batches: list[Batch]) -> dict[str, Tensor]:
    """Loss, gradients, and the state of the random generator behind them."""
    torch.manual_seed(3)
    loss = loss_of_all(model, batches)
    loss.backward()
    gradients = {name: p.grad for name, p in model.trainable().items() if p.grad is not None}
    return {"the loss": loss.detach(), "random numbers": torch.get_rng_state(), **gradients}


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("method", METHODS)
def test_checkpointing_bit_exact(method: str, family: str) -> None:
    """Two batches go through the model before the backward pass, as a preference objective does it; they are alike in
    shape, so that a layer which takes one for the other is not caught by torch."""
    batches = [batch_of(make_rows()), batch_of(make_rows(seed=1, lengths=(7, 13, 5, 1, 5, 9)))]
    plain, again = (step(model, batches) for model in (training(method, family), made_again(method, family)))
    assert plain.keys() == again.keys() and len(plain) > 2
    assert not [name for name, x in plain.items() if not torch.equal(x, again[name])]


@pytest.mark.parametrize("family", ["llama", "gpt2"])
@pytest.mark.parametrize("method", ["full", "lora"])
def test_checkpointing_bit_exact_bf16(method: str, family: str) -> None:
    """Autocast, too, is in the second run what it was in the first."""
    found = []
    for model in (training(method, family), made_again(method, family)):
        model.backbone = choose_backbone(model.model, torch.bfloat16)[0]
        found.append(step(model, [batch_of(make_rows())]))
    plain, again = found
    assert all(torch.equal(x, again[name]) for name, x in plain.items())


def test_model_without_checkpointable_layers_refused() -> None:
    with pytest.raises(RecipeError, match="train.gradient_checkpointing: the layers of Linear do not support it"):
        enable_gradient_checkpointing(nn.Linear(2, 2))


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("method", ["full", "lora"])
def test_checkpointing_saves_activation_memory(method: str, family: str) -> None:
    """Beside weights, less than a quarter of the bytes; a layer's matrices run twice."""
    batch, kept = batch_of(make_rows()), []
    for make in (training, made_again):
        model, seen, runs = make(method, family), {}, []
        weights = {p.untyped_storage().data_ptr() for p in model.model.parameters()}
        inside = next(
            m for n, m in model.model.named_modules() if n.endswith(("mlp.up_proj", "mlp.c_fc", "intermediate.dense"))
        )
        inside.register_forward_hook(lambda module, given, out, runs=runs: runs.append(1))

        def pack(x: Tensor, seen: dict = seen, weights: set = weights) -> Tensor:
            storage = x.untyped_storage()
            if storage.data_ptr() not in weights:
                seen[storage.data_ptr()] = (storage.nbytes(), x)
            return x

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
            loss = loss_of(model, batch)
        loss.backward()
        kept.append((sum(n for n, _ in seen.values()), len(runs)))
    (plain, once), (again, twice) = kept
    assert again < plain / 4 and (once, twice) == (1, 2)


def test_no_recomputation_in_eval() -> None:
    model = made_again("lora", "gpt2")
    calls: list[int] = []
    model.model.get_decoder().h[0].mlp.c_fc.register_forward_hook(lambda *_: calls.append(1))
    with evaluating(model):
        (-model.logprobs(batch_of(make_rows())).sum()).backward()
    assert calls == [1]
