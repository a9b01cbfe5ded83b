"""config.json is read unchanged by transformers, and has the keys that older readers look for."""

import json
from pathlib import Path

import pytest
from transformers import AutoConfig, LlamaConfig

from support.models import save_model
from weitiao.deploy.merging.config_spellings import with_older_keys, write_both_spellings

FAMILIES = ("llama", "qwen2", "qwen3", "mistral", "gpt2", "gemma", "gemma2", "gemma3_text", "t5", "bart", "bert")


@pytest.mark.parametrize("family", FAMILIES)
def test_transformers_reads_the_same(tmp_path: Path, family: str) -> None:
    folder = save_model(tmp_path / family, family)
    before, config = AutoConfig.from_pretrained(folder).to_dict(), json.loads((folder / "config.json").read_text())
    write_both_spellings(folder)
    after = json.loads((folder / "config.json").read_text())
    assert AutoConfig.from_pretrained(folder).to_dict().items() >= before.items()
    assert after.items() >= config.items() and after["torch_dtype"] == after["dtype"] == "float32"
    if "rope_parameters" in config:
        assert isinstance(after["rope_theta"], (int, float))
    if family == "gemma3_text":
        assert after["rope_local_base_freq"] == config["rope_parameters"]["sliding_attention"]["rope_theta"]


def test_scaled_positions(tmp_path: Path) -> None:
    rope = {"rope_type": "llama3", "rope_theta": 500000.0, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
            "original_max_position_embeddings": 8192}  # fmt: skip
    LlamaConfig(rope_parameters=rope, dtype="bfloat16").save_pretrained(tmp_path)
    before = AutoConfig.from_pretrained(tmp_path).to_dict()
    write_both_spellings(tmp_path)
    after = json.loads((tmp_path / "config.json").read_text())
    assert after["rope_theta"] == 500000.0 and after["rope_scaling"]["factor"] == 8.0
    assert AutoConfig.from_pretrained(tmp_path).rope_parameters == before["rope_parameters"]


def test_parts_of_a_config() -> None:
    config = {"dtype": "bfloat16", "text_config": {"dtype": "bfloat16", "rope_parameters": {"rope_theta": 1e6}}}
    assert with_older_keys(config)["text_config"]["rope_theta"] == 1e6
    assert with_older_keys({"rope_theta": 5, "rope_parameters": {"rope_theta": 6}})["rope_theta"] == 5
