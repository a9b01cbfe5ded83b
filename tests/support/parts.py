"""Methods and objectives with the settings that they need on a tiny model."""

from pathlib import Path
from typing import Any

from support.runs import finished_run

METHOD_SETTINGS = {
    "bitfit": {"add_missing": True},
    "peft": {"config": "LoHa"},
}  # required on a tiny Llama
VARIANTS = {
    "lora_pissa": ("lora", {"init": "pissa"}),
    "qlora_8bit": ("qlora", {"bits": 8}),
}  # tested as methods of their own
OBJECTIVE_SETTINGS = {  # required, or quicker
    "multi_task": {"tasks": {"kind": "classification", "number": "regression"}},
    "seq2seq": {"max_new_tokens": 8},
}


def make_objective(objective: str) -> Any:
    """An objective with its defaults and the settings above."""
    from weitiao.core.registry import find

    return find("objective", objective)(**OBJECTIVE_SETTINGS.get(objective, {}))


def method_settings(method: str, base: Path | str = "llama") -> dict[str, Any]:
    """The settings that a method needs on a tiny model."""
    return {"forget_run": finished_run(base)} if method == "f_learning" else METHOD_SETTINGS.get(method, {})


def method_config(method: str, base: Path | str = "llama", **changes: Any) -> str | dict[str, Any]:
    """A method or a variant of one, as written in a recipe."""
    name, variant = VARIANTS.get(method, (method, {}))
    settings = {**method_settings(method, base), **variant, **changes}
    return {"name": name, **settings} if settings else name
