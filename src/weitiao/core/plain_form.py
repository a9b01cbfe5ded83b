"""PlainForm: an objective's head as other libraries have it, so that a merged folder opens there with the same answers."""

from dataclasses import dataclass
from typing import Any, Literal

from torch import Tensor, nn

from weitiao.core.messages import Message

PlainTask = Literal["token_classification", "question_answering", "masked_lm", "scores", "pair_scores", "embedding"]


@dataclass(frozen=True)
class PlainForm:
    """One linear layer, or none, on a model's hidden states.

    token_classification   transformers' AutoModelForTokenClassification: [T, D] -> [T, C]
    question_answering     AutoModelForQuestionAnswering: [T, D] -> starts and ends [T, 2]
    masked_lm              AutoModelForMaskedLM: the head that the model's family has
    scores                 sentence-transformers' SentenceTransformer: one vector for the text -> C scores
    pair_scores            its CrossEncoder: one vector for a pair of texts -> C scores
    embedding              its SentenceTransformer: one vector for the text, of length 1
    """

    task: PlainTask
    head: str = ""
    """The name of the linear layer among the objective's heads; "": there is none."""
    labels: tuple[str, ...] = ()
    """The name of each output: a head that was trained for others is not reused."""
    problem_type: Literal["single_label_classification", "multi_label_classification", "regression"] | None = None
    pooling: Literal["mean", "first", "last"] | None = None
    """The vector of a text: the mean of its hidden states, the first or the last."""
    activation: Literal["Identity", "Softmax", "Sigmoid"] = "Identity"
    """torch.nn's, from scores to what is predicted."""
    scale: tuple[float, ...] = ()
    shift: tuple[float, ...] = ()
    """From the layer's outputs to the data's units: z scale + shift; (): the outputs are the scores."""
    obstacle: Message | None = None
    """Why other libraries cannot hold it."""

    def linear(self, heads: nn.ModuleDict) -> tuple[Tensor | None, Tensor | None]:
        """(weight [C, D], bias [C]) of the scores; None where there is none."""
        if not self.head:
            return None, None
        head: Any = heads[self.head]
        weight, bias = head.weight.detach(), head.bias
        if not self.scale:
            return weight, None if bias is None else bias.detach()
        scale, shift = weight.new_tensor(self.scale), weight.new_tensor(self.shift)
        return weight * scale[:, None], shift if bias is None else bias.detach() * scale + shift
