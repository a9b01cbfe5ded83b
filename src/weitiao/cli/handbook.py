"""The handbook: the recipe's JSON Schema, and the help of every key and component, as a file in the wheel.

`weitiao schema` and `weitiao explain` read it and need no torch. It is generated from the fields themselves; a test checks
that it is up to date:

    python -m weitiao.cli.handbook        write cli/handbook.json
"""

import json
from functools import cache
from pathlib import Path
from typing import Any, TypedDict

FILE = Path(__file__).with_name("handbook.json")


class Entry(TypedDict):
    """One recipe key or setting."""

    default: str
    help: str


class Part(TypedDict):
    """One component: a method, an objective, an optimizer ..."""

    kind: str
    help: str
    settings: dict[str, Entry]


class Handbook(TypedDict):
    schema: dict[str, Any]
    keys: dict[str, Entry]
    parts: dict[str, Part]


@cache
def read() -> Handbook:
    """The handbook as it was generated."""
    return json.loads(FILE.read_text(encoding="utf-8"))


def build() -> Handbook:
    """The handbook of the code as it is; imports every component, and torch."""
    from weitiao.core.recipe import Recipe
    from weitiao.core.recipe_errors import SECTIONS
    from weitiao.core.registry import find, names

    same_as_data = ("validation", "evaluate.data", "evaluate.corpus", "vocabulary.data")
    sections = {"": Recipe, **{key: x for key, x in SECTIONS.items() if key not in same_as_data}}
    fields = [(section, name, x) for section, cls in sections.items() for name, x in cls.model_fields.items()]
    keys = {f"{section}.{name}".strip("."): _entry(x) for section, name, x in fields}
    for key, section in sections.items():
        if key:
            keys[key]["help"] = keys[key]["help"] or _first_sentence(section)
    parts: dict[str, Part] = {}
    for kind in ("method", "objective", "regularizer", "optimizer", "clip", "metric", "compressor", "cleaner"):
        for name in names(kind):
            part = find(kind, name)
            settings = {key: _entry(field) for key, field in part.model_fields.items()}
            parts[name] = {"kind": kind, "help": (part.__doc__ or "").strip(), "settings": settings}
    return {"schema": _with_stages(Recipe.model_json_schema()), "keys": keys, "parts": parts}


def _with_stages(schema: dict[str, Any]) -> dict[str, Any]:
    """A recipe's schema that also takes `stages` (multirun/stages.py): keys beside them apply to all."""
    from weitiao.core.messages import Message
    from weitiao.multirun.stages import FOLLOWS, HANDOVERS

    own = {key: {"$ref": f"#/properties/{key}"} for key in schema["properties"] if key not in FOLLOWS - {"base"}}
    stage = {
        "name": {"type": "string", "description": Message("Of the stage, and of its folder.").template},
        "handover": {
            "enum": list(HANDOVERS),
            "default": HANDOVERS[0],
            "description": Message(
                "How it takes over the result of the stage before: merged into the base, or trained on."
            ).template,
        },
        **own,
    }
    stages = {
        "type": "array",
        "minItems": 1,
        "items": {"type": "object", "properties": stage, "additionalProperties": False},
        "description": Message(
            "Trainings in a row, each from the result of the one before. Keys beside it apply to all."
        ).template,
    }
    required = [{"required": schema.pop("required")}, {"required": ["out", "stages"]}]
    return {**schema, "properties": {**schema["properties"], "stages": stages}, "anyOf": required}


def _entry(field: Any) -> Entry:
    return {"default": _default(field), "help": field.description or ""}


def _default(field: Any) -> str:
    from weitiao.core.registry import Component, Settings

    if field.is_required():
        return "(required)"
    value = field.get_default(call_default_factory=True)
    if isinstance(value, Component):
        return value.name
    return "" if isinstance(value, Settings) else "null" if value is None else str(value)


def _first_sentence(section: type) -> str:
    return (section.__doc__ or "").strip().partition("\n\n")[0]


def as_text(handbook: Handbook) -> str:
    return json.dumps(handbook, indent=1, ensure_ascii=False) + "\n"


if __name__ == "__main__":
    FILE.write_text(as_text(build()), encoding="utf-8")
