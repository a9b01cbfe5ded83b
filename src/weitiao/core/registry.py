"""A folder is the registry, a file's name is the part's name. There is no table to edit."""

import difflib
import importlib
import pkgutil
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any, ClassVar

from pydantic import BaseModel, ConfigDict

from weitiao.core.errors import RecipeError

FOLDERS = {
    "reader": "weitiao.data.readers",
    "mapping": "weitiao.data.mappings",
    "block": "weitiao.model.backbone.blocks",
    "method": "weitiao.model.methods",
    "objective": "weitiao.objective.objectives",
    "regularizer": "weitiao.objective.regularizers",
    "optimizer": "weitiao.train.optimizers",
    "clip": "weitiao.train.stability.clips",
    "step": "weitiao.train.steps",
    "metric": "weitiao.evaluate.metrics",
}


class Settings(BaseModel):
    """A frozen set of settings. Unknown keys are refused; the words under a field are its help."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True, validate_default=True)


class Component(Settings):
    """One of several: the settings of a method, an objective, an optimizer, a metric."""

    name: ClassVar[str] = ""

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        cls.name = cls.__module__.rpartition(".")[2]

    def as_recipe(self) -> dict[str, Any]:
        """The part as it is written in a recipe: its name, then its settings."""
        return {"name": self.name, **self.model_dump(mode="json")}


def nearest(word: str, known: Sequence[str]) -> str:
    """' Did you mean 'rank'?' or nothing.

    >>> nearest("rnak", ["rank", "alpha"])
    " Did you mean 'rank'?"
    """
    found = difflib.get_close_matches(word, known, n=1, cutoff=0.5)
    return f" Did you mean {found[0]!r}?" if found else ""


@cache
def names(kind: str) -> tuple[str, ...]:
    """Every part of a kind, found by listing its folder."""
    folder = importlib.import_module(FOLDERS[kind])
    return tuple(sorted(m.name for m in pkgutil.iter_modules(folder.__path__) if not (m.ispkg or m.name.startswith("_"))))


def find_module(kind: str, name: str) -> ModuleType:
    """The file of a part.

    Raises:
        RecipeError: there is no such part; the nearest name and all names are given.
    """
    if name not in names(kind):
        known = names(kind)
        raise RecipeError(f"there is no {kind} called {name!r}.{nearest(name, known)} There are: {', '.join(known)}.")
    return importlib.import_module(f"{FOLDERS[kind]}.{name}")


def find(kind: str, name: str) -> type[Component]:
    """The one class of a part's file that is a Part defined there."""
    module = find_module(kind, name)
    found = [
        thing
        for thing in vars(module).values()
        if isinstance(thing, type) and issubclass(thing, Component) and thing.__module__ == module.__name__
    ]
    if len(found) != 1:
        raise TypeError(f"{module.__file__} must define exactly one Part, it defines {len(found)}")
    return found[0]


def folder_of(kind: str) -> Path:
    """Where the files of a kind lie."""
    return Path(str(importlib.import_module(FOLDERS[kind]).__path__[0]))
