"""PEFT opens our adapters and we open PEFT's, with the same logits."""

import json
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from weitiao.core.errors import ModelError
from weitiao.core.trainable_model import reference_logits
from weitiao.model.adapters.peft_format import read_adapter_config, save_adapter
from weitiao.pipeline import inference as results

IDS = torch.tensor([[5, 9, 40, 200, 17, 17, 3, 64]])


@torch.no_grad()
def logits(model: Any) -> torch.Tensor:
    return model(input_ids=IDS, use_cache=False).logits


def stir(model: torch.nn.Module, part: str) -> None:
    torch.manual_seed(5)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if part in name and weight.requires_grad:
                weight.add_(torch.randn_like(weight) * 0.1)


OURS = [
    {},
    {"use_rslora": True, "rank": 9},
    {"target_modules": ["q_proj", "v_proj"]},
    {"target_modules": r".*layers\.[12]\..*(up|down)_proj"},
    {"bias": "all"},
    {"bias": "lora_only"},
    {"dropout": 0.3},
]


@pytest.mark.parametrize("settings", OURS, ids=str)
def test_peft_opens_our_adapter(
    open_model: Any, perturb_weights: Any, tiny_models: dict, tmp_path: Path, settings: dict
) -> None:
    base = tiny_models["qwen2"]  # its q, k and v have biases
    model = perturb_weights(open_model({"name": "lora", "rank": 4, **settings}, base=base))
    model.model.eval()
    assert save_adapter(model.attachment, tmp_path, str(base))
    plain = AutoModelForCausalLM.from_pretrained(base)
    theirs = peft.PeftModel.from_pretrained(plain, tmp_path).eval()
    wanted = logits(model.model)
    torch.testing.assert_close(logits(theirs), wanted, rtol=1e-5, atol=1e-5)
    assert (wanted - logits(AutoModelForCausalLM.from_pretrained(base))).abs().max() > 0.05


@pytest.mark.parametrize("family", ["llama", "qwen3", "mistral", "gpt2", "gemma"])
def test_peft_opens_our_adapter_every_family(
    open_model: Any, perturb_weights: Any, tiny_models: dict, tmp_path: Path, family: str
) -> None:
    model = perturb_weights(open_model(base=tiny_models[family]))
    save_adapter(model.attachment, tmp_path, str(tiny_models[family]))
    theirs = peft.PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(tiny_models[family]), tmp_path).eval()
    torch.testing.assert_close(logits(theirs), logits(model.model), rtol=1e-5, atol=1e-5)


THEIRS = [
    {"target_modules": "all-linear"},
    {"target_modules": ["q_proj", "v_proj"], "use_rslora": True},
    {"target_modules": ["q_proj"], "lora_alpha": 3, "r": 5},
    {"target_modules": ["q_proj", "gate_proj"], "bias": "all"},
    {"target_modules": ["q_proj", "gate_proj"], "bias": "lora_only"},
    {"target_modules": r".*\.0\.self_attn\.[qk]_proj"},
    {"target_modules": ["q_proj", "gate_proj"], "use_dora": True},
    {"target_modules": ["q_proj", "gate_proj"], "rank_pattern": {"q_proj": 2}, "lora_alpha": 4},
]


@pytest.mark.parametrize("settings", THEIRS, ids=str)
def test_opens_peft_adapter(tiny_models: dict, tmp_path: Path, settings: dict) -> None:
    base = tiny_models["qwen2"]
    config = peft.LoraConfig(task_type="CAUSAL_LM", **{"r": 4, **settings})
    model = peft.get_peft_model(AutoModelForCausalLM.from_pretrained(base), config).eval()
    stir(model, "")
    model.save_pretrained(tmp_path)
    opened = results.open_model(str(tmp_path), precision="fp32")
    torch.testing.assert_close(logits(opened.model.model), logits(model), rtol=1e-5, atol=1e-5)


OTHERS = [
    peft.IA3Config(task_type="CAUSAL_LM", target_modules=["q_proj", "down_proj"], feedforward_modules=["down_proj"]),
    peft.AdaLoraConfig(task_type="CAUSAL_LM", init_r=4, target_r=2, total_step=9, target_modules=["q_proj"]),
    peft.VeraConfig(task_type="CAUSAL_LM", r=8, target_modules=["q_proj", "v_proj"]),
    peft.LNTuningConfig(task_type="CAUSAL_LM"),
    peft.PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=5),
    peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=5),
    peft.LoHaConfig(task_type="CAUSAL_LM", r=4, target_modules=["q_proj"]),
]


@pytest.mark.parametrize("config", OTHERS, ids=lambda config: config.peft_type.value)
def test_opens_peft_adapter_other_methods(tiny_models: dict, tmp_path: Path, config: Any) -> None:
    base = tiny_models["qwen2"]
    model = peft.get_peft_model(AutoModelForCausalLM.from_pretrained(base), config).eval()
    torch.manual_seed(0)
    with torch.no_grad():
        for weight in model.parameters():
            if weight.requires_grad:
                weight.add_(torch.randn_like(weight) * 0.1)
    model.save_pretrained(tmp_path)
    opened = results.open_model(str(tmp_path), precision="fp32")
    ids = [5, 9, 30, 7, 44]
    theirs = model(input_ids=torch.tensor([ids])).logits[0, -len(ids) :]
    torch.testing.assert_close(reference_logits(opened.model, ids), theirs, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    "settings", [{"alpha_pattern": {"q_proj": 2}}, {"layers_to_transform": [0]}, {"modules_to_save": ["lm_head"]}]
)
def test_unsupported_peft_setting_refused(tiny_llama: Path, tmp_path: Path, settings: dict) -> None:
    config = peft.LoraConfig(task_type="CAUSAL_LM", r=4, target_modules=["q_proj"], **settings)
    peft.get_peft_model(AutoModelForCausalLM.from_pretrained(tiny_llama), config).save_pretrained(tmp_path)
    with pytest.raises(ModelError, match=f"uses {next(iter(settings))}, which weitiao's lora does not support"):
        results.open_model(str(tmp_path))


def test_unsupported_peft_type_refused(tiny_llama: Path, tmp_path: Path) -> None:
    config = peft.IA3Config(task_type="CAUSAL_LM", target_modules=["q_proj"], feedforward_modules=[])
    peft.get_peft_model(AutoModelForCausalLM.from_pretrained(tiny_llama), config).save_pretrained(tmp_path)
    about = tmp_path / "adapter_config.json"
    about.write_text(about.read_text().replace('"IA3"', '"UNHEARD_OF"'))
    with pytest.raises(ModelError, match="no method here reads PEFT adapters of type UNHEARD_OF"):
        results.open_model(str(tmp_path))


def test_pickle_adapter_refused(tiny_llama: Path, tmp_path: Path) -> None:
    config = peft.LoraConfig(task_type="CAUSAL_LM", r=4, target_modules=["q_proj"])
    peft.get_peft_model(AutoModelForCausalLM.from_pretrained(tiny_llama), config).save_pretrained(tmp_path)
    (tmp_path / "adapter_model.safetensors").unlink()
    torch.save({}, tmp_path / "adapter_model.bin")
    with pytest.raises(
        ModelError, match="contains no adapter_model.safetensors .pickle files such as adapter_model.bin are not"
    ):
        results.open_model(str(tmp_path))


def test_mismatched_tensors_refused(open_model: Any, tiny_llama: Path, tmp_path: Path) -> None:
    save_adapter(open_model().attachment, tmp_path, str(tiny_llama))
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    (tmp_path / "adapter_config.json").write_text(json.dumps({**config, "target_modules": ["q_proj"]}))
    with pytest.raises(ModelError, match="the adapter's tensors do not match its config: "):
        results.open_model(str(tmp_path))


def test_mismatched_rank_refused(open_model: Any, tiny_llama: Path, tmp_path: Path) -> None:
    save_adapter(open_model().attachment, tmp_path, str(tiny_llama))
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    (tmp_path / "adapter_config.json").write_text(json.dumps({**config, "r": 7}))
    with pytest.raises(ModelError):
        results.open_model(str(tmp_path))


def test_run_writes_adapter(train_tiny: Any, tiny_llama: Path) -> None:
    run = train_tiny()
    assert read_adapter_config(run.folder / "adapter")["base_model_name_or_path"] == str(tiny_llama)
    theirs = peft.PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(tiny_llama), run.folder / "adapter").eval()
    ours = results.open_model(str(run.folder), precision="fp32").model.model
    torch.testing.assert_close(logits(theirs), logits(ours), rtol=1e-5, atol=1e-5)


def test_full_has_no_adapter(train_tiny: Any) -> None:
    run = train_tiny(method="full")
    assert run.is_finished and not (run.folder / "adapter").exists()


def test_loaded_model_in_eval_mode(open_model: Any, perturb_weights: Any) -> None:
    model = perturb_weights(open_model({"name": "lora", "rank": 4, "dropout": 0.5})).model
    assert not model.training and torch.equal(logits(model), logits(model))


def test_damaged_adapter_refused(train_tiny: Any) -> None:
    folder = train_tiny(train={"steps": 1}).folder / "adapter"
    file = folder / "adapter_model.safetensors"
    tensors = load_file(file)
    first = next(iter(tensors))
    save_file(tensors | {first: torch.full_like(tensors[first], torch.nan)}, file, {"format": "pt"})
    with pytest.raises(ModelError, match=f"the adapter's weights in {first} are not finite numbers"):
        results.open_model(str(folder))
    file.write_bytes(file.read_bytes()[:1000])
    with pytest.raises(ModelError, match="adapter_model.safetensors is missing or damaged"):
        results.open_model(str(folder))
