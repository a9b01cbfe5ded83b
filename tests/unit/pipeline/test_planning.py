"""`weitiao plan`: what is said about memory, and what is refused."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModel, AutoModelForCausalLM

from support.command import weitiao
from weitiao.model.adapters.module_structure import architecture_of
from weitiao.pipeline.planning import find_config
from weitiao.plan.known_models import known_config, known_models


def planned(*args: str) -> dict[str, Any]:
    code, said = weitiao("plan", *args, "--json")
    assert code == 0, said
    return json.loads(said)


def sizes(plan: dict[str, Any]) -> dict[str, int]:
    return {x["name"]: x["bytes"] for x in plan["training"]["parts"]}


@pytest.mark.parametrize("name", sorted(known_models()))
def test_known_models_have_the_published_number_of_parameters(name: str) -> None:
    config = known_config(name)
    assert config is not None
    kind = AutoModelForCausalLM if architecture_of(config).kind == "decoder" else AutoModel
    with torch.device("meta"):
        model = kind.from_config(config)
    assert sum(p.numel() for p in model.parameters()) == known_models()[name]["parameters"]


@pytest.mark.parametrize(
    ("base", "layers"),
    [("meta-llama/Llama-2-7b-chat-hf", 32), ("Qwen/Qwen2.5-0.5B-Instruct", 24), ("modelscope:Qwen/Qwen3-8B", 36),
     ("google-bert/bert-base-chinese", 12), ("HuggingFaceTB/SmolLM2-135M-Instruct", 30)],
)  # fmt: skip
def test_hub_ids_of_known_models(base: str, layers: int) -> None:
    assert find_config(base).get_text_config().num_hidden_layers == layers


def test_full_tuning_by_hand() -> None:
    """4 bytes a weight, 4 a gradient, 8 of AdamW: arXiv 1910.02054, sec. 3, with weights in fp32."""
    plan = planned("--base", "Qwen/Qwen2.5-0.5B", "--method", "full", "--gpu", "80GB")
    n, parts = 494_032_768, sizes(plan)
    assert plan["parameters"] == n and plan["fits"]
    assert parts["trained"] == pytest.approx(4 * n, rel=1e-3) and parts["gradients"] == pytest.approx(4 * n, rel=1e-3)
    assert parts["optimizer"] == pytest.approx(8 * n, rel=1e-3) and "frozen" not in parts
    shared = sizes(
        planned("--base", "Qwen/Qwen2.5-0.5B", "--method", "full", "--gpu", "80GB", "--gpus", "4", "--sharding", "zero3")
    )
    for kind in ("trained", "gradients", "optimizer"):
        assert shared[kind] == pytest.approx(parts[kind] / 4, rel=1e-3)
    assert shared["activations"] == parts["activations"]


def test_four_bits_and_their_scales() -> None:
    """4.127 bits a quantized weight (arXiv 2305.14314, sec. 3); embeddings stay in 2 bytes."""
    frozen = sizes(planned("--base", "Qwen/Qwen2.5-0.5B", "--method", "qlora", "--gpu", "80GB"))["frozen"]
    embedding = 151_936 * 896
    assert frozen == pytest.approx(2 * embedding + (494_032_768 - embedding) * 4.127 / 8, rel=0.01)


def test_activations_grow_with_tokens_and_shrink_with_checkpointing() -> None:
    base = ("--base", "HuggingFaceTB/SmolLM2-135M", "--gpu", "24GB")
    one, two = (sizes(planned(*base, "--tokens", str(n)))["activations"] for n in (2048, 4096))
    assert two == pytest.approx(2 * one, rel=0.05)
    less = sizes(planned(*base, "--tokens", "4096", "train.gradient_checkpointing=on"))
    assert less["activations"] < 0.4 * two


def test_what_makes_it_fit() -> None:
    full = ("--base", "Qwen/Qwen2.5-0.5B", "--method", "full", "--gpu", "6GB")
    plan = planned(*full)
    assert not plan["fits"] and 1 <= len(plan["suggestions"]) <= 3
    assert all(x["total"] <= 0.95 * 6 * 2**30 and x["price"] for x in plan["suggestions"])
    again = planned(
        "--base", "Qwen/Qwen2.5-0.5B", "--gpu", "6GB", "--method", "full", *plan["suggestions"][0]["change"].split()
    )
    assert again["fits"] and again["training"]["total"] == plan["suggestions"][0]["total"]


def test_a_recipe_on_this_machine(recipe_file: Any) -> None:
    plan = planned(str(recipe_file()))
    assert plan["fits"] and plan["most_tokens"] > plan["training"]["tokens"]
    assert {"runtime", "activations", "allocator"} <= sizes(plan).keys()
    code, said = weitiao("plan", recipe_file())
    assert code == 0 and "it fits" in said and "█" in said


@pytest.mark.parametrize(
    ("args", "problem"),
    [
        ((), "give a recipe, or --base"),
        (("--base", "Qwen/Qwen2.5-7B", "--gpu", "a lot"), "as in 24GB"),
        (("--base", "Qwen/Qwen2.5-7B", "--sharding", "zero9"), "expected none, zero1"),
        (("--base", "Qwen/Qwen2.5-7B", "--method", "lore"), "lora"),
        (("--base", "bert-base-uncased", "--gpu", "8GB"), "needs a decoder"),
        (("--base", "Qwen/Qwen2.5-7B", "--gpu", "8GB", "method.rank=-1"), "rank"),
    ],
)
def test_bad_input(args: tuple[str, ...], problem: str) -> None:
    code, said = weitiao("plan", *args)
    assert code == 2 and problem in said


def test_a_config_that_is_damaged(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "llama"', encoding="utf-8")
    code, said = weitiao("plan", "--base", tmp_path)
    assert code != 0 and "config.json" in said


def test_an_unknown_id_while_offline() -> None:
    code, said = weitiao("plan", "--base", "nobody/nothing", "--gpu", "8GB")
    assert code != 0 and "Known without a download" in said and "qwen2.5-7b" in said


@pytest.mark.parametrize("change", ["method=bilora", "vocabulary={add: 100}", "regularizers=r_drop"])
def test_what_is_not_planned_is_said(change: str) -> None:
    code, said = weitiao("plan", "--base", "HuggingFaceTB/SmolLM2-135M", "--gpu", "24GB", change)
    assert code == 2 and "not planned yet" in said


def test_the_recipe_bounds_what_runs_at_once() -> None:
    base = ("--base", "HuggingFaceTB/SmolLM2-135M", "--gpu", "24GB")
    assert planned(*base)["training"]["tokens"] > 512
    assert planned(*base, "train.batch_size=1", "max_length=64")["training"]["tokens"] <= 64
    assert planned(*base, "train.micro_batch_tokens=2048")["training"]["tokens"] > 1024
