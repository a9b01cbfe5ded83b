"""State: everything that changes during training. Saving, resuming and rolling back all use it."""

import random
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor

from weitiao.core.errors import InvalidValue
from weitiao.core.trainable_model import TrainableModel
from weitiao.train.stability.guard import Guard
from weitiao.train.stability.loss_scale import LossScale

NUMBERS = ("step", "data_step", "lr_factor", "best_score", "best_step", "evals_since_best")


@dataclass
class State:
    """Taken only between steps. The position in the data is a number, because loader[i] is a pure function of i."""

    model: TrainableModel
    optimizer: torch.optim.Optimizer
    step: int = 0
    """Optimizer steps taken."""
    data_step: int = 0
    """Windows of the data used so far: the next i of loader[i]."""
    lr_factor: float = 1.0
    """Factor on the learning rate; rollbacks lower it."""
    best_score: float | None = None
    """The best validation score so far."""
    best_step: int = 0
    """The step of that score."""
    evals_since_best: int = 0
    """Validations since then."""
    guard: Guard = field(default_factory=Guard)
    loss_scale: LossScale = field(default_factory=LossScale)
    clip: dict[str, float] = field(default_factory=dict)
    """What the clip stores from step to step."""

    def tensors(self) -> dict[str, dict[str, Tensor]]:
        """The tensors by file: weights, optimizer, random."""
        weights = {name: p.detach() for name, p in self.model.trainable().items()}
        buffers = {f"buffer.{name}": b for name, b in self.model.buffers().items()}
        generators = {"cpu": torch.get_rng_state()}
        if torch.cuda.is_available():
            generators["cuda"] = torch.cuda.get_rng_state()
        return {"weights": {**weights, **buffers}, "optimizer": self._optimizer_tensors(), "random": generators}

    def numbers(self) -> dict[str, Any]:
        """Everything that is not a tensor, ready for JSON."""
        version, internal, gauss = random.getstate()
        return {
            **{name: getattr(self, name) for name in NUMBERS},
            "python_random": [version, list(internal), gauss],
            "guard": asdict(self.guard),
            "loss_scale": asdict(self.loss_scale),
            "clip": dict(self.clip),
        }

    def load(self, tensors: dict[str, dict[str, Tensor]], numbers: dict[str, Any]) -> None:
        """Become the saved state.

        Raises:
            KeyError, InvalidValue: something that belongs to a State is missing.
        """
        load_weights(self.model, tensors["weights"])
        self._load_optimizer(tensors["optimizer"])
        torch.set_rng_state(tensors["random"]["cpu"])
        if torch.cuda.is_available():
            torch.cuda.set_rng_state(tensors["random"]["cuda"])
        version, internal, gauss = numbers["python_random"]
        random.setstate((version, tuple(internal), gauss))
        for name in NUMBERS:
            setattr(self, name, numbers[name])
        self.guard, self.loss_scale = Guard(**numbers["guard"]), LossScale(**numbers["loss_scale"])
        self.clip = dict(numbers["clip"])

    def _optimizer_tensors(self) -> dict[str, Tensor]:
        """The optimizer's state as '<parameter>|<key>' -> tensor."""
        names = {id(p): name for name, p in self.model.trainable().items()}
        tensors: dict[str, Tensor] = {}
        for parameter, values in self.optimizer.state.items():
            for key, value in values.items():
                as_tensor = value if isinstance(value, Tensor) else torch.tensor(value)
                tensors[f"{names[id(parameter)]}|{key}"] = as_tensor.detach()
        return tensors

    def _load_optimizer(self, saved: dict[str, Tensor]) -> None:
        weights = self.model.trainable()
        self.optimizer.state.clear()
        for full_key, value in saved.items():
            name, _, key = full_key.rpartition("|")
            # a copy on the weight's device: files are read onto the CPU
            self.optimizer.state[weights[name]][key] = value.to(weights[name].device, copy=True)


def load_weights(model: TrainableModel, saved: dict[str, Tensor]) -> None:
    """Copy saved weights and buffers into the model.

    Raises:
        InvalidValue: the names are not the model's.
    """
    weights: dict[str, Tensor] = {**model.trainable(), **{f"buffer.{name}": b for name, b in model.buffers().items()}}
    if weights.keys() != saved.keys():
        differing = sorted(weights.keys() ^ saved.keys())
        raise InvalidValue(
            "saved weights and model differ in {count} names, first {name}", count=len(differing), name=differing[0]
        )
    with torch.no_grad():
        for name, value in saved.items():
            weights[name].copy_(value)
