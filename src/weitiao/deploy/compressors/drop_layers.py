"""Dropping whole layers: those that change the hidden states least on real rows are left out.

angular     a block of n neighbouring layers, l* = argmin_l d(x_l, x_{l+n}), d = arccos(cos) / pi at each row's last token
            Gromov et al. 2024, "The Unreasonable Ineffectiveness of the Deeper Layers", arXiv 2403.17887, sec. 3.2, eq. 4
influence   the n layers with the lowest BI_l = 1 - E_t[cos(x_{l,t}, x_{l+1,t})], over all tokens
            Men et al. 2024, "ShortGPT", arXiv 2403.03853, sec. 2.2, eq. 1

x_l are the states before layer l. The model is smaller and faster everywhere, with any reader, and answers worse: heal it.
"""

import re
from typing import Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from weitiao.core.compressor import Compression, Subject, WeightCompressor
from weitiao.core.errors import ModelError
from weitiao.core.messages import Message
from weitiao.deploy.compression.activations import state_cosines

COUNTS = ("num_hidden_layers", "n_layer", "n_layers", "num_layers")  # what configs call the number of layers
PER_LAYER = ("layer_types", "no_rope_layers", "mlp_layer_types")  # lists with an entry for each layer


class DropLayers(WeightCompressor):
    """Leave out the layers that change the hidden states least."""

    result: ClassVar[str] = "pruned"
    reads_rows: ClassVar[bool] = True
    decoders_only: ClassVar[bool] = True

    num_layers: int | None = Field(default=None, ge=1)
    """How many layers are left out; null: a fifth of them."""
    by: Literal["angular", "influence"] = "angular"
    """angular: a block of neighbouring layers; influence: single layers, wherever they are."""
    rows: int = Field(default=128, ge=1)
    """How many rows of the Run it is calibrated on."""

    def plan(self, subject: Subject) -> Compression:
        """Measure, choose, and renumber the rest."""
        model: Any = subject.open()
        prefix, layers = layer_list(model)
        total, key = len(layers), next((x for x in COUNTS if x in subject.config), None)
        n = self.num_layers or max(1, total // 5)
        if key is None or n >= total:
            raise ModelError(
                "method drop_layers: {n} of {total} layers cannot be left out (num_layers=1 to {most})",
                n=n,
                total=total,
                most=total - 1,
            )
        angles, cosines = state_cosines(subject, list(layers), model)
        chosen = most_similar_block(angles, n) if self.by == "angular" else least_influential(cosines, n)
        remaining = [i for i in range(total) if i not in chosen]
        config: dict[str, Any] = {key: len(remaining)}
        config |= {
            x: [subject.config[x][i] for i in remaining] for x in PER_LAYER if isinstance(subject.config.get(x), list)
        }
        config |= {"max_window_layers": len(remaining)} if "max_window_layers" in subject.config else {}
        note = Message(
            "layers {layers} of {total} (from 0) are left out, chosen by {by} on {rows:,} rows",
            layers=", ".join(map(str, sorted(chosen))),
            total=total,
            by=self.by,
            rows=len(subject.rows),
        )
        numbers = {old: new for new, old in enumerate(remaining)}
        return Compression(lambda name, tensor: renumbered(prefix, numbers, name, tensor), config, [note])


def layer_list(model: nn.Module) -> tuple[str, nn.ModuleList]:
    """The list of the model's layers, with its name: the longest list of modules.

    Raises:
        ModelError: there is none.
    """
    lists = [(name, x) for name, x in model.named_modules() if isinstance(x, nn.ModuleList)]
    if not lists:
        raise ModelError("{model} has no list of layers that could be left out", model=type(model).__name__)
    return max(lists, key=lambda x: len(x[1]))


def most_similar_block(angles: Tensor, n: int) -> set[int]:
    """The n neighbouring layers whose input and output are closest; the first of equals."""
    distances = torch.stack([angles[i, i + n] for i in range(len(angles) - n)])
    first = int(distances.argmin())
    return set(range(first, first + n))


def least_influential(cosines: Tensor, n: int) -> set[int]:
    """The n layers whose output is closest to their input."""
    influence = 1 - torch.stack([cosines[i, i + 1] for i in range(len(cosines) - 1)])
    return set(influence.sort(stable=True).indices[:n].tolist())


def renumbered(prefix: str, numbers: dict[int, int], name: str, tensor: Tensor) -> dict[str, Tensor]:
    """A tensor under the new number of its layer; {}: its layer is left out."""
    match = re.match(rf"{re.escape(prefix)}\.(\d+)\.(.*)", name)
    if match is None:
        return {name: tensor}
    number = numbers.get(int(match[1]))
    return {} if number is None else {f"{prefix}.{number}.{match[2]}": tensor}
