"""Several results on one base made into one, by what each added to the base weights: its task vector.

    tau_i = theta_i - theta_base            of every weight that one of them changed

    average     sum w_i tau_i / sum w_i
    sum         sum w_i tau_i               task arithmetic: Ilharco et al. 2023, arXiv 2212.04089, sec. 2; a weight
                                            below nought makes the model unlearn
    ties        trim, elect, merge          Yadav et al. 2023, arXiv 2306.01708, sec. 3
    dare        drop and rescale, then sum  Yu et al. 2023, arXiv 2311.03099, sec. 3
    dare_ties   drop and rescale in the place of trim, then elect and merge

    ties        tau_1    3  -1  .2  -4    trim to the     3   .   .  -4    elect   +  -  .  -    mean of      3  -2   .  -3
                tau_2   .1  -2   1  -2    largest half    .  -2   .  -2    a sign                those agreeing

Trimming looks at a whole task vector at once, not at each matrix. PEFT's ties and dare act on A and B apart, which is
something else: a changed A times a changed B is no trimmed change (its *_svd act on the change, matrix by matrix).

A sum of low-rank changes is a low-rank change, so sums and averages of plain LoRAs are one again, of all ranks together:

    w_1 s_1 B_1 A_1 + w_2 s_2 B_2 A_2  =  [w_1 s_1 B_1, w_2 s_2 B_2] [A_1; A_2]
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from weitiao.core.errors import RecipeError
from weitiao.core.registry import nearest
from weitiao.deploy.merge import Merged

WAYS = ("average", "sum", "ties", "dare", "dare_ties")
THINNING = ("ties", "dare", "dare_ties")
DENSITY = 0.2  # what the TIES paper keeps where nothing is searched for (sec. 5)

Change = Mapping[str, Tensor]
"""A task vector: a parameter's name -> what was added to the base's."""
Adapter = tuple[dict[str, Any], dict[str, Tensor]]
"""PEFT's config and tensors."""


@dataclass(frozen=True)
class Combined:
    """What was written, with its proof."""

    proof: Merged
    form: str
    """In words: what the folder holds, and why."""


@dataclass(frozen=True)
class MergeMethod:
    """How task vectors become one."""

    how: str
    weights: tuple[float, ...]
    density: float = 1.0
    """The share of each task vector that is kept."""
    seed: int = 0
    """Of what DARE drops."""

    @classmethod
    def asked(cls, how: str, many: int, weights: Sequence[float], density: float | None, seed: int | None) -> "MergeMethod":
        """From what a user says of `many` task vectors; what he does not say is 1 each, a fifth kept, seed 0.

        Raises:
            RecipeError: it cannot be.
        """
        if how not in WAYS:
            raise RecipeError(
                f"there is no way to combine called {how!r}.{nearest(how, WAYS)} There are: {', '.join(WAYS)}."
            )
        if many < 2:
            raise RecipeError(f"two results or more are combined, {many} was named.")
        if weights and len(weights) != many:
            raise RecipeError(f"weights: {len(weights)} are given for {many} results; give one each.")
        if not all(math.isfinite(w) for w in weights):
            raise RecipeError(f"weights: {', '.join(map(str, weights))} are not all finite numbers.")
        given = tuple(weights) or (1.0,) * many
        if how == "average" and (min(given) < 0 or sum(given) == 0):
            raise RecipeError("weights: those of an average are not below 0 and not all 0; a sum (--how sum) takes any.")
        if density is not None and how not in THINNING:
            raise RecipeError(f"density: {how} keeps all; it goes with {', '.join(THINNING)}.")
        if density is not None and not 0 < density <= 1:
            raise RecipeError(f"density: {density:g} is no share; give more than 0, at most 1 (0.2 keeps a fifth).")
        if seed is not None and not how.startswith("dare"):
            raise RecipeError(f"seed: {how} draws nothing; it goes with dare and dare_ties.")
        total = sum(given) if how == "average" else 1.0
        kept = (density or DENSITY) if how in THINNING else 1.0
        return cls(how, tuple(w / total for w in given), kept, seed or 0)

    @property
    def message(self) -> str:
        """What is done, every default filled in."""
        kept = f", keeping {100 * self.density:g} % of each" if self.how in THINNING else ""
        return f"{self.how}{kept}{f', seed {self.seed}' if self.how.startswith('dare') else ''}"

    @property
    def linear(self) -> bool:
        """The result is a weighted sum of the task vectors."""
        return self.how in ("average", "sum")

    def combine(self, changes: Sequence[Change]) -> dict[str, Tensor]:
        """One task vector of several. A weight that one of them does not name it did not change."""
        some = {name: x for change in reversed(changes) for name, x in change.items()}
        if self.how == "ties":
            size = sum(x.numel() for x in some.values())
            changes = [trim(change, self.density, size) for change in changes]
        elif not self.linear:
            random = torch.Generator().manual_seed(self.seed)
            changes = [drop(change, self.density, random) for change in changes]
        one = disjoint_mean if self.how.endswith("ties") else weighted_sum
        made = {}
        for name in sorted(some):
            every = torch.stack([change.get(name, torch.zeros_like(some[name])) for change in changes])
            made[name] = one(every, torch.tensor(self.weights, dtype=every.dtype))
        return made

    def form(self, adapters: Sequence[Adapter | None]) -> tuple[Adapter | None, str]:
        """The one adapter that does the same as all of these, or None and why there is none."""
        if not self.linear:
            return None, f"a merged model ({self.how} leaves no low-rank change)"
        lora = [adapter for adapter in adapters if adapter is not None and is_plain_lora(adapter)]
        if len(lora) < len(adapters):
            return None, "a merged model (not all of them are plain LoRAs)"
        whole = concatenate(lora, self.weights)
        if whole is None:
            return None, "a merged model (their ranks together are above the width of a layer)"
        return whole, f"a LoRA of rank {whole[0]['r']} in PEFT's format (a sum of low-rank changes is one)"


def trim(change: Change, density: float, size: int) -> Change:
    """Keep what is largest by magnitude, a share of `size` values; the rest becomes nought."""
    keep = max(1, int(density * size))
    values = torch.cat([x.flatten().abs() for x in change.values()])
    if keep >= len(values):
        return change
    least = values.kthvalue(len(values) - keep + 1).values
    return {name: x * (x.abs() >= least) for name, x in change.items()}


def drop(change: Change, density: float, random: torch.Generator) -> Change:
    """Keep each value with this probability and divide it by that, so that its expectation stays."""
    masks = {name: torch.empty_like(change[name]).bernoulli_(density, generator=random) for name in sorted(change)}
    return {name: change[name] * mask / density for name, mask in masks.items()}


def weighted_sum(every: Tensor, weights: Tensor) -> Tensor:
    """[n, ...], [n] -> [...]"""
    return torch.tensordot(weights, every, dims=1)


def disjoint_mean(every: Tensor, weights: Tensor) -> Tensor:
    """Elect each value's sign by the sum, then take the mean of those that have it. [n, ...], [n] -> [...]"""
    sign = every.sum(0).sign()
    agreeing = (every.sign() == sign) & (sign != 0)
    return weighted_sum(every * agreeing, weights) / agreeing.sum(0).clamp(min=1)


def is_plain_lora(adapter: Adapter) -> bool:
    """Its change is s B A and nothing else."""
    config = adapter[0]
    return config.get("peft_type") == "LORA" and not config.get("use_dora") and config.get("bias") == "none"


def concatenate(adapters: Sequence[Adapter], weights: Sequence[float]) -> Adapter | None:
    """The weighted sum of plain LoRAs as one LoRA with scale 1; None where its rank is above the width of a layer."""
    pairs: dict[str, list[tuple[Tensor, Tensor]]] = {}
    for (config, tensors), weight in zip(adapters, weights):
        for name in (x.removesuffix(".lora_A.weight") for x in tensors if x.endswith(".lora_A.weight")):
            a, b = tensors[f"{name}.lora_A.weight"], tensors[f"{name}.lora_B.weight"]
            scale = config["lora_alpha"] / (math.sqrt(len(a)) if config["use_rslora"] else len(a))
            pairs.setdefault(name, []).append((a, b * (weight * scale)))
    rank = max(sum(len(a) for a, _ in parts) for parts in pairs.values())
    made: dict[str, Tensor] = {}
    for name, parts in pairs.items():
        a, b = torch.cat([a for a, _ in parts]), torch.cat([b for _, b in parts], 1)  # [R, D_in], [D_out, R]
        if rank > max(a.shape[1], b.shape[0]):
            return None
        more = rank - len(a)  # a layer that not all of them changed
        made[f"{name}.lora_A.weight"] = torch.nn.functional.pad(a, (0, 0, 0, more))
        made[f"{name}.lora_B.weight"] = torch.nn.functional.pad(b, (0, more))
    first, *others = (config for config, _ in adapters)
    alike = all(config["target_modules"] == first["target_modules"] for config in others)
    targets = first["target_modules"] if alike else sorted(name.removeprefix("base_model.model.") for name in pairs)
    scale_one = {"r": rank, "lora_alpha": rank, "use_rslora": False, "rank_pattern": {}, "lora_dropout": 0.0}
    return {**first, **scale_one, "target_modules": targets}, made
