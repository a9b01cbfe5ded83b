"""Every family in GGUF answers in llama.cpp as in transformers, and its tokenizer gives the same ids."""

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from support.llama_cpp import make_known, save_decoder
from weitiao.core.errors import ModelError
from weitiao.data.vocabulary_extension.extend import extended, learn
from weitiao.deploy.export.gguf.families import FAMILIES
from weitiao.deploy.export.gguf.write import write_model
from weitiao.deploy.openers.gguf import GGUFForm
from weitiao.deploy.verification.fidelity import AnswerRow

pytest.importorskip("xllamacpp", reason="llama.cpp is the judge: pip install xllamacpp")
IDS = [5, 9, 40, 200, 17, 17, 3, 64, 300, 21, 7, 8, 250, 33]
LLAMA3_ROPE = {
    "rope_type": "llama3", "rope_theta": 10000.0, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 16,
}  # fmt: skip
YARN = {"rope_type": "yarn", "rope_theta": 10000.0, "factor": 4.0, "original_max_position_embeddings": 64}
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    **{family: (family, {}) for family in FAMILIES},
    "llama-tied": ("llama", {"tie_word_embeddings": True}),
    "llama-biases": ("llama", {"attention_bias": True, "mlp_bias": True}),
    "llama-wide-heads": ("llama", {"head_dim": 16}),
    "llama-rope-linear": ("llama", {"rope_parameters": {"rope_type": "linear", "rope_theta": 10000.0, "factor": 2.0}}),
    "llama-rope-llama3": ("llama", {"rope_parameters": LLAMA3_ROPE}),
    "llama-rope-yarn": ("llama", {"rope_parameters": YARN}),
    "llama-theta": ("llama", {"rope_parameters": {"rope_type": "default", "rope_theta": 500.0}}),
    "qwen2-tied": ("qwen2", {"tie_word_embeddings": True}),
    "gemma-theta": ("gemma", {"rope_parameters": {"rope_type": "default", "rope_theta": 500.0}}),
}
HARD = (
    "the quick brown fox", " jumps  over\n\nthe   lazy dog", "I've told 3333 you'RE 12,345.67!", "敏捷的 boxes 你好 🚀",
    "a\tb \t c\r\n", "世界今天天气", "...---===", "Ünïcödé ꙮ 🧑‍🚀",
)  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_llama_cpp_gives_the_same_probabilities(case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    family, changes = CASES[case]
    folder = save_decoder(tmp_path / "model", family, **changes)
    tokenizer: Any = AutoTokenizer.from_pretrained(folder)
    make_known(monkeypatch, tmp_path, tokenizer)
    stop = int(tokenizer.convert_tokens_to_ids("<end_of_turn>" if "gemma" in family else "<|im_end|>"))
    file = tmp_path / "model.gguf"
    write_model(folder, file, "f32", tokenizer, (stop,), case)
    model: Any = AutoModelForCausalLM.from_pretrained(folder).eval()
    with torch.no_grad():
        expected = model(torch.tensor([IDS[:-1]])).logits[0, 1:].log_softmax(-1)
    form = GGUFForm(file)
    try:
        got = form.log_probs([AnswerRow(IDS[:2], IDS[2:])])[0][:, : expected.shape[1]]
        assert form.kind == "gguf_f32" and stop in form.stop_ids
        assert form.engine.loaded is not None, "the library's interface is another one: verification is 16 times slower"
        alone = torch.stack([form.engine.next_log_probs(IDS[:t], form.vocabulary) for t in (2, len(IDS) - 1)])
        assert torch.allclose(got[[0, -1]], alone[:, : got.shape[1]], atol=2e-4), "one forward pass against the server"
        kl = (expected.exp() * (expected - got)).sum(-1)
        assert float(kl.abs().max()) <= 1e-5, kl
        best, second = expected.topk(2).values.unbind(-1)
        assert torch.equal(got.argmax(-1)[best - second > 1e-3], expected.argmax(-1)[best - second > 1e-3])
        texts = [text for text in HARD if form.engine.tokenize(text) != tokenizer(text, add_special_tokens=False).input_ids]
        assert not texts
        messages = [{"role": "user", "content": "the fox"}, {"role": "assistant", "content": "asks"}]
        messages.append({"role": "user", "content": "what time is it"})
        options: dict[str, Any] = {"add_generation_prompt": True, "return_dict": False}
        assert form.template_ids(messages) == list(tokenizer.apply_chat_template(messages, **options))
    finally:
        form.close()


REFUSED: dict[str, tuple[str, dict[str, Any], str]] = {
    "activation": ("llama", {"hidden_act": "gelu"}, "computes silu"),
    "rope": (
        "llama",
        {"rope_parameters": {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0}},
        "RoPE of type dynamic",
    ),
    "scale": ("gemma2", {"query_pre_attn_scalar": 77}, "query_pre_attn_scalar"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_llama_cpp_has_no_key_for_is_refused(case: str, tmp_path: Path) -> None:
    family, changes, message = REFUSED[case]
    folder = save_decoder(tmp_path / "model", family, **changes)
    with pytest.raises(ModelError, match=message):
        write_model(folder, tmp_path / "x.gguf", "f16", AutoTokenizer.from_pretrained(folder), (1,), "x")
    assert not (tmp_path / "x.gguf").exists()


def test_new_merges_travel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A base that llama.cpp knows, with more merges: its pre-tokenizer is still proven, and the ids are the same."""
    base = save_decoder(tmp_path / "base", "llama")
    old: Any = AutoTokenizer.from_pretrained(base)
    make_known(monkeypatch, tmp_path, old)
    texts = ["我们在图书馆看书。", "图书馆里有很多书，我们都喜欢。", "他们在看猫咪，猫咪喜欢图书馆！"]
    extended(old, learn(old, texts * 3, 20).merges).save_pretrained(tmp_path / "model")
    tokenizer: Any = AutoTokenizer.from_pretrained(tmp_path / "model")
    model: Any = AutoModelForCausalLM.from_pretrained(base).eval()
    model.resize_token_embeddings(len(tokenizer))
    model.save_pretrained(tmp_path / "model")
    file = tmp_path / "model.gguf"
    write_model(tmp_path / "model", file, "f32", tokenizer, (2,), "larger")
    form = GGUFForm(file)
    try:
        for text in (*texts, "the fox 图书馆, and 我们", "the quick brown fox's 12 boxes"):
            ids = tokenizer(text, add_special_tokens=False).input_ids
            assert form.engine.tokenize(text) == ids
        ids = tokenizer(texts[1]).input_ids
        assert max(ids) >= len(old)
        with torch.no_grad():
            expected = model(torch.tensor([ids[:-1]])).logits[0, 1:].log_softmax(-1)
        got = form.log_probs([AnswerRow(ids[:2], ids[2:])])[0][:, : expected.shape[1]]
        assert float((expected.exp() * (expected - got)).sum(-1).abs().max()) <= 1e-5
    finally:
        form.close()


def test_unknown_pre_tokenizer_is_refused(tiny_llama: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="no pre-tokenizer that is proven"):
        write_model(tiny_llama, tmp_path / "x.gguf", "f16", AutoTokenizer.from_pretrained(tiny_llama), (1,), "x")
    assert not (tmp_path / "x.gguf").exists()


def test_other_families_are_refused_by_name(tmp_path: Path) -> None:
    from support.models import save_model

    folder = save_model(tmp_path / "model", "bert")
    with pytest.raises(ModelError, match="models of type bert"):
        write_model(folder, tmp_path / "x.gguf", "f16", AutoTokenizer.from_pretrained(folder), (1,), "x")
