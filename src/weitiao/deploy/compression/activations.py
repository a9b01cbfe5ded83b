"""What calibrated techniques see of a model on rows: the inputs of its linear layers, the states between its layers."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from weitiao.core.compressor import Subject
from weitiao.core.errors import ModelError
from weitiao.core.messages import Message


@torch.no_grad()
def input_norms(subject: Subject) -> dict[str, Tensor]:
    """The L2 norm of each input of each linear layer over all tokens of the rows: name -> [D_in], fp32.

    Sums of squares are added row by row, so memory does not grow with the rows.
    """
    model = subject.open()
    squares = {layer.name: torch.zeros(layer.shape[1], dtype=torch.float64) for layer in subject.linears.values()}

    def observe(name: str) -> Callable[[nn.Module, Any], None]:
        def add(module: nn.Module, inputs: Any) -> None:
            squares[name] += inputs[0].detach().flatten(0, -2).double().square().sum(0).cpu()

        return add

    with pre_hooks({name: model.get_submodule(name) for name in squares}, observe):
        run_rows(model, subject, Message("measuring activations"))
    return {name: x.sqrt().float() for name, x in squares.items()}


@torch.no_grad()
def state_cosines(subject: Subject, layers: list[nn.Module], model: nn.Module) -> tuple[Tensor, Tensor]:
    """Cosines of the hidden states before layer i and before layer j (j = L: after the last), [L + 1, L + 1] fp64.

    Returns:
        (angles: the mean over rows of arccos / pi at the last token of each row;
        cosines: the mean over all tokens).
    """
    count = len(layers) + 1
    angles, cosines, tokens, rows = torch.zeros(count, count).double(), torch.zeros(count, count).double(), 0, 0
    states: list[Tensor] = []

    def before(name: str) -> Callable[[nn.Module, Any], None]:
        return lambda module, inputs: states.append(inputs[0][0].float())

    def after(module: nn.Module, inputs: Any, output: Any) -> None:
        states.append((output[0] if isinstance(output, tuple) else output).view(-1, inputs[0].shape[-1]).float())

    def add() -> None:
        nonlocal tokens, rows
        units = nn.functional.normalize(torch.stack(states).double(), dim=-1)  # [L + 1, T, D]
        similar = torch.einsum("itd,jtd->tij", units, units).clamp(-1, 1)
        angles.add_(similar[-1].cpu().arccos() / torch.pi)
        cosines.add_(similar.sum(0).cpu())
        tokens, rows = tokens + units.shape[1], rows + 1
        states.clear()

    last = layers[-1].register_forward_hook(after)
    try:
        with pre_hooks({str(i): x for i, x in enumerate(layers)}, before):
            run_rows(model, subject, Message("comparing layers"), add)
    finally:
        last.remove()
    return angles / rows, cosines / tokens


@contextmanager
def pre_hooks(modules: dict[str, nn.Module], make: Callable[[str], Callable[[nn.Module, Any], None]]) -> Iterator[None]:
    """Inside, make(name) is called before each module, with its inputs."""
    handles = [x.register_forward_pre_hook(make(name)) for name, x in modules.items()]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def run_rows(model: Any, subject: Subject, label: Message, after_row: Callable[[], None] = lambda: None) -> None:
    """Run every row through the model, one at a time.

    Raises:
        ModelError: there are no rows.
    """
    if not subject.rows:
        raise ModelError("there are no rows to calibrate on: name a file with --data FILE")
    arguments = {"use_cache": False} if subject.architecture.kind == "decoder" else {}
    for ids in subject.track(subject.rows, label):
        model(input_ids=torch.tensor([list(ids)], device=model.device), **arguments)
        after_row()
