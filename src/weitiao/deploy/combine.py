"""Merge several adapters of one base model: average, sum, TIES, DARE of their task vectors.

    tau_i = theta_i - theta_base            of every weight that one of them changed

    average     sum w_i tau_i / sum w_i
    sum         sum w_i tau_i               task arithmetic: Ilharco et al. 2023, arXiv 2212.04089, sec. 2; a negative
                                            weight makes the model unlearn
    ties        trim, elect, merge          Yadav et al. 2023, arXiv 2306.01708, sec. 3
    dare        drop and rescale, then sum  Yu et al. 2023, arXiv 2311.03099, sec. 3
    dare_ties   drop and rescale instead of trim, then elect and merge

    ties        tau_1    3  -1  .2  -4    trim to the     3   .   .  -4    elect   +  -  .  -    mean of      3  -2   .  -3
                tau_2   .1  -2   1  -2    largest half    .  -2   .  -2    a sign                those agreeing

Trimming ranks all values of a task vector together, as the paper does, not matrix by matrix. PEFT's ties and dare work
on A and B separately, which is something else: a trimmed A times a trimmed B is not a trimmed product (its *_svd
variants work on the product, matrix by matrix).

A sum of low-rank changes is a low-rank change, so sums and averages of plain LoRAs are one LoRA, of all ranks together:

    w_1 s_1 B_1 A_1 + w_2 s_2 B_2 A_2  =  [w_1 s_1 B_1, w_2 s_2 B_2] [A_1; A_2]
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from weitiao.core.errors import RecipeError
from weitiao.core.messages import Message
from weitiao.core.registry import nearest

MERGE_METHODS = ("average", "sum", "ties", "dare", "dare_ties")
SPARSE = ("ties", "dare", "dare_ties")
DENSITY = 0.2  # what the TIES paper keeps where nothing is searched for (sec. 5)

TaskVector = Mapping[str, Tensor]
"""A parameter's name -> what was added to the base's."""
Adapter = tuple[dict[str, Any], dict[str, Tensor]]
"""PEFT's config and tensors."""


@dataclass(frozen=True)
class MergeMethod:
    """How several task vectors become one."""

    name: str
    weights: tuple[float, ...]
    density: float = 1.0
    """The fraction of each task vector that is kept."""
    seed: int = 0
    """Of the values that DARE drops."""

    @classmethod
    def make(
        cls, name: str, count: int, weights: Sequence[float], density: float | None, seed: int | None
    ) -> "MergeMethod":
        """From a user's options for `count` task vectors; defaults are weight 1 each, density 0.2, seed 0.

        Raises:
            RecipeError: an option is impossible.
        """
        if name not in MERGE_METHODS:
            raise RecipeError(
                "there is no merge method {name!r}.{hint} There are: {methods}.",
                name=name,
                hint=nearest(name, MERGE_METHODS),
                methods=", ".join(MERGE_METHODS),
            )
        if count < 2:
            raise RecipeError("a merge method combines two or more results, and {count} was given.", count=count)
        if weights and len(weights) != count:
            raise RecipeError(
                "weights: {given} weights for {count} results; give one each.", given=len(weights), count=count
            )
        if not all(math.isfinite(w) for w in weights):
            raise RecipeError("weights: {weights} are not all finite numbers.", weights=", ".join(map(str, weights)))
        weights = tuple(weights) or (1.0,) * count
        if name == "average" and (min(weights) < 0 or sum(weights) == 0):
            raise RecipeError(
                "weights: an average takes weights of at least 0, not all of them 0; a sum (--method sum) takes any."
            )
        if density is not None and name not in SPARSE:
            raise RecipeError(
                "density: method {name} keeps every value; density is for {methods}.", name=name, methods=", ".join(SPARSE)
            )
        if density is not None and not 0 < density <= 1:
            raise RecipeError(
                "density: {density:g} is not a fraction; give more than 0, at most 1 (0.2 keeps a fifth).", density=density
            )
        if seed is not None and not name.startswith("dare"):
            raise RecipeError("seed: method {name} is not random; seed is for dare, dare_ties.", name=name)
        total = sum(weights) if name == "average" else 1.0
        return cls(name, tuple(w / total for w in weights), (density or DENSITY) if name in SPARSE else 1.0, seed or 0)

    @property
    def message(self) -> Message:
        """The method with every default filled in."""
        if self.name.startswith("dare"):
            return Message("{name}, density {density:g}, seed {seed}", name=self.name, density=self.density, seed=self.seed)
        if self.name == "ties":
            return Message("{name}, density {density:g}", name=self.name, density=self.density)
        return Message("{name}", name=self.name)

    @property
    def linear(self) -> bool:
        """The result is a weighted sum of the task vectors."""
        return self.name in ("average", "sum")

    def combine(self, task_vectors: Sequence[TaskVector]) -> dict[str, Tensor]:
        """One task vector of several. A vector that lacks a weight did not change it."""
        shapes = {name: x for vector in reversed(task_vectors) for name, x in vector.items()}
        if self.name == "ties":
            size = sum(x.numel() for x in shapes.values())
            task_vectors = [trim(vector, self.density, size) for vector in task_vectors]
        elif not self.linear:
            generator = torch.Generator().manual_seed(self.seed)
            task_vectors = [drop_and_rescale(vector, self.density, generator) for vector in task_vectors]
        reduce = disjoint_mean if self.name.endswith("ties") else weighted_sum
        merged = {}
        for name in sorted(shapes):
            stacked = torch.stack([vector.get(name, torch.zeros_like(shapes[name])) for vector in task_vectors])
            merged[name] = reduce(stacked, torch.tensor(self.weights, dtype=stacked.dtype))
        return merged

    def as_adapter(self, adapters: Sequence[Adapter | None]) -> tuple[Adapter | None, Message]:
        """The one adapter that is exactly the merge of these, or None; and what is written, with the reason."""
        if not self.linear:
            return None, Message("a merged model (the result of {name} is not low-rank)", name=self.name)
        loras = [adapter for adapter in adapters if adapter is not None and is_plain_lora(adapter)]
        if len(loras) < len(adapters):
            return None, Message("a merged model (not all of them are plain LoRAs)")
        merged = concatenate_loras(loras, self.weights)
        if merged is None:
            return None, Message("a merged model (the sum of their ranks is above the width of a layer)")
        return merged, Message(
            "a LoRA of rank {rank} in PEFT's format (exact for {name})", rank=merged[0]["r"], name=self.name
        )


def trim(vector: TaskVector, density: float, size: int) -> TaskVector:
    """Keep the `density * size` values of largest magnitude; set the rest to zero."""
    keep = max(1, int(density * size))
    values = torch.cat([x.flatten().abs() for x in vector.values()])
    if keep >= len(values):
        return vector
    threshold = values.kthvalue(len(values) - keep + 1).values
    return {name: x * (x.abs() >= threshold) for name, x in vector.items()}


def drop_and_rescale(vector: TaskVector, density: float, generator: torch.Generator) -> TaskVector:
    """Keep each value with probability `density` and divide it by that, which keeps the expectation."""
    masks = {name: torch.empty_like(vector[name]).bernoulli_(density, generator=generator) for name in sorted(vector)}
    return {name: vector[name] * mask / density for name, mask in masks.items()}


def weighted_sum(stacked: Tensor, weights: Tensor) -> Tensor:
    """[n, ...], [n] -> [...]"""
    return torch.tensordot(weights, stacked, dims=1)


def disjoint_mean(stacked: Tensor, weights: Tensor) -> Tensor:
    """Elect each value's sign by the sum, then average the values that have it. [n, ...], [n] -> [...]"""
    sign = stacked.sum(0).sign()
    agreeing = (stacked.sign() == sign) & (sign != 0)
    return weighted_sum(stacked * agreeing, weights) / agreeing.sum(0).clamp(min=1)


def is_plain_lora(adapter: Adapter) -> bool:
    """Its change is s B A and nothing else."""
    config = adapter[0]
    return config.get("peft_type") == "LORA" and not config.get("use_dora") and config.get("bias") == "none"


def concatenate_loras(adapters: Sequence[Adapter], weights: Sequence[float]) -> Adapter | None:
    """The weighted sum of plain LoRAs as one LoRA with scale 1; None where its rank is above the width of a layer."""
    pairs: dict[str, list[tuple[Tensor, Tensor]]] = {}
    for (config, tensors), weight in zip(adapters, weights):
        for name in (x.removesuffix(".lora_A.weight") for x in tensors if x.endswith(".lora_A.weight")):
            a, b = tensors[f"{name}.lora_A.weight"], tensors[f"{name}.lora_B.weight"]
            scale = config["lora_alpha"] / (math.sqrt(len(a)) if config["use_rslora"] else len(a))
            pairs.setdefault(name, []).append((a, b * (weight * scale)))
    rank = max(sum(len(a) for a, _ in parts) for parts in pairs.values())
    tensors: dict[str, Tensor] = {}
    for name, parts in pairs.items():
        a, b = torch.cat([a for a, _ in parts]), torch.cat([b for _, b in parts], 1)  # [R, D_in], [D_out, R]
        if rank > max(a.shape[1], b.shape[0]):
            return None
        missing = rank - len(a)  # a layer that not all of them changed
        tensors[f"{name}.lora_A.weight"] = torch.nn.functional.pad(a, (0, 0, 0, missing))
        tensors[f"{name}.lora_B.weight"] = torch.nn.functional.pad(b, (0, missing))
    first, *others = (config for config, _ in adapters)
    same_targets = all(config["target_modules"] == first["target_modules"] for config in others)
    targets = first["target_modules"] if same_targets else sorted(name.removeprefix("base_model.model.") for name in pairs)
    scale_one = {"r": rank, "lora_alpha": rank, "use_rslora": False, "rank_pattern": {}, "lora_dropout": 0.0}
    return {**first, **scale_one, "target_modules": targets}, tensors
