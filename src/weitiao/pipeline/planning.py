"""Before anything is spent: the memory that a recipe takes, whether it fits, and what would make it fit."""

from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import psutil
import torch
import yaml
from transformers import AutoConfig, PretrainedConfig

from weitiao.core import hardware
from weitiao.core.errors import ModelError, RecipeError
from weitiao.core.messages import Message
from weitiao.core.recipe import Recipe, make_recipe, read_recipe
from weitiao.core.shipped_recipes import find_recipe
from weitiao.model.adapters.module_structure import architecture_of
from weitiao.model.kernels.library import cpu_supported
from weitiao.model.layers.shape_trace import ShapeTrace
from weitiao.model.loading.sources import resolve_base
from weitiao.pipeline.memory import TracedSettings, trace_training
from weitiao.pipeline.planned_rows import WordProcessor, planned_batch
from weitiao.pipeline.trained import base_chain
from weitiao.plan.compatibility import check_base, choose_step
from weitiao.plan.known_models import known_config, known_models
from weitiao.plan.memory import GIB, SHARDED, MemoryEstimate, TracedMemory, estimate_memory, parse_capacity
from weitiao.plan.resolve import CPU_TOKENS, CPU_TOKENS_BF16, GPU_TOKENS, NARROW_TOKENS

KV_CONTEXT = 4096  # tokens for which the cache of a served model is told
SUGGESTIONS = 3
FEWEST_TOKENS = 256  # that a suggestion runs at once


@dataclass(frozen=True)
class PlanRequest:
    """What a plan is made for."""

    recipe: Recipe
    length: int = 512
    """Tokens of a row."""
    tokens: int | None = None
    """That run at once on a device; None: as training chooses."""
    capacity: int | None = None
    """Bytes of a GPU; None: this machine."""
    devices: int = 1
    sharding: str = "none"


@dataclass(frozen=True)
class ServingMemory:
    """The memory of a merged model that answers."""

    weights: int
    """Bytes."""
    cache: int
    """Bytes of keys and values, for each token of a conversation."""

    def as_json(self) -> dict[str, int]:
        return asdict(self)


@dataclass(frozen=True)
class Suggestion:
    """A change that makes it fit."""

    change: str
    """As it is written in a recipe or on the command line."""
    price: Message
    total: int

    def as_json(self) -> dict[str, Any]:
        return {"change": self.change, "price": str(self.price), "total": self.total}


@dataclass(frozen=True)
class MemoryPlan:
    """The memory that training takes, against what there is."""

    base: str
    estimate: MemoryEstimate
    parameters: int
    capacity: int
    device: str
    serving: ServingMemory | None
    suggestions: tuple[Suggestion, ...]

    @property
    def fits(self) -> bool:
        return self.estimate.fits(self.capacity)

    def as_json(self) -> dict[str, Any]:
        return {
            "base": self.base,
            "parameters": self.parameters,
            "device": self.device,
            "capacity": self.capacity,
            "fits": self.fits,
            "most_tokens": self.estimate.most_tokens(self.capacity),
            "training": self.estimate.as_json(),
            "serving": self.serving.as_json() if self.serving else None,
            "suggestions": [x.as_json() for x in self.suggestions],
        }


def plan_request(
    recipe: str,
    overrides: tuple[str, ...],
    base: str,
    method: str,
    objective: str,
    length: int,
    tokens: int | None,
    gpu: str,
    gpus: int,
    sharding: str,
) -> PlanRequest:
    """A request from what users write.

    Args:
        recipe: a recipe; "": `base`, `method` and `objective` make one.
        gpu: memory of one GPU, as in 24GB; "": this machine.

    Raises:
        RecipeError: something of it is wrong.
    """
    if bool(recipe) == bool(base):
        raise RecipeError("plan: give a recipe, or --base MODEL, as in --base Qwen/Qwen2.5-7B --gpu 24GB")
    if sharding not in SHARDED:
        raise RecipeError("--sharding {sharding}: expected {known}", sharding=sharding, known=", ".join(SHARDED))
    if base:
        plain: dict[str, Any] = {"base": base, "data": "data.jsonl", "method": method, "objective": objective}
        planned = make_recipe({**plain, "out": "runs/plan"})
        for override in overrides:
            key, _, value = override.partition("=")
            planned = planned.override(**{key: yaml.safe_load(value)})
    else:
        planned = read_recipe(find_recipe(recipe), overrides)
    capacity = parse_capacity(gpu) if gpu else None
    return PlanRequest(planned, length, tokens, capacity, gpus, sharding)


def plan_memory(request: PlanRequest) -> MemoryPlan:
    """Trace a step of the recipe on shapes, and compare it with the device.

    Raises:
        RecipeError, ModelError: the recipe's parts do not go together, or the model's config cannot be had.
    """
    recipe = request.recipe
    chain = base_chain(recipe.base)  # a run as base: its model, with the run merged into it
    base, revision = (chain[0].base, chain[0].revision) if chain else (recipe.base, recipe.revision)
    config = find_config(base, revision)
    architecture = architecture_of(config)
    if recipe.vocabulary is not None:
        raise RecipeError("plan: a recipe with `vocabulary` is not planned yet; check runs real steps")
    if choose_step(recipe.method, recipe.objective) != "accumulate":
        name = choose_step(recipe.method, recipe.objective)
        raise RecipeError("plan: steps of the kind {step} are not planned yet; check runs real steps", step=name)
    request = replace(request, length=_longest_row(request, architecture.max_length))
    if architecture.kind == "encoder_decoder":
        raise RecipeError("plan: the memory of encoder-decoder models is not planned yet; check runs real steps")
    check_base(recipe.objective, recipe.method, architecture)
    on_gpu = request.capacity is not None or hardware.device().type == "cuda"
    traced, estimate = _estimated(request, config, on_gpu)
    capacity = request.capacity or _machine_memory()
    plan = MemoryPlan(
        recipe.base,
        estimate,
        traced.frozen + traced.trained,
        capacity,
        "gpu" if request.capacity else hardware.device_name(),
        _serving(config, traced) if architecture.kind == "decoder" else None,
        (),
    )
    if plan.fits:
        return plan
    as_planned = replace(request, tokens=estimate.tokens)
    return replace(plan, suggestions=tuple(_suggestions(as_planned, config, on_gpu, capacity)))


def find_config(base: str, revision: str | None = None) -> PretrainedConfig:
    """A model's config: of a model on this disk, of a known one, or else from the hub that the recipe names.

    Raises:
        ModelError: it cannot be had.
    """
    if not Path(base).expanduser().exists() and not base.startswith("package:"):
        if (config := known_config(base)) is not None:
            return config
        try:
            return AutoConfig.from_pretrained(base.removeprefix("modelscope:"), revision=revision, trust_remote_code=False)
        except (OSError, ValueError, KeyError) as error:
            raise ModelError(
                "base: the config of {base} cannot be had ({reason}). Known without a download: {known}",
                base=base,
                reason=str(error).strip().splitlines()[0][:150],
                known=", ".join(known_models()),
            ) from None
    own = Path(base).expanduser()
    folder = own if (own / "config.json").is_file() else resolve_base(base, revision)
    try:
        return AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except (OSError, ValueError, KeyError) as error:
        reason = str(error).strip().splitlines()[0][:150]
        raise ModelError("base: {file} cannot be read: {reason}", file=folder / "config.json", reason=reason) from None


def _estimated(request: PlanRequest, config: PretrainedConfig, on_gpu: bool) -> tuple[TracedMemory, MemoryEstimate]:
    recipe = request.recipe
    dtype = _dtype(recipe, on_gpu)
    tokens = max(request.tokens or _default_tokens(recipe, config, dtype, on_gpu, request.length), request.length)
    objective, batch = planned_batch(recipe.objective, request.length, tokens)
    device_type = "cuda" if on_gpu else "cpu"
    trace = ShapeTrace(device_type, kernels=not on_gpu and dtype == torch.bfloat16 and cpu_supported())
    settings = TracedSettings(
        config,
        recipe.method,
        objective,
        WordProcessor(),
        recipe.train,
        dtype,
        trace,
        recipe.train.gradient_checkpointing == "on",
        recipe.regularizers,
    )
    traced = trace_training(settings, batch)
    runtime = 0 if on_gpu else psutil.Process().memory_info().rss
    estimate = estimate_memory(traced, batch.tokens, device_type, True, request.sharding, request.devices, runtime)
    return traced, estimate


def _dtype(recipe: Recipe, on_gpu: bool) -> torch.dtype:
    if on_gpu and recipe.train.precision == "auto":
        return torch.bfloat16
    if recipe.train.precision in hardware.DTYPES and on_gpu:
        return hardware.DTYPES[recipe.train.precision]
    return hardware.precision(recipe.train.precision)[0]


def _longest_row(request: PlanRequest, limit: int | None) -> int:
    """The tokens of a row: not more than the recipe or the model allows."""
    max_length = request.recipe.max_length
    return min(x for x in (request.length, limit, None if max_length == "auto" else int(max_length)) if x is not None)


def _default_tokens(recipe: Recipe, config: PretrainedConfig, dtype: torch.dtype, on_gpu: bool, length: int) -> int:
    """As plan/resolve.py chooses on a CPU; on a GPU training takes what the free memory allows, and this is the least."""
    train = recipe.train
    if train.micro_batch_tokens != "auto":
        return train.micro_batch_tokens
    if on_gpu:
        most = GPU_TOKENS[0]
    elif config.get_text_config().hidden_size < hardware.NARROW:
        most = NARROW_TOKENS
    else:
        most = CPU_TOKENS_BF16 if dtype.itemsize < 4 else CPU_TOKENS
    of_step = train.batch_size * length if train.batch_size is not None else train.batch_tokens
    return most if of_step == "auto" else min(most, of_step)


def _machine_memory() -> int:
    if hardware.device().type == "cuda":
        return torch.cuda.get_device_properties(hardware.device()).total_memory
    return psutil.virtual_memory().available + psutil.Process().memory_info().rss


def _serving(config: PretrainedConfig, traced: TracedMemory) -> ServingMemory:
    """A merged model in bf16: 2 bytes a number; keys and values, 2 bytes each."""
    text: Any = config.get_text_config()
    heads = getattr(text, "num_key_value_heads", None) or text.num_attention_heads
    width = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
    in_base = traced.frozen + (traced.trained if not traced.frozen else 0)
    return ServingMemory(2 * in_base, 2 * 2 * text.num_hidden_layers * heads * width)


def _suggestions(request: PlanRequest, config: PretrainedConfig, on_gpu: bool, capacity: int) -> Iterator[Suggestion]:
    """The first changes that make it fit, the cheapest first."""
    count = 0
    for change, price, changed in _candidates(request):
        try:
            _, estimate = _estimated(changed, config, on_gpu)
        except RecipeError:
            continue
        if estimate.fits(capacity):
            yield Suggestion(change, price, estimate.total)
            count += 1
        if count == SUGGESTIONS:
            return


def _candidates(request: PlanRequest) -> Iterator[tuple[str, Message, PlanRequest]]:
    recipe, tokens = request.recipe, request.tokens or GPU_TOKENS[0]
    name = recipe.method.name

    def override(**overrides: Any) -> PlanRequest:
        return replace(request, recipe=recipe.override(**overrides))

    fewer = Message("the same result; a GPU is less busy with so few tokens at once")
    for smaller in (x for x in (2048, 1024, 512, FEWEST_TOKENS) if request.length <= x < tokens):
        yield f"train.micro_batch_tokens={smaller}", fewer, replace(request, tokens=smaller)
    longer = Message("{factor:.2g} times as long; the same result", factor=1.33 if recipe.method.trains_base else 1.5)
    if recipe.train.gradient_checkpointing != "on":
        yield "train.gradient_checkpointing=on", longer, override(**{"train.gradient_checkpointing": "on"})
    least = replace(override(**{"train.gradient_checkpointing": "on"}), tokens=max(FEWEST_TOKENS, request.length))
    both = f"train.gradient_checkpointing=on train.micro_batch_tokens={least.tokens}"
    yield both, longer, least
    if name not in ("lora", "qlora"):
        price = Message("learns a little less than full tuning where there are many rows; forgets less (arXiv 2405.09673)")
        yield "method=lora", price, override(method="lora")
    if name != "qlora":
        price = Message("the base is rounded to 4 bits: about as good as in 16 (arXiv 2305.14314, table 3), but slower")
        yield "method=qlora", price, override(method="qlora")
    price = Message("and each step takes {factor:.2g} times as long", factor=1.5)
    smallest = replace(least, recipe=least.recipe.override(method="qlora"))
    yield f"method=qlora {both}", price, smallest


def in_gib(size: int) -> str:
    """12.3 GiB"""
    return f"{size / GIB:.1f} GiB" if size >= GIB else f"{size / 2**20:.0f} MiB"
