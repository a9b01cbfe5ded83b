"""Chooses how a decoder generates, by how its backbone runs.

hand-written block          packed new tokens of all rows, cached attention                      (block_forward.py)
transformers                a padded batch, whose rows join and leave between steps              (padded_forward.py)
transformers, no such cache whole rows again for each token: state-space models, and others      (uncached_forward.py)
"""

from functools import partial

from weitiao.core.engine import Engine
from weitiao.core.finding import Decision
from weitiao.core.messages import Message
from weitiao.core.trainable_model import TrainableModel
from weitiao.model.backbone.block_backbone import BlockBackbone
from weitiao.model.generation import grammar
from weitiao.model.generation.block_forward import BlockForward
from weitiao.model.generation.constraint import GrammarCompiler
from weitiao.model.generation.forward import CachedForward
from weitiao.model.generation.padded_forward import PaddedForward, padding_error
from weitiao.model.generation.slot_engine import SlotEngine
from weitiao.model.generation.uncached_forward import UncachedForward
from weitiao.model.kernels.generation import generation_kernels

KEY = "inference.engine"
TOLERANCE = 1e-3  # of the largest logit, on a probe in the model's own precision


def make_engine(
    model: TrainableModel, max_length: int | None = None, compile_grammar: GrammarCompiler | None = None
) -> Engine:
    """The engine of a decoder.

    Args:
        max_length: the most tokens of a prompt with its answer; default: as many as there are positions for.
    """
    return choose_engine(model, max_length, compile_grammar)[0]


def choose_engine(
    model: TrainableModel, max_length: int | None = None, compile_grammar: GrammarCompiler | None = None
) -> tuple[SlotEngine, Decision]:
    """The engine of a decoder, and why this one."""
    forward, decision = choose_forward(model)
    engine = SlotEngine(
        forward,
        model.processor,
        model.architecture.num_positions if max_length is None else max_length,
        virtual_tokens=model.attachment.virtual_tokens,
        check_adapter=lambda name: _check_adapter(model, name),
        adapter_version=lambda name: model.attachment.adapter_version(name),
        compile_grammar=compile_grammar or partial(grammar.compile_grammar, stop_ids=model.processor.stop_ids),
    )
    return engine, decision


def choose_forward(model: TrainableModel) -> tuple[CachedForward, Decision]:
    """How the model runs with cached keys and values, and why."""
    if isinstance(model.backbone, BlockBackbone):
        reason = Message("the hand-written block runs with a cache; few rows by compiled kernels")
        if generation_kernels() is None:
            reason = Message("the hand-written block runs with a cache; in pure torch, as there are no compiled kernels")
        return BlockForward(model), Decision(KEY, "block", reason)
    family = model.architecture.model_type
    error = padding_error(model)
    if error <= TOLERANCE:
        reason = Message(
            "there is no hand-written block for {family}: transformers runs a padded batch, which is slower", family=family
        )
        return PaddedForward(model), Decision(KEY, "padded", reason)
    reason = Message(
        "transformers' cache of {family} cannot hold a padded batch: each token runs its whole row, which is slow",
        family=family,
    )
    return UncachedForward(model), Decision(KEY, "uncached", reason)


def _check_adapter(model: TrainableModel, name: str) -> None:
    """
    Raises:
        ModelError: there is no such adapter.
    """
    if name and model.attachment.select_adapter is not None:
        with model.attachment.adapters_by_row([name]):
            pass
