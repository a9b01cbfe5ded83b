"""What several models are called, and what says that one is the same as before, so that it need not answer again."""

import hashlib
import json
import re
from collections.abc import Sequence
from pathlib import Path

from weitiao.core.errors import DataError
from weitiao.pipeline.exams import model_fingerprint
from weitiao.pipeline.inference import Model

UNSAFE = re.compile(r"[^\w.-]+")  # in the name of a file


def name_targets(targets: Sequence[str]) -> list[tuple[str, str]]:
    """A name for each, different from the others'.

    >>> name_targets(["runs/a", "old/a", "new=runs/b"])
    [('a', 'runs/a'), ('a-2', 'old/a'), ('new', 'runs/b')]

    Raises:
        DataError: there are fewer than two, or two have one name.
    """
    if len(targets) < 2:
        raise DataError("give two or more models: the first is the one that the others are compared with")
    named: dict[str, str] = {}
    for text in targets:
        own, _, target = text.rpartition("=")
        if own and own in named:
            raise DataError("two models are called {name}", name=own)
        base = UNSAFE.sub("-", own or Path(target).name.removesuffix(".json") or target).strip("-") or "model"
        name = next(x for x in (base, *(f"{base}-{i}" for i in range(2, 1000))) if x not in named)
        named[name] = target
    return list(named.items())


def model_identity(model: Model) -> str:
    """Changes when its weights, its tokenizer, its chat template or its system message do."""
    return hashed(json.dumps([model_fingerprint(model.model), model.assets.identity, model.assets.system]))


def hashed(text: str) -> str:
    """Sixteen hex digits."""
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:16]
