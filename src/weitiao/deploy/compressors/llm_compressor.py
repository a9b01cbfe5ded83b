"""llm-compressor, as a command for an environment of its own: any of its schemes, calibrated on the Run's own rows.

    W4A16, W8A16          weights of 4 or 8 bits                 weitiao, vLLM and transformers open them
    W8A8, FP8_DYNAMIC     activations are rounded too, per token: for GPUs with such kernels, through vLLM

awq scales weights by how large their inputs are before they are rounded (Lin et al. 2023, "AWQ", arXiv 2306.00978, sec.
3.2). smoothquant moves outliers from activations to weights (Xiao et al. 2022, arXiv 2211.10438, eq. 4); only W8A8 needs
it.
"""

from typing import Literal

from weitiao.core.compressor import CommandCompressor, Subject
from weitiao.core.errors import ModelError
from weitiao.core.messages import Message
from weitiao.core.quantization import QuantizationScheme
from weitiao.deploy.compression.own_environment import script_files
from weitiao.deploy.compression.quantize_weights import check_groups, refuse_transposed

GROUP = 128  # of W4A16


class LLMCompressor(CommandCompressor):
    """Write the command that compresses with llm-compressor, in a scheme of its choice."""

    scheme: Literal["W4A16", "W8A16", "W8A8", "FP8_DYNAMIC"] = "W4A16"
    """Bits of weights and activations, by llm-compressor's name."""
    algorithm: Literal["awq", "gptq", "rtn", "smoothquant"] = "awq"
    """How weights are chosen: awq (needs a GPU), gptq, to the nearest (rtn), or smoothquant with gptq."""

    def files(self, subject: Subject, model: str, target: str) -> dict[str, str]:
        """The recipe, the script and its rows.

        Raises:
            ModelError: the scheme does not fit the model's layers, or the algorithm.
        """
        refuse_transposed(subject)
        if self.scheme == "W4A16":
            check_groups(subject, QuantizationScheme(4, GROUP))
        if self.algorithm == "smoothquant" and self.scheme != "W8A8":
            raise ModelError(
                "algorithm smoothquant is for scheme W8A8, which rounds activations; {scheme}", scheme=self.scheme
            )
        recipe = "quant_stage:\n  quant_modifiers:\n"
        if self.algorithm == "smoothquant":
            recipe += "    SmoothQuantModifier: {smoothing_strength: 0.8}\n"
        if self.algorithm == "awq":  # scales only; the modifier after it rounds
            recipe += "    AWQModifier: {}\n"
        name = "QuantizationModifier" if self.algorithm in ("awq", "rtn") else "GPTQModifier"
        recipe += f"    {name}:\n      targets: [Linear]\n      scheme: {self.scheme}\n      ignore: [lm_head]\n"
        title = Message("llm-compressor: {scheme} by {algorithm}", scheme=self.scheme, algorithm=self.algorithm)
        return script_files(subject, title, recipe, model, target)
