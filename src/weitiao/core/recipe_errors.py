"""pydantic's validation errors as messages: file, line, key, what was expected, the nearest key.

recipes/r.yaml, line 7: unknown key 'method.rnk'. Did you mean 'rank'? Keys here are: alpha, bias, dropout ...
recipes/r.yaml, line 10: train.epochs: expected a number greater than 0, not -1.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import reduce
from typing import Any

from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails

from weitiao.core.component_field import INVALID_COMPONENT
from weitiao.core.errors import message_of
from weitiao.core.messages import Message
from weitiao.core.mixing import Cap, MixedGroup, Mixing
from weitiao.core.recipe_sections import Evaluate, GradientScale, Replay, Source, Train
from weitiao.core.registry import Component, Settings, nearest
from weitiao.core.renamed import RENAMED_KEYS, RENAMED_VALUES
from weitiao.core.vocabulary_section import Vocabulary

Key = tuple[str | int, ...]

SECTIONS: dict[str, type[Settings]] = {
    "data": Source,
    "data.cap": Cap,
    "validation": Source,
    "evaluate.data": Source,
    "evaluate.corpus": Source,
    "replay": Replay,
    "mixing": Mixing,
    "vocabulary": Vocabulary,
    "vocabulary.data": Source,
    "train": Train,
    "train.gradient_scale": GradientScale,
    "evaluate": Evaluate,
}

NO_VALUE = {"none", "nil", "nan", "n/a", "na", "undefined"}

UNION_TAGS = {"int", "float", "str", "bool", "constrained-int", "constrained-float", "constrained-str"}

EXPECTED: dict[str, Message] = {  # pydantic's error type -> what was expected; the fields are from the error's context
    "int_type": Message("a whole number"),
    "int_parsing": Message("a whole number"),
    "int_from_float": Message("a whole number"),
    "float_type": Message("a number"),
    "float_parsing": Message("a number"),
    "finite_number": Message("a finite number"),
    "bool_type": Message("true or false"),
    "bool_parsing": Message("true or false"),
    "string_type": Message("text"),
    "list_type": Message("a list"),
    "tuple_type": Message("a list"),
    "dict_type": Message("a mapping"),
    "model_type": Message("a mapping"),
    "model_attributes_type": Message("a mapping"),
    "greater_than": Message("a number greater than {gt:g}"),
    "greater_than_equal": Message("a number of at least {ge:g}"),
    "less_than": Message("a number less than {lt:g}"),
    "less_than_equal": Message("a number of at most {le:g}"),
    "too_short": Message("at least {min_length} values"),
    "too_long": Message("at most {max_length} values"),
}


@dataclass(frozen=True)
class Problem:
    """One error of pydantic's, with its key in the recipe."""

    key: Key
    type: str
    context: dict[str, Any]
    text: str
    """pydantic's own message, for types that have no template here."""
    value: Any
    fields: dict[str, FieldInfo]
    """What may be written next to the key."""
    scope: str
    """Where RENAMED_KEYS looks: "train", "method.lora"."""

    @property
    def dotted(self) -> str:
        return ".".join(str(x) for x in self.key)


def explain(
    errors: Iterable[ErrorDetails],
    plain: Mapping[str, Any],
    recipe: type[Settings],
    locate: Callable[[Key], Message],
    sections: Mapping[str, type[Settings]] = SECTIONS,
) -> list[Message]:
    """A message for each key that is wrong.

    Args:
        errors: of the recipe's ValidationError.
        plain: the values that the recipe was made from.
        locate: a key -> the file and line where it was written.
        sections: dotted keys -> the settings below them.
    """
    problems: dict[Key, list[Problem]] = {}
    for problem in _problems(errors, plain, recipe, sections):
        problems.setdefault(problem.key, []).append(problem)
    return [_message(group, locate(key)) for key, group in problems.items()]


def _message(group: list[Problem], where: Message) -> Message:
    """One message for one key; what the branches of a union expected is joined by "or"."""
    first = group[0]
    if first.type == "missing":
        field = first.fields.get(str(first.key[-1]))
        if field is None or not field.description:  # an element of a list, or of a mapping
            return Message("{where}: {key} is missing.", where=where, key=first.dotted)
        about = Message(field.description)
        return Message("{where}: {key} is missing. {about}", where=where, key=first.dotted, about=about)
    if first.type == "extra_forbidden":
        hint = nearest(str(first.key[-1]), list(first.fields), RENAMED_KEYS.get(first.scope))
        available = ", ".join(sorted(first.fields))
        return Message(
            "{where}: unknown key {key!r}.{hint} Keys here are: {known}.",
            where=where,
            key=first.dotted,
            hint=hint,
            known=available,
        )
    if problem := next((x for x in group if x.type == "value_error"), None):
        return Message(
            "{where}: {key}: {problem}.", where=where, key=first.dotted, problem=message_of(problem.context["error"])
        )
    return Message(
        "{where}: {key}: expected {expected}, not {value}.{hint}",
        where=where,
        key=first.dotted,
        expected=reduce(_either, dict.fromkeys(_expected(x) for x in group)),
        value=_brief(first.value),
        hint=_renamed_value(first) or _unquoted(group),
    )


def _expected(problem: Problem) -> Message:
    if problem.type == "literal_error":
        choices = problem.context["expected"].replace(" or ", ", ").replace("'", "")
        return Message("one of {choices}" if "," in choices else "{choices}", choices=choices)
    template = EXPECTED.get(problem.type)
    return Message(template, **problem.context) if template else Message(problem.text)


def _either(first: Message, second: Message) -> Message:
    return Message("{first} or {second}", first=first, second=second)


def _brief(value: Any) -> Message:
    if isinstance(value, dict):
        return Message("a mapping")
    return Message("a list") if isinstance(value, (list, tuple)) else Message(repr(value)[:60])


def _renamed_value(problem: Problem) -> Message:
    name = ".".join(x for x in (problem.scope, str(problem.key[-1]) if problem.key else "") if x)
    return nearest(str(problem.value), [], RENAMED_VALUES.get(name))


def _unquoted(group: list[Problem]) -> Message:
    """A hint where YAML read something else than text, or text that elsewhere means: no value."""
    value = group[0].value
    if isinstance(value, (bool, int, float)) and any(x.type == "string_type" for x in group):
        text = str(value).lower() if isinstance(value, bool) else str(value)
        return Message(" As text, write it in quotes: '{value}'.", value=text)
    if isinstance(value, str) and value.lower() in NO_VALUE:
        return Message(" For no value, write null.")
    return Message("")


def _problems(
    errors: Iterable[ErrorDetails], plain: Mapping[str, Any], recipe: type[Settings], sections: Mapping[str, type[Settings]]
) -> Iterator[Problem]:
    for error in errors:
        key = _written_key(error["loc"], plain)
        scope, fields = _section(key[:-1], recipe, sections)
        yield from _flattened(error, key, scope, fields)


def _flattened(error: ErrorDetails, key: Key, scope: str, fields: dict[str, FieldInfo]) -> Iterator[Problem]:
    """The error itself; of a component, the errors of its settings, however deep."""
    context = error.get("ctx", {})
    if error["type"] != INVALID_COMPONENT:
        yield Problem(key, error["type"], context, error["msg"], error["input"], fields, scope)
        return
    component: type[Component] = context["component"]
    for inner in context["errors"]:
        inner_key = (*key, *(x for x in inner["loc"] if not _is_union_tag(x)))
        yield from _flattened(inner, inner_key, component.scope(), component.model_fields)


def _written_key(location: tuple[int | str, ...], plain: Mapping[str, Any]) -> Key:
    """The key as it is written in the recipe, from pydantic's location."""
    key = tuple(x for x in location if not _is_union_tag(x))
    if key[:1] == ("validation",):
        key = (key[0], *key[2:])  # the second is which of its two forms it is read as
    for section in (("data",), ("validation",), ("evaluate", "data"), ("evaluate", "corpus")):
        value: Any = plain
        for name in section:
            value = value.get(name) if isinstance(value, Mapping) else None
        if not isinstance(value, list) and key[: len(section) + 1] == (*section, 0):
            key = (*section, *key[len(section) + 1 :])  # one source, written without a list
    return key


def _is_union_tag(part: int | str) -> bool:
    """pydantic adds the branch of a union to an error's location: int, literal['auto'], tuple[str, ...]."""
    return isinstance(part, str) and (part in UNION_TAGS or "[" in part)


def _section(key: Key, recipe: type[Settings], sections: Mapping[str, type[Settings]]) -> tuple[str, dict[str, FieldInfo]]:
    """The section of the recipe that holds a key: its name and its fields."""
    name = ".".join(x for x in key if isinstance(x, str))
    if key[:2] == ("mixing", "groups") and len(key) > 2:
        return name, (Cap if key[3:] == ("cap",) else MixedGroup).model_fields
    return (name, sections[name].model_fields) if name in sections else ("", recipe.model_fields)
