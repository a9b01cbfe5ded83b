"""Convert a Whisper in CTranslate2's format to the folder that transformers' own Whisper has.

Radford et al. 2022, "Robust Speech Recognition via Large-Scale Weak Supervision", arXiv 2212.04356. Shapes come from the
weights, special tokens from the tokenizer, suppressed tokens from CTranslate2's config.
"""

import json
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor
from transformers import (
    AutoTokenizer,
    GenerationConfig,
    WhisperConfig,
    WhisperFeatureExtractor,
    WhisperForConditionalGeneration,
)

from weitiao.core.errors import ModelError
from weitiao.model.loading.ctranslate2 import StoredModel, read_model_bin

NUM_BYTES = 256  # byte-level tokens at the start of the vocabulary
MULTILINGUAL_VOCABULARY = 51865  # English-only models have one token less
AddWeight = Callable[[str, Tensor], None]
MLP = (("linear_0", "fc1"), ("linear_1", "fc2"))


def write_whisper(file: Path, tokenizer: Path, config: Path, folder: Path) -> None:
    """Write a folder with fp32 weights, config, generation config, tokenizer and feature extractor.

    Args:
        file: CTranslate2's model.bin.
        tokenizer: its tokenizer.json.
        config: its config.json, which lists the suppressed tokens.

    Raises:
        ModelError: it is another model, or it has missing or unknown weights.
    """
    stored, source_config = read_model_bin(file), json.loads(config.read_text())
    weights = whisper_weights(stored)
    ids = {x["content"]: x["id"] for x in json.loads(tokenizer.read_text())["added_tokens"]}
    vocabulary, width = weights["proj_out.weight"].shape
    mels = weights["model.encoder.conv1.weight"].shape[1]
    layers = {
        side: sum(f"model.{side}.layers." in x and ".fc1.weight" in x for x in weights) for side in ("encoder", "decoder")
    }
    end, start = ids["<|endoftext|>"], ids["<|startoftranscript|>"]
    tokens = {"bos_token_id": end, "eos_token_id": end, "pad_token_id": end, "decoder_start_token_id": start}
    whisper_config = WhisperConfig(
        vocab_size=vocabulary,
        num_mel_bins=mels,
        d_model=width,
        encoder_layers=layers["encoder"],
        decoder_layers=layers["decoder"],
        encoder_attention_heads=int(stored.get("encoder/num_heads")),
        decoder_attention_heads=int(stored.get("decoder/num_heads")),
        encoder_ffn_dim=weights["model.encoder.layers.0.fc1.weight"].shape[0],
        decoder_ffn_dim=weights["model.decoder.layers.0.fc1.weight"].shape[0],
        max_source_positions=weights["model.encoder.embed_positions.weight"].shape[0],
        max_target_positions=weights["model.decoder.embed_positions.weight"].shape[0],
        **tokens,
    )
    model = WhisperForConditionalGeneration(whisper_config)
    missing, unknown = model.load_state_dict(weights, strict=False)
    if missing or unknown:
        raise ModelError(
            "base: {file} is not a Whisper that transformers knows: missing weights {missing}, unknown weights {unknown}",
            file=file,
            missing=missing[:3],
            unknown=unknown[:3],
        )
    model.generation_config = GenerationConfig(**tokens, **_generation(ids, source_config, whisper_config))
    model.save_pretrained(folder)
    (folder / "tokenizer.json").write_text(
        json.dumps(with_first_merge(json.loads(tokenizer.read_text())), ensure_ascii=False)
    )
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "WhisperTokenizer"}))
    AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False).save_pretrained(folder)
    WhisperFeatureExtractor(feature_size=mels).save_pretrained(folder)


def with_first_merge(tokenizer: dict) -> dict:
    """A tokenizer.json with its first merge restored, which some conversions lost with the header line.

    The first token after the 256 bytes is the result of the first merge. Without " t" the tokenizer splits " there" into
    " " and "there", which the model has never seen.
    """
    model = tokenizer["model"]
    first = next(token for token, i in model["vocab"].items() if i == NUM_BYTES)
    merges = [tuple(x.split(" ")) if isinstance(x, str) else tuple(x) for x in model["merges"]]
    if len(first) == 2 and not any(a + b == first for a, b in merges):
        merges.insert(0, (first[0], first[1]))
    return {**tokenizer, "model": {**model, "merges": [list(x) for x in merges]}}


def _generation(ids: dict[str, int], source_config: dict, config: WhisperConfig) -> dict:
    """The settings that transformers' Whisper reads from its generation config."""
    multilingual = config.vocab_size >= MULTILINGUAL_VOCABULARY
    tasks = {f"<|{x}|>" for x in ("transcribe", "translate")}
    languages = {name: i for name, i in ids.items() if i in set(source_config["lang_ids"]) and name not in tasks}
    settings = {
        "max_length": config.max_target_positions,
        "is_multilingual": multilingual,
        "no_timestamps_token_id": ids["<|notimestamps|>"],
        "prev_sot_token_id": ids["<|startofprev|>"],
        "max_initial_timestamp_index": 50,
        "suppress_tokens": source_config["suppress_ids"],
        "begin_suppress_tokens": source_config["suppress_ids_begin"],
        "alignment_heads": source_config["alignment_heads"],
    }
    if not multilingual:
        return settings
    return {**settings, "lang_to_id": languages, "task_to_id": {x: ids[f"<|{x}|>"] for x in ("translate", "transcribe")}}


# -- weight names -----------------------------------------------------------------------------------------------------


def whisper_weights(stored: StoredModel) -> dict[str, Tensor]:
    """The weights under the names of WhisperForConditionalGeneration, in fp32.

    CTranslate2 stacks the rows of queries, keys and values in one matrix; in cross attention, keys and values in another.

    Raises:
        ModelError: it is another model, or an integer one (int8), which cannot be trained.
    """
    if stored.spec != "WhisperSpec":
        raise ModelError("base: this CTranslate2 model is a {spec}; only WhisperSpec is supported", spec=stored.spec)
    if any(x.dtype in (torch.int8, torch.int16) and x.dim() > 1 for x in stored.weights.values()):
        raise ModelError("base: this CTranslate2 model has integer weights; use one in float16 or float32")
    weights: dict[str, Tensor] = {}

    def add(name: str, weight: Tensor) -> None:
        weights[f"model.{name}"] = weight.float()

    for name in ("conv1", "conv2"):
        for part in ("weight", "bias"):
            add(f"encoder.{name}.{part}", stored.get(f"encoder/{name}/{part}"))
    add("decoder.embed_tokens.weight", stored.get("decoder/embeddings/weight"))
    for side in ("encoder", "decoder"):
        add(f"{side}.embed_positions.weight", stored.get(f"{side}/position_encodings/encodings"))
        _norm(stored, f"{side}/layer_norm", f"{side}.layer_norm", add)
        number = 0
        while f"{side}/layer_{number}/ffn/linear_0/weight" in stored.weights:
            _layer(stored, f"{side}/layer_{number}", f"{side}.layers.{number}", add)
            number += 1
    weights["proj_out.weight"] = weights["model.decoder.embed_tokens.weight"]
    return weights


def _layer(stored: StoredModel, source: str, target: str, add: AddWeight) -> None:
    _norm(stored, f"{source}/ffn/layer_norm", f"{target}.final_layer_norm", add)
    for source_layer, target_layer in MLP:
        for part in ("weight", "bias"):
            add(f"{target}.{target_layer}.{part}", stored.get(f"{source}/ffn/{source_layer}/{part}"))
    _attention(stored, f"{source}/self_attention", f"{target}.self_attn", 2, add)
    if f"{source}/attention/linear_0/weight" in stored.weights:
        _attention(stored, f"{source}/attention", f"{target}.encoder_attn", 3, add)


def _attention(stored: StoredModel, source: str, target: str, matrices: int, add: AddWeight) -> None:
    """The last matrix is the output projection; those before it are q, k, v [3 D, D] together, in one matrix or two."""
    _norm(stored, f"{source}/layer_norm", f"{target}_layer_norm", add)
    for part in ("weight", "bias"):
        *projections, out = (stored.get(f"{source}/linear_{i}/{part}") for i in range(matrices))
        for name, x in zip(("q_proj", "k_proj", "v_proj"), torch.cat(projections).chunk(3)):
            if (name, part) != ("k_proj", "bias"):  # zero: Whisper's keys have no bias
                add(f"{target}.{name}.{part}", x.clone())
        add(f"{target}.out_proj.{part}", out)


def _norm(stored: StoredModel, source: str, target: str, add: AddWeight) -> None:
    add(f"{target}.weight", stored.get(f"{source}/gamma"))
    add(f"{target}.bias", stored.get(f"{source}/beta"))
