"""Records that every JSON reader takes: JSON knows no NaN, and what was not measured is null."""

from typing import Any


def finite(value: Any) -> Any:
    """The same value with None for each number that is not finite.

    >>> finite({"low": float("nan"), "n": 3, "rows": [1.5, float("inf")]})
    {'low': None, 'n': 3, 'rows': [1.5, None]}
    """
    if isinstance(value, dict):
        return {key: finite(x) for key, x in value.items()}
    if isinstance(value, (list, tuple)):
        return [finite(x) for x in value]
    return None if isinstance(value, float) and not abs(value) < float("inf") else value
