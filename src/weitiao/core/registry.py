"""A folder is the registry, and a file's name is the component's name. There is no table to edit.

    find(Method, "lora")            the class LoRA, typed as a Method
    create(Method, "lora", rank=8)  an instance of it
    find_module(Reader, "csv")      a file of functions, typed by its Protocol
    names(Metric)                   every file of evaluate/metrics/

A kind is given by its contract class, or by that class's name in lower case ("method") where importing the class would
import torch.
"""

import difflib
import importlib
import pkgutil
import traceback
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any, ClassVar, TypeVar, get_args, overload

from pydantic import BaseModel, ConfigDict, ValidationInfo, field_validator

from weitiao.core.errors import InvalidValue, RecipeError
from weitiao.core.messages import Message
from weitiao.core.renamed import RENAMED_COMPONENTS

FOLDERS = {
    "reader": "weitiao.data.readers",
    "mapping": "weitiao.data.mappings",
    "cleaner": "weitiao.data.cleaners",
    "identifier": "weitiao.data.personal_data.identifiers",
    "block": "weitiao.model.backbone.blocks",
    "method": "weitiao.model.methods",
    "objective": "weitiao.objective.objectives",
    "regularizer": "weitiao.objective.regularizers",
    "optimizer": "weitiao.train.optimizers",
    "clip": "weitiao.train.stability.clips",
    "step": "weitiao.train.steps",
    "metric": "weitiao.evaluate.metrics",
    "factsource": "weitiao.evaluate.facts",
    "format": "weitiao.deploy.formats",
    "opener": "weitiao.deploy.openers",
    "compressor": "weitiao.deploy.compressors",
}


class Settings(BaseModel):
    """A frozen set of settings. Unknown keys are refused; the docstring under a field is its help."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", use_attribute_docstrings=True, validate_default=True, allow_inf_nan=False
    )

    @field_validator("*", mode="before")
    @classmethod
    def _true_is_no_number(cls, value: Any, field: ValidationInfo) -> Any:
        if isinstance(value, bool) and _is_number(cls.model_fields[str(field.field_name)].annotation):
            raise InvalidValue("expected a number, not {value}", value=str(value).lower())
        return value


def _is_number(annotation: Any) -> bool:
    """Whether a field takes numbers and no true or false, which pydantic would read as 1 and 0."""
    types = {annotation, *get_args(annotation)}
    types |= {x for y in types for x in get_args(y)}
    return bool(types & {int, float}) and not types & {bool, str}


class Component(Settings):
    """The settings of a method, an objective, an optimizer, a metric ...: one class in one file of its kind's folder."""

    name: ClassVar[str] = ""
    """The file's name, which is what a recipe writes."""

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        cls.name = cls.__module__.rpartition(".")[2]

    @classmethod
    def scope(cls) -> str:
        """Kind and name: "method.lora"."""
        folder = cls.__module__.rpartition(".")[0]
        return next((f"{kind}.{cls.name}" for kind, path in FOLDERS.items() if path == folder), cls.name)

    def as_recipe(self) -> dict[str, Any]:
        """The component as a recipe writes it: its name, then its settings."""
        return {"name": self.name, **self.model_dump(mode="json")}


C = TypeVar("C", bound=Component)
P = TypeVar("P")


def nearest(name: str, available: Sequence[str], renamed: Mapping[str, str] | None = None) -> Message:
    """A hint at the available name that was probably meant; empty where none is similar.

    Args:
        renamed: old names and what they are called today; these come before names of similar spelling.

    >>> str(nearest("rnak", ["rank", "alpha"]))
    " Did you mean 'rank'?"
    """
    matches = [(renamed or {}).get(name, ""), *difflib.get_close_matches(name, available, n=1, cutoff=0.5)]
    match = next((x for x in matches if x), None)
    return Message(" Did you mean {name!r}?", name=match) if match else Message("")


def names(kind: type | str) -> tuple[str, ...]:
    """Every component of a kind, found by listing its folder."""
    return _names(kind_name(kind))


@cache
def _names(kind: str) -> tuple[str, ...]:
    package = importlib.import_module(FOLDERS[kind])
    return tuple(sorted(m.name for m in pkgutil.iter_modules(package.__path__) if not (m.ispkg or m.name.startswith("_"))))


def kind_name(kind: type | str) -> str:
    """A kind's name: that of its contract class, in lower case."""
    return kind if isinstance(kind, str) else kind.__name__.lower()


def folder_of(kind: type | str) -> Path:
    """The folder that holds the files of a kind."""
    return Path(str(importlib.import_module(FOLDERS[kind_name(kind)]).__path__[0]))


@overload
def find_module(kind: type[P], name: str) -> P: ...
@overload
def find_module(kind: str, name: str) -> Any: ...
def find_module(kind: type | str, name: str) -> Any:
    """The file of a component, typed by the Protocol of its kind.

    Raises:
        RecipeError: there is no such component (the message gives the nearest name and all names), or its file fails.
    """
    kind = kind_name(kind)
    available = names(kind)
    if name not in available:
        raise RecipeError(
            "there is no {kind} called {name!r}.{hint} There are: {known}",
            kind=kind,
            name=name,
            hint=nearest(name, available, RENAMED_COMPONENTS.get(kind)),
            known=", ".join(available),
        )
    try:
        return importlib.import_module(f"{FOLDERS[kind]}.{name}")
    except Exception as error:  # a file that someone is writing: whatever it raises
        file = folder_of(kind) / f"{name}.py"
        lines = [x.lineno for x in traceback.extract_tb(error.__traceback__) if Path(x.filename) == file]
        raise RecipeError(
            "{kind} {name}: {file}, line {line}, fails: {error}",
            kind=kind,
            name=name,
            file=file,
            line=getattr(error, "lineno", None) or (lines or ["?"])[-1],
            error=f"{type(error).__name__}: {error}",
        ) from error


@overload
def find(kind: type[C], name: str) -> type[C]: ...
@overload
def find(kind: str, name: str) -> type[Component]: ...
def find(kind: type | str, name: str) -> type:
    """The one class that a component's file defines.

    Raises:
        RecipeError: there is no such component.
    """
    module = find_module(kind_name(kind), name)
    classes = [
        value
        for value in vars(module).values()
        if isinstance(value, type) and issubclass(value, Component) and value.__module__ == module.__name__
    ]
    if len(classes) != 1:
        raise TypeError(f"{module.__file__} must define exactly one Component, it defines {len(classes)}")
    return classes[0]


def create(kind: type[C], name: str, **settings: Any) -> C:
    """A component with these settings.

    Raises:
        RecipeError: there is no such component.
    """
    return find(kind, name)(**settings)
