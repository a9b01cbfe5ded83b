"""A byte-level BPE tokenizer with new merges behind its own (data/vocabulary_extension/): where they begin, what of.

tokenizer_config.json says so, in two keys that transformers keeps and writes again.
"""

import copy
import json
from typing import Any

NUM_OWN, FIRST_NEW = "num_base_tokens", "first_new_token"
"""In tokenizer_config.json: how many tokens there were before merges came, and where the newest ones begin."""


def without_new_merges(tokenizer: Any) -> Any:
    """The tokenizer as it was before new merges came; itself, where none did."""
    first = tokenizer.init_kwargs.get(NUM_OWN)
    if first is None:
        return tokenizer
    state = json.loads(tokenizer.backend_tokenizer.to_str())
    model = state["model"]
    model["vocab"] = {token: i for token, i in model["vocab"].items() if i < first}
    pairs = ((x.split(" ", 1) if isinstance(x, str) else x, x) for x in model["merges"])
    model["merges"] = [x for pair, x in pairs if "".join(pair) in model["vocab"]]
    result = copy.deepcopy(tokenizer)
    result._tokenizer = type(tokenizer.backend_tokenizer).from_str(json.dumps(state))
    del result.init_kwargs[NUM_OWN], result.init_kwargs[FIRST_NEW]
    return result


def old_pieces(tokenizer: Any, first: int) -> list[list[int]]:
    """Of each token from an id on, the ids below that its merges put together, in order."""
    model = json.loads(tokenizer.backend_tokenizer.to_str())["model"]
    ids: dict[str, int] = model["vocab"]
    made_of: dict[int, list[int]] = {}
    for merge in model["merges"]:
        left, right = merge.split(" ", 1) if isinstance(merge, str) else merge
        if (token := ids[left + right]) >= first and token not in made_of:
            parts = ids[left], ids[right]
            made_of[token] = [x for part in parts for x in (made_of[part] if part >= first else [part])]
    return [made_of[i] for i in range(first, len(tokenizer))]
