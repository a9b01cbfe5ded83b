"""Components under their class names: what `from weitiao.methods import LoRA` finds, by listing the folder."""

from typing import Any

from weitiao.core.registry import find, names, nearest


def find_class(kind: str, class_name: str) -> Any:
    """The class of a kind by its name; only its own file is imported.

    >>> find_class("optimizer", "AdamW").__name__
    'AdamW'

    Raises:
        AttributeError: there is no such class; the message names the nearest.
    """
    if class_name.startswith("__"):
        raise AttributeError(class_name)
    for name in names(kind):
        if name.replace("_", "") == class_name.lower() and find(kind, name).__name__ == class_name:
            return find(kind, name)
    classes = class_names(kind)
    raise AttributeError(
        f"there is no {kind} {class_name!r}.{nearest(class_name, classes)} There are: {', '.join(classes)}"
    )


def class_names(kind: str) -> list[str]:
    """The class of every file of the folder."""
    return [find(kind, name).__name__ for name in names(kind)]
