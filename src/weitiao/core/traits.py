"""Traits: what is known of an objective before any data are read or a model is loaded."""

from dataclasses import dataclass

from weitiao.core.messages import Message

CLASS_METRICS = tuple(
    f"{kind}_{average}" for kind in ("f1", "precision", "recall") for average in ("micro", "macro", "weighted")
)
"""What any objective that predicts classes can be measured with besides."""
PROBABILITY_METRICS = ("auroc", "average_precision", "ece")


@dataclass(frozen=True)
class Traits:
    """What an objective needs and can do; `plan`, `pipeline`, `train` and `evaluate` read it."""

    example_type: type
    """The kind of Example that it trains on."""
    generative: bool = True
    """It needs a model with a language-model head; False: an encoder-only model will do."""
    needs_encoder_decoder: bool = False
    """It needs a model with an encoder and a decoder (T5, BART, Whisper)."""
    needs_mlm_head: bool = False
    """It needs an encoder-only model, and gets its masked-LM head as the head `MASKED`."""
    has_predict: bool = False
    """It is generative and yet answers by `predict`: one of a closed set, or what a decoder generates from a source."""
    has_log_probs: bool = False
    """It has `log_probs`: a distribution over choices, which regularizers compare."""
    is_nll: bool = False
    """Its loss is the negative log-likelihood of the labels, so the pre-flight can recompute it."""
    batch_coupled: bool = False
    """The loss of one row depends on the other rows of its batch: such batches are never split."""
    dynamic_masking: bool = False
    """Each step replaces other tokens of a row."""
    repacks_segments: bool = False
    """Repacks each row's texts into segments of their own; the map from tokens to rows is lost."""
    ranks_together: bool = False
    """Its metrics compare all predictions together (retrieval), so all of them are kept until the end."""
    splittable: bool = False
    """A row may be trained on in pieces: each token has a label of its own."""
    step: str = "accumulate"
    """The file in train/steps/ that computes its gradients."""
    overlong: str = "error"
    """What `overlong: auto` means; "each": what each task's own objective does."""
    overlong_reason: Message = Message("")
    """Why."""
    metrics: tuple[str, ...] = ("loss", "perplexity")
    """The metrics when the recipe names none."""
    optional_metrics: tuple[str, ...] = ()
    """Metrics that a recipe may name besides."""
