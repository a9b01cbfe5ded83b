"""What methods and objectives need to be told in order to run on a tiny model."""

from pathlib import Path
from typing import Any

from support.runs import finished_run

METHOD_SETTINGS = {
    "bitfit": {"add_missing": True},
    "peft": {"config": "LoHa"},
}  # what a method is asked for on a tiny Llama
VARIANTS = {"lora_pissa": ("lora", {"init": "pissa"}), "qlora_8bit": ("qlora", {"bits": 8})}  # laws hold these too
OBJECTIVE_SETTINGS = {  # what an objective must be told, or is told so that tests are quick
    "multi_task": {"tasks": {"kind": "classification", "number": "regression"}},
    "seq2seq": {"max_new_tokens": 8},
}


def make_objective(objective: str) -> Any:
    """An objective with its defaults, and with what it must be told."""
    from weitiao.core.registry import find

    return find("objective", objective)(**OBJECTIVE_SETTINGS.get(objective, {}))


def method_settings(method: str, base: Path | str = "llama") -> dict[str, Any]:
    """What a method must be told on a tiny model."""
    return {"forget_run": finished_run(base)} if method == "f_learning" else METHOD_SETTINGS.get(method, {})


def method_config(method: str, base: Path | str = "llama", **more: Any) -> str | dict[str, Any]:
    """A method, or a variant of one, as tests write it into a recipe."""
    name, variant = VARIANTS.get(method, (method, {}))
    settings = {**method_settings(method, base), **variant, **more}
    return {"name": name, **settings} if settings else name
