"""The sections of a recipe: data sources, training, evaluation, replay.

The docstring under a field is its help on the command line, in `weitiao explain` and in the JSON Schema that editors
complete from.
"""

import hashlib
import math
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BeforeValidator,
    Field,
    GetJsonSchemaHandler,
    PrivateAttr,
    Tag,
    ValidationError,
    ValidationInfo,
    ValidatorFunctionWrapHandler,
    field_validator,
    model_validator,
)
from pydantic_core import core_schema

from weitiao.core.cleaner import Cleaner
from weitiao.core.component_field import ClipField, ComponentField
from weitiao.core.errors import InvalidValue
from weitiao.core.memory_rows import as_json_lines, is_rows
from weitiao.core.mixing import Cap
from weitiao.core.registry import Component, Settings, find, names, nearest

if TYPE_CHECKING:  # a component's own file is imported when a recipe names it, and imports torch only then
    from weitiao.core.optimizer import Clip, Optimizer
else:
    Clip = Optimizer = Component

Auto = Literal["auto"]
FROM_FILE = "file"  # validation context: the values were read from a recipe file
DEFAULT_COMPONENTS = {"method": "lora", "objective": "sft", "optimizer": "adamw", "clip": "max_norm"}


class FixedOnResume:
    """Marks a field that a resumed run must not change: every later step would have other numbers."""


FIXED_ON_RESUME = FixedOnResume()


def fixed_on_resume(section: type[Settings]) -> set[str]:
    """Names of the fields of a section that a resumed run must not change."""
    return {name for name, field in section.model_fields.items() if FIXED_ON_RESUME in field.metadata}


def default_component(kind: str) -> Any:
    """A field whose default is the usual component of a kind."""
    return Field(default_factory=lambda: find(kind, DEFAULT_COMPONENTS[kind])())


class OneOrMore:
    """A list; a single element may be written without the list."""

    def __get_pydantic_json_schema__(self, schema: core_schema.CoreSchema, handler: GetJsonSchemaHandler) -> dict:
        list_schema = handler(schema)
        return {"anyOf": [list_schema, list_schema["items"]]}


def _as_components(value: Any) -> Any:
    return [value] if isinstance(value, (str, dict, Component)) else value


class Source(Settings):
    """One source of data: its settings, or only its path."""

    path: str
    """A file, a folder, a pattern of files (data/*.jsonl), or a data set: hf:owner/name, modelscope:owner/name."""
    format: str = "auto"
    """File format: a name from data/readers; auto: by the file's extension."""
    subset: str | None = None
    """Subset of a hub's data set; null: its only one, or the one called default."""
    split: str = "train"
    """Split of a hub's data set."""
    revision: str | None = None
    """Revision of a hub's data set (a commit, a branch, a tag); null: the newest one, which is then kept."""
    columns: dict[str, str] | None = None
    """Which column means what, for example {prompt: question, completion: answer}; default: inferred and printed (of
    validation and test files: as the data's)."""
    weight: float = Field(default=1.0, gt=0)
    """How often its rows are used per epoch: 3 is three times, 0.5 is a different half each epoch."""
    share: float | None = Field(default=None, gt=0, lt=1)
    """Its share of all tokens, kept from step to step (mixing); the sources without one divide the rest by their size."""
    cap: Cap | None = None
    """The most that is used of it: {rows: 1000} or {tokens: 50000} an epoch, {epochs: 4} in the run (mixing)."""
    task: str = ""
    """Its task, for objective: multi_task."""
    limit: int | None = Field(default=None, ge=1)
    """Use only the first rows, up to this number."""
    encoding: str = "auto"
    """Text encoding (gb18030, latin-1 ...); auto: UTF-8, or what is proven of the file (GB18030, Big5, UTF-16)."""
    parse_special_tokens: bool = False
    """Special tokens that its texts spell (<|im_end|>) become control tokens; default: they are encoded as text."""
    cleaners: Annotated[
        tuple[Annotated[Cleaner, ComponentField("cleaner")], ...], BeforeValidator(_as_components), OneOrMore()
    ] = ()
    """Rules that clean its rows, in this order: names from data/cleaners (unicode, html, language ...), or {name: ..., its
    settings}. Validation and test files are left as they are."""
    _rows: tuple[str, ...] | None = PrivateAttr(None)
    """Rows in memory, as JSON lines; then the path is memory:<hash> until they are written into a Run."""

    @classmethod
    def from_rows(cls, rows: Any) -> "Source":
        """Rows in memory: a list of dicts, a pandas or polars frame, or a datasets.Dataset.

        Raises:
            InvalidValue: a value cannot be written as JSON.
        """
        lines = tuple(as_json_lines(rows))
        source = cls(path=f"memory:{hashlib.sha256(''.join(lines).encode()).hexdigest()[:12]}")
        source._rows = lines
        return source

    @property
    def rows(self) -> tuple[str, ...] | None:
        """Rows in memory, as JSON lines."""
        return self._rows

    def moved_to(self, path: Path) -> "Source":
        """The same rows, under the path of the file that they are written to."""
        return self.model_copy(update={"path": str(path)})

    @model_validator(mode="before")
    @classmethod
    def _from_path(cls, value: Any) -> Any:
        return {"path": str(value)} if isinstance(value, (str, Path)) else value

    @classmethod
    def __get_pydantic_json_schema__(cls, schema: core_schema.CoreSchema, handler: GetJsonSchemaHandler) -> dict:
        return {"anyOf": [handler(schema), {"type": "string"}]}


def _as_list(sources: Any, info: ValidationInfo) -> Any:
    rows_allowed = info.context != FROM_FILE  # in a file, a list of mappings without a path is a mistake
    if rows_allowed and is_rows(sources):
        return [Source.from_rows(sources)]
    if isinstance(sources, (str, Path, dict, Source)):
        return [sources]
    if not isinstance(sources, (list, tuple)) or not sources:
        raise InvalidValue("expected at least one file, or a list of sources")
    return [Source.from_rows(x) if rows_allowed and is_rows(x) else x for x in sources]


Sources = Annotated[tuple[Source, ...], BeforeValidator(_as_list), OneOrMore()]


class GradientScale(Settings):
    """Smaller gradients for the layers where training becomes unstable first."""

    embedding: float = Field(default=1.0, gt=0, le=1)
    """Factor on the gradient of the token embedding (0.1 in GLM-130B); 1: unchanged."""
    num_layers: int = Field(default=0, ge=0)
    """Number of lowest layers whose gradients are scaled."""
    layers: float = Field(default=0.1, gt=0, le=1)
    """Factor on the gradients of these layers."""


class Train(Settings):
    """How the model is trained."""

    epochs: float = Field(default=2.0, gt=0)
    """Passes over the data."""
    steps: int | None = Field(default=None, ge=1)
    """Optimizer steps; overrides epochs."""
    batch_size: int | None = Field(default=None, ge=1)
    """Rows per optimizer step, over all devices. Alternative to batch_tokens."""
    batch_tokens: int | Auto = "auto"
    """Tokens per optimizer step, over all devices. Rows are packed without padding."""
    micro_batch_tokens: int | Auto = "auto"
    """Tokens per forward pass; a step accumulates the exact gradient over several."""
    gradient_checkpointing: Literal["auto", "on", "off"] = "auto"
    """Recompute activations in the backward pass instead of storing them: less memory, slower; auto: off."""
    activation_cache: Annotated[float, Field(ge=0)] | Literal["auto", "off"] = "auto"
    """Disk cache for the outputs of frozen lower layers over several epochs: maximum size in GB; auto: 8; off: no cache."""
    implementation: Literal["auto", "reference"] = "auto"
    """How the model runs; reference: transformers' forward pass and plain autograd (slower, for comparison)."""
    learning_rate: Annotated[float | Auto, FIXED_ON_RESUME] = "auto"
    """Peak learning rate; auto: the method's default."""
    lr_schedule: Annotated[Literal["cosine", "linear", "constant"], FIXED_ON_RESUME] = "cosine"
    """Learning rate schedule after the warm-up: cosine decays to 10 % of the peak, linear to 0."""
    warmup_ratio: Annotated[float, FIXED_ON_RESUME] = Field(default=0.05, ge=0, lt=1)
    """Fraction of the steps in which the learning rate rises linearly from 0."""
    weight_decay: Annotated[float, FIXED_ON_RESUME] = Field(default=0.0, ge=0)
    """Weight decay of matrices (not of biases and norms), decoupled where the optimizer supports it."""
    max_grad_norm: Annotated[Clip | None, ClipField(), FIXED_ON_RESUME] = default_component("clip")
    """Maximum gradient norm (L2), or an adaptive clipper (zclip, adagc); null disables clipping."""
    optimizer: Annotated[Optimizer, ComponentField("optimizer"), FIXED_ON_RESUME] = default_component("optimizer")
    """Optimizer: a name from train/optimizers, or {name: ..., its settings}."""
    precision: Annotated[Literal["auto", "bf16", "fp32", "fp16"], FIXED_ON_RESUME] = "auto"
    """Compute dtype. Trainable weights and reductions stay in fp32."""
    loss_scale: float = Field(default=65536.0, ge=1)
    """Initial loss scale for fp16; it halves when gradients overflow, and grows again."""
    gradient_scale: Annotated[GradientScale, FIXED_ON_RESUME] = Field(default_factory=GradientScale)
    """Smaller gradients for the embedding or the lowest layers, for unstable runs."""
    deterministic: bool = False
    """Use only deterministic kernels: a GPU repeats a run bit-exactly, but slower. A CPU is always deterministic."""
    evaluate_every: int | Auto = "auto"
    """Steps between validations; auto: ten validations per run; 0: only at the end."""
    save_every: int | Auto = "auto"
    """Steps between checkpoints; auto: at every validation."""
    keep_checkpoints: int = Field(default=2, ge=2)
    """Number of newest checkpoints to keep, besides the best and the newest verified one."""
    guard: Annotated[Literal["on", "off"], FIXED_ON_RESUME] = "on"
    """Skip steps whose gradients are non-finite or extreme outliers, and roll back when the run diverges."""
    best_metric: str = "loss"
    """Metric that selects the best checkpoint: loss, or a name from evaluate/metrics (of one task: spam.f1)."""
    patience: int | None = Field(default=None, ge=1)
    """Stop early after this many validations without improvement; null: never."""
    num_threads: int | Auto = "auto"
    """CPU threads; auto: torch's default (the cores this process may use, or OMP_NUM_THREADS)."""

    @field_validator("learning_rate", "epochs", "weight_decay")
    @classmethod
    def _is_finite(cls, value: float | str, field: ValidationInfo) -> float | str:
        if value == "auto" or (math.isfinite(float(value)) and (float(value) > 0 or field.field_name == "weight_decay")):
            return value
        if field.field_name == "weight_decay":
            raise InvalidValue("expected a finite number of at least 0, not {value}", value=value)
        raise InvalidValue("expected a finite number greater than 0, not {value}", value=value)

    @field_validator("batch_tokens", "micro_batch_tokens", "num_threads", "evaluate_every", "save_every")
    @classmethod
    def _is_count(cls, value: int | str, field: ValidationInfo) -> int | str:
        minimum = 0 if str(field.field_name).endswith("_every") else 1
        if value != "auto" and int(value) < minimum:
            raise InvalidValue(
                "expected auto or a whole number of at least {minimum}, not {value}", minimum=minimum, value=value
            )
        return value

    @field_validator("guard", "gradient_checkpointing", mode="before")
    @classmethod
    def _on_or_off(cls, value: Any) -> Any:
        return {True: "on", False: "off"}.get(value, value) if isinstance(value, bool) else value

    @field_validator("activation_cache", mode="wrap")
    @classmethod
    def _is_cache_size(cls, value: Any, validate: ValidatorFunctionWrapHandler) -> Any:
        try:
            value = cls._on_or_off(value)
            return validate("auto" if value == "on" else value)
        except ValidationError:
            raise InvalidValue("expected auto, off or a maximum size in GB, not {value!r}", value=value) from None

    @field_validator("best_metric")
    @classmethod
    def _is_metric(cls, value: str) -> str:
        available = tuple(dict.fromkeys(("loss", *names("metric"))))
        _check_metric(value, available)
        return value

    @model_validator(mode="after")
    def _one_batch_size(self) -> "Train":
        if self.batch_size is not None and self.batch_tokens != "auto":
            raise InvalidValue("set batch_size (rows) or batch_tokens (tokens), not both")
        return self


def _listed_names(value: Any) -> Any:
    return [value] if isinstance(value, str) else value


def _check_metric(name: str, available: tuple[str, ...]) -> None:
    """Refuse an unknown metric; "spam.f1" is the metric f1 of the task spam."""
    if name.rpartition(".")[2] not in available:
        hint = nearest(name, available)
        raise InvalidValue(
            "there is no metric {name!r}.{hint} There are: {known}", name=name, hint=hint, known=", ".join(available)
        )


class Evaluate(Settings):
    """What is measured before and after training."""

    data: Sources | None = None
    """Test rows for the final evaluation, one or more sources; default: the validation rows."""
    corpus: Sources | None = None
    """For embedding: all documents (one text a row) that a query is searched among; default: those of the test rows."""
    metrics: tuple[str, ...] | Auto = "auto"
    """Names from evaluate/metrics; auto: what fits the objective and the answers."""
    limit: int | None = Field(default=200, ge=1)
    """Maximum number of rows for metrics that need generation (losses use all rows); null: all."""
    max_new_tokens: int | Auto = "auto"
    """Maximum length of a generated answer, in tokens; auto: that of the longest reference, 64 to 512."""
    exams: Annotated[tuple[str, ...], BeforeValidator(_listed_names), OneOrMore()] = ()
    """Exams that are taken before and after training: names from evaluate/exams, YAML files, or default."""
    forgetting: bool | Auto = "auto"
    """Measure what the model forgets: capital cities, neutral text, formats, languages, refusals, before and after. auto: a
    short form planned for a minute, of decoders that generate; true: all of it, whatever it takes."""
    samples: int = Field(default=5, ge=0)
    """Answers shown side by side, before and after training."""

    @field_validator("max_new_tokens")
    @classmethod
    def _is_count(cls, value: int | str) -> int | str:
        if value != "auto" and int(value) < 1:
            raise InvalidValue("expected auto or a whole number of at least {minimum}, not {value}", minimum=1, value=value)
        return value

    @field_validator("metrics")
    @classmethod
    def _are_metrics(cls, metrics: tuple[str, ...] | str) -> tuple[str, ...] | str:
        for name in metrics if not isinstance(metrics, str) else ():
            _check_metric(name, names("metric"))
        return metrics


class Replay(Settings):
    """General rows mixed into the data, so that the model forgets less."""

    path: str
    """Files with rows of the same kind as the data."""
    task: str = ""
    """Their task, for objective: multi_task."""
    fraction: float = Field(default=0.15, gt=0, lt=1)
    """Their fraction of all tokens; 0.1 to 0.2 is usual."""
    format: str = "auto"
    """File format: a name from data/readers; auto: as the data's, or by the file's extension."""
    columns: dict[str, str] | None = None
    """Which column means what; default: as the data's, where the file has these columns, or else inferred."""
    encoding: str = "auto"
    """Text encoding; auto: as the data's, unless the file is UTF-8."""

    @property
    def source(self) -> Source:
        """As a source of data."""
        return Source(path=self.path, task=self.task, format=self.format, columns=self.columns, encoding=self.encoding)


def validation_form(value: Any) -> str:
    """A number is a fraction; anything else is a source."""
    try:
        float(value)
    except (TypeError, ValueError):
        return "source"
    return "fraction"


def _is_fraction(value: float) -> float:
    if not 0 <= value < 1:
        raise InvalidValue(
            "expected a fraction of at least 0 and less than 1, not {value} (0.05 holds out 5 %)", value=value
        )
    return value


ValidationFraction = Annotated[float, AfterValidator(_is_fraction), Tag("fraction")]
ValidationSources = Annotated[Sources, Tag("source")]
