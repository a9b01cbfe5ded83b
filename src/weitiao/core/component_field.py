"""Recipe fields that hold a component: `method: lora`, or `method: {name: lora, rank: 32}`."""

from typing import Any

from pydantic import GetCoreSchemaHandler, GetJsonSchemaHandler, ValidationError
from pydantic_core import PydanticCustomError, core_schema

from weitiao.core.errors import InvalidValue, RecipeError
from weitiao.core.registry import Component, find, names

INVALID_COMPONENT = "invalid_component"  # error type: its context holds the component's class and its own errors


class ComponentField:
    """A field that holds one component of a kind, written as its name or as {name: ..., its settings}.

    The kind is given by name ("method"), so that a recipe can be read without importing torch until it names a component.
    """

    def __init__(self, kind: str, exclude: str = "") -> None:
        self.kind, self.exclude = kind, exclude

    def names(self) -> list[str]:
        """What may be written here. A component that holds another of its kind does not hold itself."""
        return [name for name in names(self.kind) if name != self.exclude]

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> core_schema.CoreSchema:
        return core_schema.no_info_plain_validator_function(
            self.read,
            serialization=core_schema.plain_serializer_function_ser_schema(lambda x: x and x.as_recipe()),
        )

    def __get_pydantic_json_schema__(self, schema: core_schema.CoreSchema, handler: GetJsonSchemaHandler) -> dict:
        return {"anyOf": [{"enum": self.names()}, *(component_schema(self.kind, name) for name in self.names())]}

    def read(self, value: Any) -> Component | None:
        """The component that a recipe's value describes.

        Raises:
            InvalidValue: there is no such component, or the value has another form.
            PydanticCustomError: of type INVALID_COMPONENT: one of its settings is wrong.
        """
        if isinstance(value, Component):
            return value
        if isinstance(value, str):
            value = {"name": value}
        available = ", ".join(self.names())
        if not isinstance(value, dict) or "name" not in value:
            raise InvalidValue("expected a name, or {{name: ..., settings}}; names are: {known}", known=available)
        if value["name"] == self.exclude:
            raise InvalidValue("{name} cannot contain itself; names are: {known}", name=self.exclude, known=available)
        try:
            component = find(self.kind, str(value["name"]))
        except RecipeError as error:
            raise InvalidValue(error.message) from None
        try:
            return component(**{key: x for key, x in value.items() if key != "name"})
        except ValidationError as error:
            context = {"name": component.name, "component": component, "errors": error.errors(include_url=False)}
            raise PydanticCustomError(INVALID_COMPONENT, "invalid settings of {name}", context) from None


class ClipField(ComponentField):
    """A gradient clip. A number alone is the maximum norm; null disables clipping."""

    def __init__(self) -> None:
        super().__init__("clip")

    def __get_pydantic_json_schema__(self, schema: core_schema.CoreSchema, handler: GetJsonSchemaHandler) -> dict:
        clips = super().__get_pydantic_json_schema__(schema, handler)["anyOf"]
        return {"anyOf": [{"type": "number", "exclusiveMinimum": 0}, {"type": "null"}, *clips]}

    def read(self, value: Any) -> Component | None:
        if value is None:
            return None
        if isinstance(value, (int, float)) and not isinstance(value, bool):
            if value <= 0:
                raise InvalidValue(
                    "the maximum norm must be greater than 0, not {value:g}; null disables clipping", value=value
                )
            value = {"name": "max_norm", "max_norm": value}
        return super().read(value)


def component_schema(kind: str, name: str) -> dict[str, Any]:
    """The JSON Schema of one component, its name included."""
    component = find(kind, name)
    schema = component.model_json_schema()
    schema["properties"] = {"name": {"const": name}, **schema.get("properties", {})}
    return {**schema, "title": name, "description": (component.__doc__ or "").strip(), "required": ["name"]}
