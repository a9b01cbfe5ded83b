"""Merging: a plain folder that answers as the tuned model did, without weitiao."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModel, AutoModelForCausalLM, AutoTokenizer

from support.models import make_tokenizer, make_wordpiece_tokenizer
from weitiao.core.errors import ModelError
from weitiao.deploy.merging.merge import merge

IDS = torch.tensor([[5, 9, 40, 200, 17, 17, 3, 64]])


@torch.no_grad()
def logits(model: Any) -> torch.Tensor:
    return model(input_ids=IDS, use_cache=False).logits


METHODS = [
    {"name": "lora", "rank": 4},
    {"name": "lora", "rank": 4, "use_rslora": True, "target_modules": ["q_proj", "down_proj"]},
    {"name": "lora", "rank": 4, "bias": "all"},
    {"name": "lora", "rank": 4, "bias": "lora_only"},
    {"name": "full"},
]


@pytest.mark.parametrize("method", METHODS, ids=["lora", "rslora", "bias", "lora-bias", "full"])
@pytest.mark.parametrize("family", ["llama", "qwen2", "gpt2", "gemma"])
def test_merged_decoder_same_logits_in_transformers(
    open_model: Any, perturb_weights: Any, tiny_models: dict, tmp_path: Path, family: str, method: dict
) -> None:
    if family == "gpt2" and "target_modules" in method:
        method = {**method, "target_modules": ["c_attn", "c_proj"]}
    model = open_model(method, base=tiny_models[family])
    base = logits(model.model)
    perturb_weights(model)
    wanted = logits(model.model)
    assert (wanted - base).abs().max() > 0.1, "the test changes nothing"
    merged = merge(model, make_tokenizer(), tmp_path / "out")
    assert merged.gap <= 1e-4 and merged.same_top_token == 1.0
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "out").eval()
    torch.testing.assert_close(logits(again), wanted, rtol=1e-4, atol=1e-4)
    assert not [name for name, _ in again.named_parameters() if "lora" in name]


def test_merged_encoder_same_output_in_transformers(
    open_model: Any, perturb_weights: Any, tiny_models: dict, tmp_path: Path
) -> None:
    model = open_model({"name": "lora", "rank": 4}, base=tiny_models["bert"])
    with torch.no_grad():
        base = model.model(input_ids=IDS).last_hidden_state
        perturb_weights(model)
        wanted = model.model(input_ids=IDS).last_hidden_state
    assert (wanted - base).abs().max() > 0.1, "the test changes nothing"
    merged = merge(model, make_wordpiece_tokenizer(), tmp_path / "out")
    assert merged.gap <= 1e-4 and str(merged.message).startswith("hidden states differ by")
    with torch.no_grad():
        again = AutoModel.from_pretrained(tmp_path / "out").eval()(input_ids=IDS).last_hidden_state
    torch.testing.assert_close(again, wanted, rtol=1e-4, atol=1e-4)


def test_merged_model_opens_without_weitiao(train_tiny: Any, tmp_path: Path) -> None:
    from weitiao.pipeline import inference as results
    from weitiao.pipeline import merging

    run = train_tiny()
    merged = merging.merge_run(str(run.folder), str(tmp_path / "out"))
    assert "weitiao" not in (merged.folder / "config.json").read_text()
    code = (
        "import json, sys, torch; from transformers import AutoModelForCausalLM, AutoTokenizer\n"
        "model = AutoModelForCausalLM.from_pretrained(sys.argv[1]).eval(); AutoTokenizer.from_pretrained(sys.argv[1])\n"
        "with torch.no_grad(): out = model(input_ids=torch.tensor(json.loads(sys.argv[2]))).logits[0, -1, :9]\n"
        "assert 'weitiao' not in sys.modules; print(json.dumps(out.tolist()))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(merged.folder), json.dumps(IDS.tolist())], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    opened = results.open_model(str(run.folder), precision="fp32")
    assert json.loads(done.stdout) == pytest.approx(logits(opened.model.model)[0, -1, :9].tolist(), abs=1e-4)
    assert AutoTokenizer.from_pretrained(merged.folder).chat_template == make_tokenizer().chat_template


def test_unmergeable_method_refused(open_model: Any, tmp_path: Path) -> None:
    model = open_model()
    model.attachment.merge = None
    with pytest.raises(
        ModelError, match="this method cannot be merged; use the run folder with chat, generate or evaluate."
    ):
        merge(model, make_tokenizer(), tmp_path / "out")


def test_wrong_merge_refused(open_model: Any, perturb_weights: Any, tmp_path: Path) -> None:
    model = perturb_weights(open_model())
    fold = model.attachment.merge

    def spoil() -> None:
        fold()
        with torch.no_grad():
            model.model.get_input_embeddings().weight.mul_(1.1)

    model.attachment.merge = spoil
    with pytest.raises(ModelError, match="gives other outputs than the tuned one .gap .*do not use it"):
        merge(model, make_tokenizer(), tmp_path / "out")
