"""A step that is traced on shapes holds what the real step holds, for every method."""

from pathlib import Path

import pytest
import torch
from transformers import AutoConfig

from weitiao.core.method import Method
from weitiao.core.recipe import make_recipe
from weitiao.core.registry import names
from weitiao.core.shared_prefix import no_prefix_sharing
from weitiao.model.kernels import library
from weitiao.model.layers.shape_trace import ShapeTrace
from weitiao.model.profiling.memory_tracker import MemoryTracker
from weitiao.pipeline.load import load, open_base_assets
from weitiao.pipeline.memory import TracedSettings, trace_training
from weitiao.pipeline.planned_rows import WordProcessor, planned_batch

OBJECTIVES = ("classification", "regression")
SKIPPED = {"peft": "needs a config of its own", "bitfit": "the tiny Llama has no biases", "f_learning": "needs two runs"}


def held(method: str, base: Path, objective: str, dtype: torch.dtype) -> tuple[dict[str, int], dict[str, int]]:
    """Bytes at each phase's peak: (of a real step, of the traced one)."""
    plain = {"base": str(base), "data": "x.jsonl", "method": method, "objective": objective, "out": "x"}
    recipe, assets = make_recipe(plain), open_base_assets(str(base))
    fitted, batch = planned_batch(recipe.objective, 60, 960)
    model, _ = load(assets, recipe.method, fitted, dtype, torch.device("cpu"))
    tracker, trained = MemoryTracker(apart="gradients"), model.trainable()
    tracker.register("frozen", [*model.model.parameters(), *model.model.buffers()])
    tracker.register("trained", trained.values())
    tracker.gradients_of(trained.values())
    model.model.train()
    count = sum(fitted.counts(batch).values())
    with no_prefix_sharing(), tracker.phase("forward", "activations"):  # all rows are the same one
        loss = fitted.loss(model, batch)
        total = torch.stack([x / count for x in loss.totals.values()]).sum()
        del loss
    with tracker.phase("backward", "temporaries"):
        total.backward()
    config = AutoConfig.from_pretrained(assets.folder)
    trace = ShapeTrace("cpu", kernels=dtype == torch.bfloat16 and library.enabled())
    settings = TracedSettings(config, recipe.method, fitted, WordProcessor(), recipe.train, dtype, trace)
    traced = trace_training(settings, batch)
    phases = ("forward", "backward")
    return {x: tracker.peaks[x].total for x in phases}, {x: sum(traced.phases[x].values()) for x in phases}


@pytest.mark.parametrize("method", sorted(set(names(Method)) - set(SKIPPED)))
def test_traced_as_held(method: str, tiny_llama: Path) -> None:
    real, traced = held(method, tiny_llama, "sft", torch.float32)
    for phase in real:
        assert traced[phase] == pytest.approx(real[phase], rel=0.1), (phase, real, traced)


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_objectives_traced_as_held(objective: str, tiny_models: dict[str, Path]) -> None:
    real, traced = held("lora", tiny_models["bert"], objective, torch.float32)
    for phase in real:
        assert traced[phase] == pytest.approx(real[phase], rel=0.1), (phase, real, traced)


@pytest.mark.skipif(not library.cpu_supported(), reason="no AVX512-BF16: there are no compiled kernels")
@pytest.mark.parametrize("method", ["lora", "full", "freeze", "qlora"])
def test_traced_as_held_with_kernels(method: str, tiny_llama: Path) -> None:
    real, traced = held(method, tiny_llama, "sft", torch.bfloat16)
    for phase in real:
        assert traced[phase] == pytest.approx(real[phase], rel=0.02), (phase, real, traced)


def test_a_trace_leaves_nothing_behind(tiny_llama: Path) -> None:
    """No cached fake tensor, no kernels replaced: a model that runs afterwards gives numbers."""
    first, second = (held("lora", tiny_llama, "sft", torch.float32)[0] for _ in range(2))
    assert first == second and library.state.stand_in is None
