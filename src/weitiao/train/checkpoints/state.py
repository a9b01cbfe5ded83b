"""State: everything that changes while training. Saving it, resuming and going back are one thing."""

import random
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor

from weitiao.core.trainable_model import TrainableModel
from weitiao.train.stability.guard import Guard
from weitiao.train.stability.loss_scale import LossScale


@dataclass
class State:
    """Taken at step boundaries only. The data position is a number, for loader[i] is a pure function."""

    model: TrainableModel
    optimizer: torch.optim.Optimizer
    step: int = 0
    """Optimizer steps taken."""
    position: int = 0
    """The next i of loader[i]."""
    rate: float = 1.0
    """Factor on the learning rate."""
    best: float | None = None
    """The best validation score so far."""
    best_step: int = 0
    evals_since_best: int = 0
    """Validations since then."""
    guard: Guard = field(default_factory=Guard)
    loss_scale: LossScale = field(default_factory=LossScale)
    clip: dict[str, float] = field(default_factory=dict)
    """What the clip remembers."""

    def tensors(self) -> dict[str, dict[str, Tensor]]:
        """By file: weights, optimizer, random."""
        weights = {name: p.detach() for name, p in self.model.trainable().items()}
        buffers = {f"buffer.{name}": b for name, b in self.model.buffers().items()}
        generators = {"cpu": torch.get_rng_state()}
        if torch.cuda.is_available():
            generators["cuda"] = torch.cuda.get_rng_state()
        return {"weights": {**weights, **buffers}, "optimizer": self._moments(), "random": generators}

    def numbers(self) -> dict[str, Any]:
        """What is not a tensor, ready for JSON."""
        keys = ("step", "position", "rate", "best", "best_step", "evals_since_best")
        version, internal, gauss = random.getstate()
        here = {key: getattr(self, key) for key in keys}
        random_state = [version, list(internal), gauss]
        memories = {"guard": asdict(self.guard), "loss_scale": asdict(self.loss_scale), "clip": dict(self.clip)}
        return {**here, "python_random": random_state, **memories}

    def load(self, tensors: dict[str, dict[str, Tensor]], numbers: dict[str, Any]) -> None:
        """Become what was saved.

        Raises:
            KeyError: something that belongs to a State is missing.
        """
        load_weights(self.model, tensors["weights"])
        self._load_moments(tensors["optimizer"])
        torch.set_rng_state(tensors["random"]["cpu"])
        if torch.cuda.is_available():
            torch.cuda.set_rng_state(tensors["random"]["cuda"])
        version, internal, gauss = numbers["python_random"]
        random.setstate((version, tuple(internal), gauss))
        for key in ("step", "position", "rate", "best", "best_step", "evals_since_best"):
            setattr(self, key, numbers[key])
        self.guard, self.loss_scale = Guard(**numbers["guard"]), LossScale(**numbers["loss_scale"])
        self.clip = dict(numbers["clip"])

    def _names(self) -> dict[int, str]:
        return {id(p): name for name, p in self.model.trainable().items()}

    def _moments(self) -> dict[str, Tensor]:
        """The optimizer's memory as '<parameter>|<key>' -> tensor."""
        names = self._names()
        found: dict[str, Tensor] = {}
        for parameter, memory in self.optimizer.state.items():
            for key, value in memory.items():
                as_tensor = value if isinstance(value, Tensor) else torch.tensor(value)
                found[f"{names[id(parameter)]}|{key}"] = as_tensor.detach()
        return found

    def _load_moments(self, saved: dict[str, Tensor]) -> None:
        here = {name: p for name, p in self.model.trainable().items()}
        self.optimizer.state.clear()
        for joined, value in saved.items():
            name, _, key = joined.rpartition("|")
            self.optimizer.state[here[name]][key] = value.to(here[name].device, copy=True)  # files are read onto the CPU


def load_weights(model: TrainableModel, saved: dict[str, Tensor]) -> None:
    """Put saved weights and buffers into the model.

    Raises:
        KeyError: the names are not the model's.
    """
    here: dict[str, Tensor] = {**model.trainable(), **{f"buffer.{name}": b for name, b in model.buffers().items()}}
    if here.keys() != saved.keys():
        odd = sorted(here.keys() ^ saved.keys())
        raise KeyError(f"saved weights and model differ in {len(odd)} names, first {odd[0]}")
    with torch.no_grad():
        for name, value in saved.items():
            here[name].copy_(value)
