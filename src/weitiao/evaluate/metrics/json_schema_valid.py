"""Share of answers that are JSON and satisfy the JSON Schema in the row's column `schema`.

JSON Schema draft 2020-12, or the one that "$schema" names, by jsonschema.
"""

from typing import Any, ClassVar

from weitiao.core.errors import DataError, RecipeError
from weitiao.core.metric import ColumnMetric, Reads
from weitiao.evaluate.json_answers import parsed


class JSONSchemaValid(ColumnMetric):
    """Share of answers that satisfy their row's JSON Schema."""

    reads: ClassVar[Reads] = "schema"

    def judge(self, pairs: list[tuple[str, str]]) -> list[float]:
        """(generated, JSON Schema) of each row.

        Raises:
            RecipeError: jsonschema is not installed.
            DataError: a schema is none.
        """
        try:
            from jsonschema import SchemaError
            from jsonschema.validators import validator_for
        except ImportError:
            raise RecipeError(
                "evaluate.metrics: {metric} needs jsonschema. Install it with: pip install jsonschema", metric=self.name
            ) from None
        validators: dict[str, Any] = {}
        values = []
        for text, schema in pairs:
            if schema not in validators:
                try:
                    value = parsed(schema)
                    validators[schema] = validator_for(value)(value)
                    validators[schema].check_schema(value)
                except (ValueError, RecursionError, SchemaError) as error:
                    problem = str(error).splitlines()[0]
                    raise DataError("column schema: this is no JSON Schema: {problem}", problem=problem) from None
            values.append(float(_satisfies(text, validators[schema])))
        return values


def _satisfies(text: str, validator: Any) -> bool:
    try:
        return validator.is_valid(parsed(text))
    except (ValueError, RecursionError):
        return False
