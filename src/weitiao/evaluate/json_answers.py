"""Answers that are to be JSON."""

import json
from typing import Any


def parsed(text: str) -> Any:
    """The value of a JSON text (RFC 8259: no NaN, no Infinity).

    Raises:
        ValueError: it is not JSON.
        RecursionError: it is nested too deeply.
    """
    return json.loads(text, parse_constant=_refuse)


def _refuse(name: str) -> None:
    raise ValueError(f"{name} is not JSON")
