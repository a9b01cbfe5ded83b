"""What makes a saved model stop elsewhere: the ids of its stop tokens in every file where other tools look for them.

generation_config.json   eos_token_id, pad_token_id     transformers' `generate`, vLLM
config.json              eos_token_id, pad_token_id     older tools
tokenizer_config.json    eos_token, pad_token           llama.cpp's converter, servers, trainers
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase

GREEDY: dict[str, Any] = {
    "do_sample": False, "num_beams": 1, "repetition_penalty": 1.0, "no_repeat_ngram_size": 0, "min_length": 0,
}  # fmt: skip
SAMPLING: dict[str, Any] = {"temperature": 1.0, "top_p": 1.0, "top_k": 50, "min_p": None}


def set_stop_tokens(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    stop_ids: Sequence[int],
    is_decoder: bool = True,
    ends_turns: bool = False,
) -> None:
    """Make plain transformers stop where weitiao does, before model and tokenizer are saved.

    Args:
        stop_ids: that end an answer.
        is_decoder: prompts of a batch are padded on the left.
        ends_turns: the first of them ends an assistant's turn, and so is the tokenizer's eos_token.
    """
    settings: Any = model.generation_config
    config: Any = model.config
    eos = eos_token_id(stop_ids)
    settings._from_model_config = False  # or they would be made of config.json again
    pad: Any = next((x for x in (settings.pad_token_id, tokenizer.pad_token_id) if x is not None), stop_ids[-1])
    for target in (settings, config):
        target.eos_token_id, target.pad_token_id = eos, pad
    settings.forced_eos_token_id = None  # BART's, at the length limit: an answer that is cut off would look ended
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.convert_ids_to_tokens(pad)
    if is_decoder:
        tokenizer.padding_side = tokenizer.init_kwargs["padding_side"] = "left"  # init_kwargs are what is saved
    if ends_turns and "eos_token" not in str(tokenizer.chat_template):  # such a template would change
        tokenizer.eos_token = tokenizer.convert_ids_to_tokens(stop_ids[0])


def other_settings(settings: Any) -> dict[str, Any]:
    """What the base's generation config has that changes greedy answers: it is kept, as its authors recommend it."""
    neutral = GREEDY | (SAMPLING if settings.do_sample else {})
    values = {key: getattr(settings, key, None) for key in neutral}
    return {key: x for key, x in values.items() if x is not None and x != neutral[key]}


def set_encoding(
    tokenizer: PreTrainedTokenizerBase, config: Any, stop_ids: Sequence[int], max_length: int | None, literal: bool
) -> None:
    """Make a tokenizer pad, truncate and encode pairs as in training, before it is saved next to a model with a head.

    Args:
        max_length: the most tokens that the model takes.
        literal: special tokens that a text spells are text.
    """
    tokenizer.split_special_tokens = tokenizer.init_kwargs["split_special_tokens"] = literal
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.convert_ids_to_tokens(stop_ids[-1])
    config.pad_token_id = tokenizer.pad_token_id
    if max_length is not None and tokenizer.model_max_length > max_length:
        tokenizer.model_max_length = tokenizer.init_kwargs["model_max_length"] = max_length
    names = [x for x in tokenizer.model_input_names if x != "token_type_ids"]  # both texts of a pair have type 0 here
    tokenizer.model_input_names = tokenizer.init_kwargs["model_input_names"] = names


def eos_token_id(stop_ids: Sequence[int]) -> int | list[int]:
    """As transformers writes it: a number, or several."""
    return stop_ids[0] if len(stop_ids) == 1 else list(stop_ids)


def write_generation_config(folder: Path, settings: GenerationConfig, stop_ids: Sequence[int]) -> None:
    """generation_config.json next to an adapter: the base model's does not stop where the adapter's answers end."""
    own = GenerationConfig.from_dict({**settings.to_dict(), "eos_token_id": eos_token_id(stop_ids)})
    own.save_pretrained(folder)
