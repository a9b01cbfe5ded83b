"""config.json with the keys of transformers 5 and of before: programs that read the file themselves know only the old ones.

    dtype             torch_dtype
    rope_parameters   rope_theta, and rope_scaling where positions are scaled
                      rope_local_base_freq, where sliding layers have a theta of their own (Gemma 3)

mistral.rs, for one, refuses a config without rope_theta.
"""

import json
from pathlib import Path
from typing import Any

from transformers import AutoConfig

from weitiao.core.files import write_text

GLOBAL, LOCAL = "full_attention", "sliding_attention"


def write_both_spellings(folder: Path) -> None:
    """Add the old keys to a folder's config.json; a key that would change what transformers reads is left out."""
    file = folder / "config.json"
    config = json.loads(file.read_text(encoding="utf-8"))
    before = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False).to_dict()
    for text in (
        with_older_keys(config),
        {**config, "torch_dtype": config["dtype"]} if "dtype" in config else config,
        config,
    ):
        write_text(file, json.dumps(text, indent=2, ensure_ascii=False) + "\n")
        if _meaning(
            AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False).to_dict()
        ) == _meaning(before):
            return


def with_older_keys(config: dict[str, Any]) -> dict[str, Any]:
    """The config, and those of its parts (text_config), with the old keys beside the new ones."""
    older = {key: with_older_keys(x) if key.endswith("_config") and isinstance(x, dict) else x for key, x in config.items()}
    if isinstance(config.get("dtype"), str):
        older.setdefault("torch_dtype", config["dtype"])
    rope = config.get("rope_parameters")
    if not isinstance(rope, dict):
        return older
    by_layer = all(isinstance(x, dict) for x in rope.values()) and bool(rope)
    whole = rope.get(GLOBAL) or next(iter(rope.values())) if by_layer else rope
    if "rope_theta" in whole:
        older.setdefault("rope_theta", whole["rope_theta"])
    if by_layer and "rope_theta" in rope.get(LOCAL, {}):
        older.setdefault("rope_local_base_freq", rope[LOCAL]["rope_theta"])
    if whole.get("rope_type", "default") != "default":
        older.setdefault("rope_scaling", {key: x for key, x in whole.items() if key != "rope_theta"})
    if "partial_rotary_factor" in whole:
        older.setdefault("partial_rotary_factor", whole["partial_rotary_factor"])
    return older


def _meaning(config: dict[str, Any]) -> dict[str, Any]:
    """What a config says, without old names of what it says anyway."""
    names = ("torch_dtype", "rope_theta", "rope_scaling", "rope_local_base_freq", "partial_rotary_factor", "_name_or_path")
    return {key: _meaning(x) if isinstance(x, dict) else x for key, x in config.items() if key not in names}
