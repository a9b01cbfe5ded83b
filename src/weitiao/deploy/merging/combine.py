"""Merge several adapters of one base model: weighted sums, TIES, DARE, SVD of their task vectors.

    tau_i = theta_i - theta_base            of every weight that one of them changed

    linear            sum w_i tau_i / sum w_i
    task_arithmetic   sum w_i tau_i               Ilharco et al. 2023, arXiv 2212.04089, sec. 2; a negative weight makes the
                                                  model unlearn
    ties              trim, elect, merge          Yadav et al. 2023, arXiv 2306.01708, sec. 3
    dare_linear       drop and rescale, then sum  Yu et al. 2023, arXiv 2311.03099, sec. 3
    dare_ties         drop and rescale instead of trim, then elect and merge
    svd               sum w_i tau_i as one LoRA of a given rank: the best approximation of each matrix (Eckart and Young
                      1936), which keeps the share sum_{i <= R} sigma_i^2 / sum_i sigma_i^2 of it

    ties        tau_1    3  -1  .2  -4    trim to the     3   .   .  -4    elect   +  -  .  -    mean of      3  -2   .  -3
                tau_2   .1  -2   1  -2    largest half    .  -2   .  -2    a sign                those agreeing

The names are mergekit's and PEFT's. PEFT's `linear` adds A and B separately and does not divide by the sum of the weights;
its `cat` is our task_arithmetic, its `svd` our svd.

Trimming ranks all values of a task vector together, as the paper does, not matrix by matrix. PEFT's ties and dare work
on A and B separately, which is something else: a trimmed A times a trimmed B is not a trimmed product (its *_svd
variants work on the product, matrix by matrix).

A sum of low-rank changes is a low-rank change, so sums and averages of plain LoRAs are one LoRA, of all ranks together:

    w_1 s_1 B_1 A_1 + w_2 s_2 B_2 A_2  =  [w_1 s_1 B_1, w_2 s_2 B_2] [A_1; A_2]
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypedDict

import torch
from torch import Tensor

from weitiao.core.errors import ModelError, RecipeError
from weitiao.core.messages import Message
from weitiao.core.registry import nearest

MERGE_METHODS = ("linear", "task_arithmetic", "ties", "dare_linear", "dare_ties", "svd")
SPARSE = ("ties", "dare_linear", "dare_ties")
RENAMED = {"average": "linear", "sum": "task_arithmetic", "cat": "task_arithmetic", "dare": "dare_linear"}
DENSITY = 0.2  # what the TIES paper keeps where nothing is searched for (sec. 5)

A, B = ".lora_A.weight", ".lora_B.weight"

TaskVector = Mapping[str, Tensor]
"""A parameter's name -> what was added to the base's."""
Adapter = tuple[dict[str, Any], dict[str, Tensor]]
"""PEFT's config and tensors."""


class CombineOptions(TypedDict, total=False):
    """What a user may choose of a merge method."""

    weights: Sequence[float]
    """One for each; (): 1 each."""
    density: float | None
    """The fraction that ties and dare keep; None: 0.2."""
    seed: int | None
    """Of the values that dare drops; None: 0."""
    rank: int | None
    """Of the LoRA that svd writes; None: the highest of theirs."""


@dataclass(frozen=True)
class MergeMethod:
    """How several task vectors become one."""

    name: str
    weights: tuple[float, ...]
    density: float = 1.0
    """The fraction of each task vector that is kept."""
    seed: int = 0
    """Of the values that DARE drops."""
    rank: int | None = None
    """Of the LoRA that svd writes; None: the highest of the LoRAs."""

    @classmethod
    def make(
        cls,
        name: str,
        count: int,
        weights: Sequence[float] = (),
        density: float | None = None,
        seed: int | None = None,
        rank: int | None = None,
    ) -> "MergeMethod":
        """From a user's options for `count` task vectors; defaults are weight 1 each, density 0.2, seed 0.

        Raises:
            RecipeError: an option is impossible.
        """
        if name not in MERGE_METHODS:
            raise RecipeError(
                "there is no merge method {name!r}.{hint} There are: {methods}.",
                name=name,
                hint=nearest(name, MERGE_METHODS, RENAMED),
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
        if name == "linear" and (min(weights) < 0 or sum(weights) == 0):
            raise RecipeError(
                "weights: an average takes weights of at least 0, not all of them 0; a sum (--method task_arithmetic) "
                "takes any."
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
            raise RecipeError("seed: method {name} is not random; seed is for dare_linear, dare_ties.", name=name)
        if rank is not None and name != "svd":
            raise RecipeError("rank: method {name} has no rank to choose; rank is for svd.", name=name)
        if rank is not None and rank < 1:
            raise RecipeError("rank: {rank} is no rank; give 1 or more.", rank=rank)
        total = sum(weights) if name == "linear" else 1.0
        return cls(
            name, tuple(w / total for w in weights), (density or DENSITY) if name in SPARSE else 1.0, seed or 0, rank
        )

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
        """The result is a weighted sum of the task vectors; of svd, before it is cut to its rank."""
        return self.name in ("linear", "task_arithmetic", "svd")

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
        """The one adapter that is the merge of these, or None; and what is written, with the reason.

        Raises:
            ModelError: svd of something else than plain LoRAs.
        """
        if not self.linear:
            return None, Message("a merged model (the result of {name} is not low-rank)", name=self.name)
        loras = [adapter for adapter in adapters if adapter is not None and is_plain_lora(adapter)]
        if self.name == "svd":
            if len(loras) < len(adapters):
                raise ModelError("method svd: it takes plain LoRAs only; task_arithmetic adds any results into one model.")
            cut, energy, worst = truncate(concatenate_loras(loras, self.weights), self.rank or highest_rank(loras))
            return cut, Message(
                "a LoRA of rank {rank} in PEFT's format, which keeps {energy:.2%} of the change (the least: {least:.2%}, "
                "in {layer})",
                rank=cut[0]["r"],
                energy=energy,
                least=worst[0],
                layer=worst[1],
            )
        if len(loras) < len(adapters):
            return None, Message("a merged model (not all of them are plain LoRAs)")
        merged = concatenate_loras(loras, self.weights)
        if is_above_width(merged):
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


def concatenate_loras(adapters: Sequence[Adapter], weights: Sequence[float]) -> Adapter:
    """The weighted sum of plain LoRAs as one LoRA with scale 1, of all ranks together."""
    pairs: dict[str, list[tuple[Tensor, Tensor]]] = {}
    for (config, tensors), weight in zip(adapters, weights):
        for name in layers_of(tensors):
            a, b = tensors[name + A], tensors[name + B]
            scale = config["lora_alpha"] / (math.sqrt(len(a)) if config["use_rslora"] else len(a))
            pairs.setdefault(name, []).append((a, b * (weight * scale)))
    rank = max(sum(len(a) for a, _ in parts) for parts in pairs.values())
    factors = {name: (torch.cat([a for a, _ in x]), torch.cat([b for _, b in x], 1)) for name, x in pairs.items()}
    return lora_of([config for config, _ in adapters], factors, rank)


def lora_of(configs: Sequence[dict[str, Any]], factors: Mapping[str, tuple[Tensor, Tensor]], rank: int) -> Adapter:
    """A LoRA with scale 1.

    Args:
        configs: of the LoRAs that it is made of.
        factors: of each layer, A [R, D_in] and B [D_out, R] with R up to `rank`: zeros are added.
    """
    tensors: dict[str, Tensor] = {}
    for name, (a, b) in factors.items():
        missing = rank - len(a)  # a layer that not all of them changed
        tensors[name + A] = torch.nn.functional.pad(a, (0, 0, 0, missing))
        tensors[name + B] = torch.nn.functional.pad(b, (0, missing))
    first, *others = configs
    same_targets = all(config["target_modules"] == first["target_modules"] for config in others)
    targets = first["target_modules"] if same_targets else sorted(x.removeprefix("base_model.model.") for x in factors)
    scale_one = {"r": rank, "lora_alpha": rank, "use_rslora": False, "rank_pattern": {}, "lora_dropout": 0.0}
    return {**first, **scale_one, "target_modules": targets}, tensors


def layers_of(tensors: Mapping[str, Tensor]) -> list[str]:
    """The names of the layers that a LoRA changes, as in its file."""
    return [x.removesuffix(A) for x in tensors if x.endswith(A)]


def is_above_width(adapter: Adapter) -> bool:
    """Whether its rank is above the width of a layer."""
    config, tensors = adapter
    return any(config["r"] > max(tensors[x + A].shape[1], tensors[x + B].shape[0]) for x in layers_of(tensors))


def highest_rank(adapters: Sequence[Adapter]) -> int:
    """The highest rank of LoRAs."""
    return max(len(tensors[name + A]) for _, tensors in adapters for name in layers_of(tensors))


def truncate(adapter: Adapter, rank: int) -> tuple[Adapter, float, tuple[float, str]]:
    """(a LoRA cut to a rank, the share of the change that it keeps, (the least share of a layer, that layer)).

    The SVD of B A [D_out, D_in] is that of a small matrix [R, R]: with B = Q_b R_b and A^T = Q_a R_a,
    B A = Q_b (R_b R_a^T) Q_a^T = (Q_b U) S (Q_a V)^T.
    """
    config, tensors = adapter
    factors: dict[str, tuple[Tensor, Tensor]] = {}
    energy = total = 0.0
    worst = (1.0, "")
    for name in layers_of(tensors):
        a, b = tensors[name + A].double(), tensors[name + B].double()
        (q_b, r_b), (q_a, r_a) = torch.linalg.qr(b), torch.linalg.qr(a.T)
        u, s, v = torch.linalg.svd(r_b @ r_a.T, full_matrices=False)
        root, squares = s[:rank].sqrt(), s.square()
        factors[name] = ((root[:, None] * (v[:rank] @ q_a.T)).float(), ((q_b @ u[:, :rank]) * root).float())
        share = float(squares[:rank].sum() / squares.sum()) if float(squares.sum()) else 1.0
        energy, total = energy + float(squares[:rank].sum()), total + float(squares.sum())
        worst = min(worst, (share, name.removeprefix("base_model.model.")))
    widest = max(len(a) for a, _ in factors.values())
    return lora_of([config], factors, min(rank, widest)), energy / total if total else 1.0, worst


def change_of(adapter: Adapter) -> dict[str, Tensor]:
    """What a LoRA with scale 1 adds to each weight [D_out, D_in], by the weight's name in the model."""
    tensors = adapter[1]
    return {x.removeprefix("base_model.model.") + ".weight": tensors[x + B] @ tensors[x + A] for x in layers_of(tensors)}
