"""GPTQ, as a command for an environment of its own: weights are rounded one input at a time, and the rest make up for it.

Frantar et al. 2022, "GPTQ: Accurate Post-Training Quantization for Generative Pre-trained Transformers", arXiv 2210.17323,
sec. 3, eq. 2 and algorithm 1. Run by llm-compressor (GPTQModifier), on the Run's own rows. The result is in the format of
compressed-tensors: weitiao, vLLM and transformers open it.
"""

from typing import Literal

from pydantic import Field

from weitiao.core.compressor import CommandCompressor, Subject
from weitiao.core.messages import Message
from weitiao.core.quantization import QuantizationScheme
from weitiao.deploy.compression.own_environment import script_files
from weitiao.deploy.compression.quantize_weights import check_groups, refuse_transposed


class GPTQ(CommandCompressor):
    """Write the command that rounds weights with GPTQ, which makes up for each rounding in the weights still to come."""

    bits: Literal[4, 8] = 4
    """Bits per weight."""
    group_size: Literal[32, 64, 128] = 32
    """Neighbouring inputs that share a scale."""
    dampening: float = Field(default=0.01, gt=0, lt=1)
    """Added to the diagonal of the Hessian, as a fraction of its mean (sec. 3.3)."""

    def files(self, subject: Subject, model: str, target: str) -> dict[str, str]:
        """The recipe, the script and its rows."""
        refuse_transposed(subject)
        check_groups(subject, QuantizationScheme(self.bits, self.group_size))
        recipe = RECIPE.format(bits=self.bits, group=self.group_size, dampening=self.dampening)
        title = Message("GPTQ, {bits} bits in groups of {group}", bits=self.bits, group=self.group_size)
        return script_files(subject, title, recipe, model, target)


RECIPE = """\
quant_stage:
  quant_modifiers:
    GPTQModifier:
      ignore: [lm_head]
      dampening_frac: {dampening}
      config_groups:
        group_0:
          targets: [Linear]
          weights: {{num_bits: {bits}, type: int, symmetric: true, strategy: group, group_size: {group}}}
"""
