"""Whisper from a CTranslate2 file, its tokenizer and its config: the folder that transformers' own Whisper would have.

Radford et al. 2022, "Robust Speech Recognition via Large-Scale Weak Supervision", arXiv 2212.04356. The shapes are read
off the weights; what the vocabulary means, off the tokenizer; which tokens are never written, off CTranslate2's config.
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
from weitiao.model.loading.ctranslate2 import Stored, read_model_bin

BYTES = 256
Put = Callable[[str, Tensor], None]
MLP = (("linear_0", "fc1"), ("linear_1", "fc2"))


def write_whisper(file: Path, tokenizer: Path, config: Path, folder: Path) -> None:
    """A folder with weights (fp32), config, generation config, tokenizer and what makes features of sound.

    Args:
        file: CTranslate2's model.bin.
        tokenizer: its tokenizer.json.
        config: its config.json, which lists the tokens that are never written.

    Raises:
        ModelError: it is another model, or weights are missing or too many.
    """
    stored, theirs = read_model_bin(file), json.loads(config.read_text())
    weights = whisper_weights(stored)
    ids = {x["content"]: x["id"] for x in json.loads(tokenizer.read_text())["added_tokens"]}
    vocabulary, width = weights["proj_out.weight"].shape
    mels = weights["model.encoder.conv1.weight"].shape[1]
    layers = {
        half: sum(f"model.{half}.layers." in x and ".fc1.weight" in x for x in weights) for half in ("encoder", "decoder")
    }
    end, start = ids["<|endoftext|>"], ids["<|startoftranscript|>"]
    tokens = {"bos_token_id": end, "eos_token_id": end, "pad_token_id": end, "decoder_start_token_id": start}
    ours = WhisperConfig(
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
    model = WhisperForConditionalGeneration(ours)
    missing, strange = model.load_state_dict(weights, strict=False)
    if missing or strange:
        raise ModelError(f"base: {file} does not fit Whisper: missing {missing[:3]}, unknown {strange[:3]}.")
    model.generation_config = GenerationConfig(**tokens, **_generation(ids, theirs, ours))
    model.save_pretrained(folder)
    (folder / "tokenizer.json").write_text(json.dumps(mended(json.loads(tokenizer.read_text())), ensure_ascii=False))
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "WhisperTokenizer"}))
    AutoTokenizer.from_pretrained(folder, local_files_only=True).save_pretrained(folder)
    WhisperFeatureExtractor(feature_size=mels).save_pretrained(folder)


def mended(tokenizer: dict) -> dict:
    """A tokenizer.json whose first merge was lost (as a list's head line is), with it: the first token behind the 256 bytes
    is what the first merge makes. Without " t" the tokenizer writes " there" as " " and "there", as the model never does.
    """
    model = tokenizer["model"]
    first = next(token for token, i in model["vocab"].items() if i == BYTES)
    merges = [tuple(x.split(" ")) if isinstance(x, str) else tuple(x) for x in model["merges"]]
    if len(first) == 2 and not any(a + b == first for a, b in merges):
        merges.insert(0, (first[0], first[1]))
    return {**tokenizer, "model": {**model, "merges": [list(x) for x in merges]}}


def _generation(ids: dict[str, int], theirs: dict, config: WhisperConfig) -> dict:
    """What transformers' Whisper asks its generation config for."""
    several = config.vocab_size >= 51865  # English-only models have one token less
    known = {f"<|{x}|>" for x in ("transcribe", "translate")}
    languages = {name: i for name, i in ids.items() if i in set(theirs["lang_ids"]) and name not in known}
    plain = {
        "max_length": config.max_target_positions,
        "is_multilingual": several,
        "no_timestamps_token_id": ids["<|notimestamps|>"],
        "prev_sot_token_id": ids["<|startofprev|>"],
        "max_initial_timestamp_index": 50,
        "suppress_tokens": theirs["suppress_ids"],
        "begin_suppress_tokens": theirs["suppress_ids_begin"],
        "alignment_heads": theirs["alignment_heads"],
    }
    if not several:
        return plain
    return {**plain, "lang_to_id": languages, "task_to_id": {x: ids[f"<|{x}|>"] for x in ("translate", "transcribe")}}


# -- the weights by transformers' names -------------------------------------------------------------------------------


def whisper_weights(stored: Stored) -> dict[str, Tensor]:
    """The weights by transformers' names (WhisperForConditionalGeneration), in fp32.

    Queries, keys and values stand one below the other in one matrix; in cross attention, keys and values in a second one.

    Raises:
        ModelError: it is another model, or in whole numbers (int8), which cannot be trained.
    """
    if stored.spec != "WhisperSpec":
        raise ModelError(f"base: this CTranslate2 model is a {stored.spec}; only Whisper's are read.")
    if any(x.dtype in (torch.int8, torch.int16) and x.dim() > 1 for x in stored.weights.values()):
        raise ModelError("base: this CTranslate2 model is in whole numbers; take one in float16 or float32.")
    made: dict[str, Tensor] = {}

    def put(name: str, weight: Tensor) -> None:
        made[f"model.{name}"] = weight.float()

    for name in ("conv1", "conv2"):
        for part in ("weight", "bias"):
            put(f"encoder.{name}.{part}", stored.get(f"encoder/{name}/{part}"))
    put("decoder.embed_tokens.weight", stored.get("decoder/embeddings/weight"))
    for half in ("encoder", "decoder"):
        put(f"{half}.embed_positions.weight", stored.get(f"{half}/position_encodings/encodings"))
        _norm(stored, f"{half}/layer_norm", f"{half}.layer_norm", put)
        number = 0
        while f"{half}/layer_{number}/ffn/linear_0/weight" in stored.weights:
            _layer(stored, f"{half}/layer_{number}", f"{half}.layers.{number}", put)
            number += 1
    made["proj_out.weight"] = made["model.decoder.embed_tokens.weight"]
    return made


def _layer(stored: Stored, theirs: str, ours: str, put: Put) -> None:
    _norm(stored, f"{theirs}/ffn/layer_norm", f"{ours}.final_layer_norm", put)
    for there, here in MLP:
        for part in ("weight", "bias"):
            put(f"{ours}.{here}.{part}", stored.get(f"{theirs}/ffn/{there}/{part}"))
    _attention(stored, f"{theirs}/self_attention", f"{ours}.self_attn", 2, put)
    if f"{theirs}/attention/linear_0/weight" in stored.weights:
        _attention(stored, f"{theirs}/attention", f"{ours}.encoder_attn", 3, put)


def _attention(stored: Stored, theirs: str, ours: str, matrices: int, put: Put) -> None:
    """The last matrix is the output; those before it are q, k, v [3 D, D] together, as one matrix or as two."""
    _norm(stored, f"{theirs}/layer_norm", f"{ours}_layer_norm", put)
    for part in ("weight", "bias"):
        *before, out = (stored.get(f"{theirs}/linear_{i}/{part}") for i in range(matrices))
        for name, x in zip(("q_proj", "k_proj", "v_proj"), torch.cat(before).chunk(3)):
            if (name, part) != ("k_proj", "bias"):  # nought: Whisper's keys have none
                put(f"{ours}.{name}.{part}", x.clone())
        put(f"{ours}.out_proj.{part}", out)


def _norm(stored: Stored, theirs: str, ours: str, put: Put) -> None:
    put(f"{ours}.weight", stored.get(f"{theirs}/gamma"))
    put(f"{ours}.bias", stored.get(f"{theirs}/beta"))
