"""Types of tensors: llama.cpp's mix, its fallbacks, its bytes; effective bits."""

from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from transformers import AutoTokenizer

from support.llama_cpp import make_known, save_decoder
from weitiao.core.errors import RecipeError
from weitiao.core.tensor_files import check_gguf
from weitiao.deploy.export.gguf.quantization import FILE_TYPES, K_QUANTS, QuantizationPlan, quantize
from weitiao.deploy.export.gguf.read_back import largest_error, size_note
from weitiao.deploy.export.gguf.write import write_model

Q = gguf.GGMLQuantizationType
LARGEST_ERROR = {"f32": 0, "f16": 1e-3, "bf16": 4e-3, "q8_0": 0.01, "q6_k": 0.03, "q5_k_m": 0.06, "q4_k_m": 0.09}
LLAMA_CPP_BYTES = {  # of `wave(256)`, by quantize_q4_K and the like of llama.cpp b11549 (ggml-quants.c, gcc -O2)
    Q.Q4_K: "99181124f1f4bff6fdfcffbd32661fd2fb768bb76840b82b6676bfb5d32a560599767bc1bac9bc94aaa59a78f70d7778988b"
    "6975703699c87aa6bdbe56195a85acac4b5726c97467b24d37e8067b8b6177515f4d781505725d553998d93b857eaf358829"
    "b96763ac90b785eb887ca3ae9d659068e5f7528e982fc6e9287482a03a0645998282442508d52b6b8e7081b6",
    Q.Q5_K: "2b141924f8f9fff6fffefebc357745c5ef0c975291800eedd4489ffe7215a4987f0c35d2b38f03366ba6637cf235acb1e6fc"
    "166ec0807f56ddfd6e6ab754bd1a31edf69364937939446a24effe09fee03218e3faf07e44a2f67d8d8fbe24c62b7a7b87bf"
    "4da4f8d094ac7ff20ef827d20fc2cf8bf22a0b05cbca7340c4871bfc6f7a125384eee76a509f1af7200a565d2adb32c1dbff"
    "b51c313f9ec350f90641650d7a320504894c00cb47d61cf0036d",
    Q.Q6_K: "6726775a1cd19c58e8b7b6f3dd94d863afb5290095a2ff1d45fff66bd750390c3afc9fbab6ae5b29b8bbeaea33084320a3aa"
    "fd3f7af0bc83d519d29a0cb01c8ab09ad0d79b1a5965c80b489ef7d148e5b0ab5b68b792318b2f610ad1bf0b62a471085821"
    "3f0541805929b049f9c0b33f03d1dd35a0a4c444d70e3e117cc095c5ae7566594510a9e26595bbb95c226591b9b536681aae"
    "4a688a781ae51d73b5454aa774942522b24b54c625199d657a74e4de956d454a9bd4e712f6a17548471480968b8881969689"
    "6b6b8f71679976621b8c",
}


def wave(n: int) -> np.ndarray:
    """[1, n]: numbers without a pattern, the same everywhere."""
    i = np.arange(1, n + 1, dtype=np.float64)
    return (np.sin(i * i) * (1 + i % 7) / 7).astype(np.float32)[None]


@pytest.mark.parametrize("file_type", FILE_TYPES)
def test_every_type_is_written_and_read_back(file_type: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if FILE_TYPES[file_type][1] in K_QUANTS:
        pytest.importorskip("libgguf", reason="K-quants need libgguf: pip install libgguf")
    shape = {"hidden_size": 256, "intermediate_size": 512, "num_hidden_layers": 2, "num_attention_heads": 32}
    folder = save_decoder(tmp_path / "model", "llama", **shape)
    tokenizer: Any = AutoTokenizer.from_pretrained(folder)
    make_known(monkeypatch, tmp_path, tokenizer)
    file = tmp_path / "model.gguf"
    plan = write_model(folder, file, file_type, tokenizer, (2,), "model")
    check_gguf(file)
    error, _ = largest_error(file, folder)
    assert error <= LARGEST_ERROR.get(file_type, 0.12)
    tensors = gguf.GGUFReader(file).tensors
    assert plan.bytes == sum(x.n_bytes for x in tensors) and plan.weights == sum(x.n_elements for x in tensors)
    assert plan.types == {name: sum(x.tensor_type.name == name for x in tensors) for name in plan.types}
    assert f"{plan.bits:.2f} bits a weight" in str(size_note(file, plan)) and not plan.fallbacks


def test_mix_of_q4_k_m_is_that_of_llama_cpp() -> None:
    pytest.importorskip("libgguf", reason="K-quants need libgguf: pip install libgguf")
    plan = QuantizationPlan.make("q4_k_m", 30, tied=False)
    more_bits = [i for i in range(30) if plan.type_of(f"blk.{i}.attn_v.weight", (256, 256)) == Q.Q6_K]
    assert more_bits == [0, 1, 2, 5, 8, 11, 14, 17, 20, 23, 26, 27, 28, 29]  # of b11549: n/8 = 3, 7n/8 = 26
    assert plan.type_of("blk.5.ffn_down.weight", (256, 512)) == Q.Q6_K
    assert plan.type_of("blk.4.ffn_down.weight", (256, 512)) == plan.type_of("blk.5.ffn_up.weight", (512, 256)) == Q.Q4_K
    assert plan.type_of("output.weight", (320, 256)) == Q.Q6_K and plan.type_of("token_embd.weight", (320, 256)) == Q.Q4_K
    assert plan.type_of("blk.0.attn_norm.weight", (256,)) == Q.F32
    assert not plan.fallbacks


def test_rows_that_do_not_fit_blocks_fall_back_and_are_counted() -> None:
    pytest.importorskip("libgguf", reason="K-quants need libgguf: pip install libgguf")
    plan = QuantizationPlan.make("q4_k_m", 30, tied=True)
    assert plan.type_of("blk.4.attn_q.weight", (576, 576)) == Q.Q5_0
    assert plan.type_of("blk.0.attn_v.weight", (192, 576)) == Q.Q8_0
    assert plan.type_of("blk.4.ffn_up.weight", (64, 40)) == Q.F16
    assert plan.fallbacks == 3
    assert plan.type_of("token_embd.weight", (49152, 576)) == Q.Q8_0  # the output's type, no fallback in llama.cpp either
    assert plan.fallbacks == 3
    plain = QuantizationPlan.make("q8_0", 30, tied=True)
    assert plain.type_of("blk.4.ffn_up.weight", (64, 40)) == Q.F16 and plain.fallbacks == 1


@pytest.mark.parametrize("kind", LLAMA_CPP_BYTES, ids=lambda x: x.name)
def test_k_quants_have_the_bytes_of_llama_cpp(kind: Q) -> None:
    pytest.importorskip("libgguf", reason="K-quants need libgguf: pip install libgguf")
    got, expected = quantize(wave(256), kind).tobytes(), bytes.fromhex(LLAMA_CPP_BYTES[kind])
    same = sum(a == b for a, b in zip(got, expected, strict=True))
    assert same >= len(expected) - 1, f"{len(expected) - same} of {len(expected)} bytes differ"


def test_unknown_type_names_the_known_ones() -> None:
    with pytest.raises(RecipeError, match="q3_k is none of: f32, f16"):
        QuantizationPlan.make("q3_k", 2, tied=True)
