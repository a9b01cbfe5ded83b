"""Every method by its class name: every file of model/methods/.

from weitiao.methods import LoRA

Recipe(..., method=LoRA(rank=32))
"""

from typing import Any

from weitiao.core.namespace import class_names, find_class


def __getattr__(name: str) -> Any:
    return find_class("method", name)


def __dir__() -> list[str]:
    return class_names("method")
