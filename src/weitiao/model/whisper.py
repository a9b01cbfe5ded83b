"""Whisper from a CTranslate2 file, its tokenizer and its config: the folder that transformers' own Whisper would have.

Radford et al. 2022, "Robust Speech Recognition via Large-Scale Weak Supervision", arXiv 2212.04356. The shapes are read
off the weights; what the vocabulary means, off the tokenizer; which tokens are never written, off CTranslate2's config.
"""

import json
from pathlib import Path

from transformers import (
    AutoTokenizer,
    GenerationConfig,
    WhisperConfig,
    WhisperFeatureExtractor,
    WhisperForConditionalGeneration,
)

from weitiao.core.errors import ModelError
from weitiao.model.model_bin import read_model_bin, whisper_weights

BYTES = 256


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
