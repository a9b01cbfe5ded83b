"""Every objective by its class name: every file of objective/objectives/.

from weitiao.objectives import Classification

Recipe(..., objective=Classification(multi_label=True))
"""

from typing import Any

from weitiao.core.namespace import class_names, find_class


def __getattr__(name: str) -> Any:
    return find_class("objective", name)


def __dir__() -> list[str]:
    return class_names("objective")
