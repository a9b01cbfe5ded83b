"""Which type each tensor gets, and its bytes.

F32 .. Q5_1 are computed by the package `gguf` itself (numpy, bit-equal to llama.cpp's C). K-quants need libgguf. The mix of
Q4_K_M and Q5_K_M is llama.cpp's (src/llama-quant.cpp, llama_tensor_get_type_impl): more bits for values and
down-projections of the first and last eighth of the layers and every third between, Q6_K for the output.

A K-quant has blocks of 256 weights: rows of another width fall back to a type with blocks of 32, as llama.cpp does it.
"""

import importlib
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType, LlamaFileType, quants

from weitiao.core.errors import RecipeError
from weitiao.core.hardware import needs

Q = GGMLQuantizationType
FILE_TYPES: dict[str, tuple[LlamaFileType, Q]] = {
    "f32": (LlamaFileType.ALL_F32, Q.F32),
    "f16": (LlamaFileType.MOSTLY_F16, Q.F16),
    "bf16": (LlamaFileType.MOSTLY_BF16, Q.BF16),
    "q8_0": (LlamaFileType.MOSTLY_Q8_0, Q.Q8_0),
    "q5_1": (LlamaFileType.MOSTLY_Q5_1, Q.Q5_1),
    "q5_0": (LlamaFileType.MOSTLY_Q5_0, Q.Q5_0),
    "q4_1": (LlamaFileType.MOSTLY_Q4_1, Q.Q4_1),
    "q4_0": (LlamaFileType.MOSTLY_Q4_0, Q.Q4_0),
    "q6_k": (LlamaFileType.MOSTLY_Q6_K, Q.Q6_K),
    "q5_k_m": (LlamaFileType.MOSTLY_Q5_K_M, Q.Q5_K),
    "q4_k_m": (LlamaFileType.MOSTLY_Q4_K_M, Q.Q4_K),
}
K_QUANTS = (Q.Q4_K, Q.Q5_K, Q.Q6_K)
FALLBACK = {Q.Q4_K: Q.Q5_0, Q.Q5_K: Q.Q5_1, Q.Q6_K: Q.Q8_0}
CHUNK = 2**24  # weights that are quantized at a time
LARGE_MODEL_LAYERS = 80  # llama.cpp's LLM_TYPE_70B: 8 heads share one attn_v, which gets more bits


@dataclass
class QuantizationPlan:
    """Chooses the types of a model's tensors, and counts what was written."""

    name: str
    """A key of FILE_TYPES."""
    num_layers: int
    tied: bool
    """The embeddings are the output, too."""
    bytes: int = 0
    weights: int = 0
    types: Counter[str] = field(default_factory=Counter)
    """Tensors of each type."""
    fallbacks: int = 0
    """Tensors whose width does not fit the type that the mix gives them."""

    @classmethod
    def make(cls, name: str, num_layers: int, tied: bool) -> "QuantizationPlan":
        """
        Raises:
            RecipeError: there is no such type, or it needs a package that is missing.
        """
        if name not in FILE_TYPES:
            raise RecipeError("type: {name} is none of: {known}", name=name, known=", ".join(FILE_TYPES))
        if FILE_TYPES[name][1] in K_QUANTS:
            needs("libgguf", "gguf-k", f"GGUF {name}")
        return cls(name, num_layers, tied)

    @property
    def file_type(self) -> LlamaFileType:
        return FILE_TYPES[self.name][0]

    @property
    def bits(self) -> float:
        """Per weight, over the whole file."""
        return 8 * self.bytes / max(self.weights, 1)

    def type_of(self, name: str, shape: tuple[int, ...]) -> Q:
        """The type of a tensor.

        Args:
            name: llama.cpp's ("blk.0.attn_v.weight").
        """
        if len(shape) < 2 or not name.endswith(".weight") or name.endswith(("_norm.weight", "position_embd.weight")):
            return Q.F32
        chosen, width = self._mix(name, shape[-1]), shape[-1]
        block = GGML_QUANT_SIZES[chosen][0]
        if width % block:
            self.fallbacks += 1
            chosen = FALLBACK.get(chosen, Q.F16)
        return chosen if width % GGML_QUANT_SIZES[chosen][0] == 0 else Q.F16

    def _mix(self, name: str, width: int) -> Q:
        chosen = FILE_TYPES[self.name][1]
        if chosen in (Q.F32, Q.F16, Q.BF16, Q.Q8_0):
            return chosen
        if name == "output.weight" or (self.tied and name == "token_embd.weight"):
            # llama.cpp takes Q6_K for Q4_0 .. Q5_1, too; Q8_0 needs no other package
            return Q.Q6_K if chosen in K_QUANTS and width % 256 == 0 else Q.Q8_0
        if self.name not in ("q4_k_m", "q5_k_m"):
            return chosen
        if "attn_qkv.weight" in name:
            return Q.Q5_K if chosen == Q.Q4_K else Q.Q6_K
        if "attn_v.weight" in name or "ffn_down" in name:
            if self._has_more_bits(int(name.split(".")[1])):
                return Q.Q6_K
            if "attn_v" in name and self.num_layers == LARGE_MODEL_LAYERS and chosen == Q.Q4_K:
                return Q.Q5_K
        return chosen

    def _has_more_bits(self, layer: int) -> bool:
        n = self.num_layers
        return layer < n // 8 or layer >= 7 * n // 8 or (layer - n // 8) % 3 == 2

    def count(self, data: np.ndarray, chosen: Q, weights: int) -> None:
        """Note a tensor that was written."""
        self.bytes += data.nbytes
        self.weights += weights
        self.types[chosen.name] += 1


def quantize(data: np.ndarray, chosen: Q) -> np.ndarray:
    """A tensor's bytes; of F32 and F16, numbers.

    Args:
        data: fp32.
    """
    if chosen not in K_QUANTS:
        return quants.quantize(data, chosen)
    libgguf: Any = importlib.import_module("libgguf")
    rows = data.reshape(-1, data.shape[-1])
    step = max(1, CHUNK // rows.shape[1])
    pieces = [libgguf.quantize_rows(rows[i : i + step], int(chosen)) for i in range(0, len(rows), step)]
    return np.concatenate(pieces).reshape(*data.shape[:-1], -1)
