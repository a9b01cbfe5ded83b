"""Every optimizer by its class name: every file of train/optimizers/.

from weitiao.optimizers import AdamW

Recipe(..., train={"optimizer": AdamW(betas=(0.9, 0.99))})
"""

from typing import Any

from weitiao.core.namespace import class_names, find_class


def __getattr__(name: str) -> Any:
    return find_class("optimizer", name)


def __dir__() -> list[str]:
    return class_names("optimizer")
