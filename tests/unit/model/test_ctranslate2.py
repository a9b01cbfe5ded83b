"""CTranslate2's model.bin: what was written is read, by transformers' names; a torn or strange file is one sentence."""

import json
import struct
from pathlib import Path

import pytest
import torch
from torch import Tensor
from transformers import AutoTokenizer, WhisperForConditionalGeneration

from support.speech import save_whisper
from weitiao.core.errors import ModelError
from weitiao.model.loading.ctranslate2 import read_model_bin
from weitiao.model.loading.whisper import whisper_weights, with_first_merge, write_whisper

KINDS = {torch.float32: 0, torch.int8: 1, torch.float16: 4}


def write_bin(file: Path, weights: dict[str, Tensor], aliases: dict[str, str], spec: str = "WhisperSpec") -> Path:
    """As CTranslate2 writes it."""

    def text(x: str) -> bytes:
        return struct.pack("<H", len(x) + 1) + x.encode() + b"\0"

    out = struct.pack("<I", 6) + text(spec) + struct.pack("<II", 3, len(weights))
    for name, x in weights.items():
        raw = x.contiguous().numpy().tobytes()
        out += (
            text(name)
            + struct.pack(f"<B{x.dim()}I", x.dim(), *x.shape)
            + struct.pack("<BI", KINDS[x.dtype], len(raw))
            + raw
        )
    out += struct.pack("<I", len(aliases)) + b"".join(text(a) + text(b) for a, b in aliases.items())
    file.write_bytes(out)
    return file


def theirs(model: WhisperForConditionalGeneration) -> dict[str, Tensor]:
    """The weights of a Whisper under CTranslate2's names: q, k and v stacked, zero biases of keys."""
    ours, made = {name.removeprefix("model."): x for name, x in model.state_dict().items()}, {}

    def norm(there: str, here: str) -> None:
        made[f"{there}/gamma"], made[f"{there}/beta"] = ours[f"{here}.weight"], ours[f"{here}.bias"]

    def attention(there: str, here: str, parts: list[list[str]]) -> None:
        norm(f"{there}/layer_norm", f"{here}_layer_norm")
        for i, names in enumerate(parts):
            made[f"{there}/linear_{i}/weight"] = torch.cat([ours[f"{here}.{x}.weight"] for x in names])
            zero = torch.zeros(len(ours[f"{here}.k_proj.weight"]))
            made[f"{there}/linear_{i}/bias"] = torch.cat([ours.get(f"{here}.{x}.bias", zero) for x in names])

    made["decoder/embeddings/weight"] = ours["decoder.embed_tokens.weight"]
    for name in ("conv1", "conv2"):
        made |= {f"encoder/{name}/{part}": ours[f"encoder.{name}.{part}"] for part in ("weight", "bias")}
    for half, layers in (("encoder", 2), ("decoder", 2)):
        made[f"{half}/position_encodings/encodings"] = ours[f"{half}.embed_positions.weight"]
        norm(f"{half}/layer_norm", f"{half}.layer_norm")
        for i in range(layers):
            there, here = f"{half}/layer_{i}", f"{half}.layers.{i}"
            norm(f"{there}/ffn/layer_norm", f"{here}.final_layer_norm")
            for a, b in (("linear_0", "fc1"), ("linear_1", "fc2")):
                made |= {f"{there}/ffn/{a}/{part}": ours[f"{here}.{b}.{part}"] for part in ("weight", "bias")}
            attention(f"{there}/self_attention", f"{here}.self_attn", [["q_proj", "k_proj", "v_proj"], ["out_proj"]])
            if half == "decoder":
                parts = [["q_proj"], ["k_proj", "v_proj"], ["out_proj"]]
                attention(f"{there}/attention", f"{here}.encoder_attn", parts)
    heads = {f"{half}/num_heads": torch.tensor(4, dtype=torch.int8) for half in ("encoder", "decoder")}
    return {**{name: x.clone() for name, x in made.items()}, **heads}


@pytest.fixture
def whisper(tmp_path: Path) -> Path:
    return save_whisper(tmp_path / "whisper")


def test_weights_restored_by_name(whisper: Path, tmp_path: Path) -> None:
    model = WhisperForConditionalGeneration.from_pretrained(whisper)
    weights = theirs(model)
    alias = {"decoder/projection/weight": "decoder/embeddings/weight"}
    stored = read_model_bin(write_bin(tmp_path / "model.bin", weights, alias))
    assert torch.equal(stored.get("decoder/projection/weight"), stored.get("decoder/embeddings/weight"))
    made = whisper_weights(stored)
    wanted = model.state_dict()
    assert made.keys() == wanted.keys() and all(torch.equal(x, wanted[name]) for name, x in made.items())


def test_converted_folder_is_whisper(whisper: Path, tmp_path: Path) -> None:
    """It opens with plain transformers, and answers as the model that it was made of."""
    model = WhisperForConditionalGeneration.from_pretrained(whisper)
    tokens = json.loads((whisper / "tokenizer.json").read_text())
    extra = {**tokens["added_tokens"][-1], "id": len(AutoTokenizer.from_pretrained(whisper)), "content": "<|startofprev|>"}
    (tmp_path / "tokenizer.json").write_text(json.dumps({**tokens, "added_tokens": [*tokens["added_tokens"], extra]}))
    told = {"lang_ids": [], "suppress_ids": [1], "suppress_ids_begin": [2], "alignment_heads": [[0, 0]]}
    (tmp_path / "config.json").write_text(json.dumps(told))
    file = write_bin(tmp_path / "model.bin", theirs(model), {})
    write_whisper(file, tmp_path / "tokenizer.json", tmp_path / "config.json", tmp_path / "made")
    made = WhisperForConditionalGeneration.from_pretrained(tmp_path / "made")
    sound, ids = torch.rand(1, 80, 100), torch.tensor([[5, 6, 7]])
    one, other = (x.eval()(input_features=sound, decoder_input_ids=ids).logits for x in (model, made))
    assert torch.equal(one, other) and made.generation_config.suppress_tokens == [1]


@pytest.mark.parametrize(
    ("harm", "words"),
    [
        (lambda raw: raw[:-9], "ends too early"),
        (lambda raw: raw[:3], "ends too early"),
        (lambda raw: raw + b"x", "bytes after its end"),
        (lambda raw: b"\x02" + raw[1:], "version is 2"),
        (lambda raw: raw.replace(b"\x00\x04", b"\x00\x09", 1), "."),
    ],
)
def test_truncated_file_refused(whisper: Path, tmp_path: Path, harm, words: str) -> None:
    half = {"a/weight": torch.ones(3, 2).half(), "b/weight": torch.ones(4)}
    file = write_bin(tmp_path / "model.bin", half, {"c": "a/weight"})
    file.write_bytes(harm(file.read_bytes()))
    with pytest.raises(ModelError, match=words):
        read_model_bin(file).get("decoder/embeddings/weight")


def test_other_model_refused(tmp_path: Path) -> None:
    other = read_model_bin(write_bin(tmp_path / "a.bin", {"x": torch.ones(2)}, {}, spec="TransformerSpec"))
    with pytest.raises(ModelError, match="is a TransformerSpec; only WhisperSpec"):
        whisper_weights(other)
    whole = read_model_bin(write_bin(tmp_path / "b.bin", {"x": torch.ones(2, 2, dtype=torch.int8)}, {}))
    with pytest.raises(ModelError, match="integer weights"):
        whisper_weights(whole)


def test_missing_first_merge_restored(whisper: Path) -> None:
    """The multilingual package's tokenizer lacks it; one that has it stays as it is."""
    vocabulary = {chr(0x100 + i): i for i in range(256)} | {"\u0120t": 256, "\u0120th": 257}
    lost = {"model": {"vocab": vocabulary, "merges": ["\u0120t h"]}}
    assert with_first_merge(lost)["model"]["merges"] == [["\u0120", "t"], ["\u0120t", "h"]]
    assert with_first_merge(with_first_merge(lost)) == with_first_merge(lost)
    assert AutoTokenizer.from_pretrained(whisper)("fox").input_ids
