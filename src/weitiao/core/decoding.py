"""How answers are decoded: every setting, written out. Nothing is inherited from a model's generation_config.json, whose
penalties, beams and temperatures would be measured with the model.

Kept are only the tokens that a model cannot do without: where a decoder starts, the language that it must begin with
(mBART, NLLB), and what a speech model never transcribes (Whisper's suppressed tokens).
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from transformers import GenerationConfig

from weitiao.core.finding import Decision
from weitiao.core.messages import Message, joined
from weitiao.core.trainable_model import TrainableModel

GREEDY: dict[str, Any] = {
    "do_sample": False, "num_beams": 1, "num_beam_groups": 1, "diversity_penalty": 0.0, "length_penalty": 1.0,
    "early_stopping": False, "num_return_sequences": 1, "repetition_penalty": 1.0, "encoder_repetition_penalty": 1.0,
    "no_repeat_ngram_size": 0, "encoder_no_repeat_ngram_size": 0, "min_length": 0, "min_new_tokens": None,
    "bad_words_ids": None, "sequence_bias": None, "force_words_ids": None, "constraints": None, "forced_bos_token_id": None,
    "forced_eos_token_id": None, "forced_decoder_ids": None, "suppress_tokens": None, "begin_suppress_tokens": None,
    "exponential_decay_length_penalty": None, "guidance_scale": None, "penalty_alpha": None, "renormalize_logits": False,
    "remove_invalid_values": False, "prompt_lookup_num_tokens": None, "dola_layers": None, "stop_strings": None,
    "max_time": None, "token_healing": False, "watermarking_config": None,
}  # fmt: skip
SAMPLING = {
    "temperature": 1.0, "top_k": 0, "top_p": 1.0, "min_p": None, "top_h": None, "typical_p": 1.0, "epsilon_cutoff": 0.0,
    "eta_cutoff": 0.0,
}  # fmt: skip
SUPPRESSED = ("suppress_tokens", "begin_suppress_tokens")


def needed_tokens(model: TrainableModel) -> dict[str, Any]:
    """What a model cannot generate without, from its own settings."""
    own = _own_config(model)
    needed = {key: getattr(own, key, None) for key in (*SUPPRESSED, "bos_token_id", "pad_token_id")}
    needed["decoder_start_token_id"] = getattr(own, "decoder_start_token_id", None)
    if needed["decoder_start_token_id"] is None:
        needed["decoder_start_token_id"] = model.architecture.decoder_start_id
    first = getattr(own, "forced_bos_token_id", None)
    if first is not None and first not in (own.bos_token_id, own.pad_token_id, *model.processor.stop_ids):
        needed["forced_bos_token_id"] = first  # a language's code; a plain BOS is in the targets that are trained on
    return {key: value for key, value in needed.items() if value is not None}


@contextmanager
def decoding_with(model: TrainableModel, stop_ids: Sequence[int], **settings: Any) -> Iterator[None]:
    """Inside, the transformers model generates with these settings and no others."""
    neutral = GREEDY | SAMPLING if settings.get("do_sample") else GREEDY
    supported = vars(GenerationConfig())
    values = {key: value for key, value in neutral.items() if key in supported} | {"pad_token_id": stop_ids[0]}
    values |= {**needed_tokens(model), "eos_token_id": list(stop_ids), **settings}
    transformers_model: Any = model.model
    before = transformers_model.generation_config
    transformers_model.generation_config = GenerationConfig(**values)
    try:
        yield
    finally:
        transformers_model.generation_config = before


def ignored_settings(model: TrainableModel) -> dict[str, Any]:
    """Settings of the model's generation_config.json that would change its answers, and are not used."""
    own, needed = _own_config(model), needed_tokens(model)
    neutral = GREEDY | (SAMPLING if own.do_sample else {})
    values = {key: getattr(own, key, None) for key in neutral if key not in needed}
    return {key: x for key, x in values.items() if x is not None and x != neutral[key]}


def decoding_decision(model: TrainableModel, max_new_tokens: int, num_beams: int = 1) -> Decision:
    """The settings in force when answers are measured, and what of the model's own is not used."""
    needed = {key: x for key, x in needed_tokens(model).items() if key in (*SUPPRESSED, "forced_bos_token_id")}
    in_force = {**{key: x for key, x in GREEDY.items() if x is not None}, **needed}
    values = {**in_force, "max_new_tokens": max_new_tokens, "num_beams": num_beams}
    ignored = ignored_settings(model)
    reason = Message("what is measured is the model alone")
    if ignored:
        listed = ", ".join(f"{key}: {value}" for key, value in sorted(ignored.items()))
        template = Message("not used of the base's generation_config.json: {settings}", settings=listed)
        reason = joined("; ", [reason, template])
    return Decision("evaluate.decoding", {key: values[key] for key in sorted(values)}, reason)


def _own_config(model: TrainableModel) -> GenerationConfig:
    return model.model.generation_config  # pyright: ignore[reportReturnType]
