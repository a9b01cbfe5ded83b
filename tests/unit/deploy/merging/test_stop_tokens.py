"""What leaves weitiao stops where weitiao does: merged folders, merges of several runs, adapter folders."""

import json
import shutil
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from rich.console import Console
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

from support.models import make_model, make_tokenizer
from support.rows import write_jsonl
from weitiao.core.errors import ModelError
from weitiao.core.reporter import Reporter
from weitiao.deploy.merging import merge as merge_module
from weitiao.deploy.merging.combine import MergeMethod
from weitiao.pipeline import inference as results
from weitiao.pipeline import merging

LINEAR, TIES = (MergeMethod.make(name, 2) for name in ("linear", "ties"))

END, TURN_END = 0, 2  # <|endoftext|>, which the base names; <|im_end|>, with which its template ends a turn
CHATS = [
    {"messages": [{"role": "user", "content": f"fox {i}"}, {"role": "assistant", "content": answer}]}
    for i, answer in enumerate(("paris", "seven boxes", "the lazy dog"))
]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base model whose own end token is not the one that its chat template ends turns with."""
    folder = tmp_path_factory.mktemp("base")
    tokenizer: Any = make_tokenizer()
    tokenizer.eos_token = "<|endoftext|>"
    model: Any = make_model()
    model.config.eos_token_id = model.generation_config.eos_token_id = END
    model.config.pad_token_id = model.generation_config.pad_token_id = None
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture
def memorized(base: Path, train_tiny: Any, tmp_path: Path) -> Any:
    """memorized(**changes) -> a run that has learned its answers by heart."""

    def train(method: Any = "full", rate: float = 5e-3, steps: int = 60, **changes: Any) -> Any:
        rows = write_jsonl(tmp_path / "rows.jsonl", CHATS)
        settings = {"steps": steps, "batch_size": 3, "learning_rate": rate, "evaluate_every": 0}
        plain = {"base": str(base), "data": [{"path": str(rows)}], "validation": 0, "method": method, "train": settings}
        return train_tiny(**{**plain, "evaluate": {"metrics": ["loss"], "samples": 0}, **changes})

    return train


def plain_answer(folder: Path, model: Any = None, **options: Any) -> list[int]:
    """What plain transformers generates after the chat template's prompt."""
    tokenizer, model = AutoTokenizer.from_pretrained(folder), model or AutoModelForCausalLM.from_pretrained(folder)
    inputs = tokenizer.apply_chat_template(CHATS[2]["messages"][:1], add_generation_prompt=True, return_tensors="pt")
    out = model.generate(**inputs, max_new_tokens=60, do_sample=False, **options)
    return out[0, inputs["input_ids"].shape[1] :].tolist()


def test_merged_folder_stops_with_plain_transformers(memorized: Any, tmp_path: Path) -> None:
    run = memorized()
    report = merging.merge_run(str(run.folder), str(tmp_path / "out"))
    assert report.same_answer and "plain generate ends its answer at the same token" in str(report.message)
    ours = results.open_model(str(run.folder), "fp32").generate("fox 2")
    answer = plain_answer(tmp_path / "out")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out")
    assert answer[-1] == TURN_END and len(answer) < 30
    assert tokenizer.decode(answer, skip_special_tokens=True).strip() == ours == "the lazy dog"
    settings, config = (json.loads((tmp_path / "out" / x).read_text()) for x in ("generation_config.json", "config.json"))
    assert settings["eos_token_id"] == config["eos_token_id"] == [TURN_END, END]
    assert settings["pad_token_id"] == config["pad_token_id"] == tokenizer.pad_token_id == END
    assert tokenizer.eos_token == "<|im_end|>" and tokenizer.padding_side == "left" and tokenizer.chat_template


def test_batch_of_prompts_answered_by_plain_transformers(memorized: Any, tmp_path: Path) -> None:
    """Padding and its side are set: a batch of unequal prompts gives the answers of each alone."""
    merging.merge_run(str(memorized().folder), str(tmp_path / "out"))
    tokenizer: Any = AutoTokenizer.from_pretrained(tmp_path / "out")
    model: Any = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    texts = [tokenizer.apply_chat_template(x["messages"][:1], add_generation_prompt=True, tokenize=False) for x in CHATS]
    inputs = tokenizer(texts, padding=True, return_tensors="pt", add_special_tokens=False)
    out = model.generate(**inputs, max_new_tokens=30, do_sample=False)[:, inputs["input_ids"].shape[1] :]
    answers = [x.strip() for x in tokenizer.batch_decode(out, skip_special_tokens=True)]
    assert answers == [x["messages"][1]["content"] for x in CHATS]


def test_merge_of_several_runs_stops(memorized: Any, tmp_path: Path) -> None:
    runs = [str(memorized(seed=seed, out=str(tmp_path / f"run-{seed}")).folder) for seed in (1, 1 + 1)]
    report = merging.merge_several(runs, str(tmp_path / "out"), Reporter(Console(quiet=True)), LINEAR)
    assert report.same_answer is not None
    assert json.loads((tmp_path / "out" / "generation_config.json").read_text())["eos_token_id"] == [TURN_END, END]


def test_adapter_folder_names_stop_tokens(memorized: Any, base: Path, tmp_path: Path) -> None:
    template = tmp_path / "own.jinja"
    template.write_text(make_tokenizer().chat_template.replace("user", "user"))  # type: ignore[attr-defined]
    run = memorized({"name": "lora", "rank": 8}, 2e-2, 80, chat_template=str(template))
    folder = run.folder / "adapter"
    model = peft.PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), folder)
    answer = plain_answer(base, model, generation_config=GenerationConfig.from_pretrained(folder))
    assert answer[-1] == TURN_END and len(answer) < 30
    text = (folder / "README.md").read_text()
    assert "<|im_end|> / <|endoftext|>" in text and "chat_template.jinja" in text
    assert (folder / "chat_template.jinja").read_text() == template.read_text()
    several = merging.merge_several([str(run.folder)] * 2, str(tmp_path / "two"), Reporter(Console(quiet=True)), LINEAR)
    assert str(several.form).startswith("a LoRA") and (tmp_path / "two" / "generation_config.json").is_file()


def test_folder_that_goes_on_is_refused(memorized: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(merge_module, "set_stop_tokens", lambda *args: None)
    with pytest.raises(ModelError, match="does not stop: plain generate goes on after token 2. Do not use it"):
        merging.merge_run(str(memorized().folder), str(tmp_path / "out"))


def test_plain_text_model_ends_at_its_own_end(base: Path, train_tiny: Any, tmp_path: Path) -> None:
    """Trained on plain text, the tokenizer's end token stays that of documents."""
    rows = write_jsonl(tmp_path / "text.jsonl", [{"text": "the lazy dog asks"}] * 8)
    run = train_tiny(base=str(base), data=[{"path": str(rows)}], objective="causal_lm", validation=0)
    merging.merge_run(str(run.folder), str(tmp_path / "out"))
    assert AutoTokenizer.from_pretrained(tmp_path / "out").eos_token == "<|endoftext|>"
    assert END in json.loads((tmp_path / "out" / "generation_config.json").read_text())["eos_token_id"]


def test_sampling_settings_of_the_base_are_kept_and_told(memorized: Any, base: Path, tmp_path: Path) -> None:
    folder = tmp_path / "sampling"
    shutil.copytree(base, folder)
    settings = {"do_sample": True, "temperature": 0.7, "repetition_penalty": 1.3, "eos_token_id": END}
    (folder / "generation_config.json").write_text(json.dumps(settings))
    report = merging.merge_run(str(memorized(base=str(folder)).folder), str(tmp_path / "out"))
    assert "keeps the base's do_sample True, repetition_penalty 1.3, temperature 0.7: for the greedy" in str(report.remark)
    answer = plain_answer(tmp_path / "out", repetition_penalty=1.0)
    assert report.same_answer and answer[-1] == TURN_END


# -- stored precision -------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def bf16_base(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bf16")
    model: Any = AutoModelForCausalLM.from_pretrained(base, dtype=torch.bfloat16)
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(base).save_pretrained(folder)
    return folder


def stored(folder: Path) -> torch.dtype:
    return next(AutoModelForCausalLM.from_pretrained(folder, dtype="auto").parameters()).dtype


def test_stored_precision_is_that_of_the_base(bf16_base: Path, train_tiny: Any, tmp_path: Path) -> None:
    run = train_tiny(base=str(bf16_base))
    kept = merging.merge_run(str(run.folder), str(tmp_path / "kept"))
    assert stored(tmp_path / "kept") == torch.bfloat16 and kept.dtype == "bf16"
    assert json.loads((tmp_path / "kept" / "config.json").read_text())["dtype"] == "bfloat16"
    assert str(kept.size) == f"{kept.megabytes:,.1f} MB in bf16 (as in the base; --dtype chooses)"
    wide = merging.merge_run(str(run.folder), str(tmp_path / "wide"), "fp32")
    assert stored(tmp_path / "wide") == torch.float32 and str(wide.size) == f"{wide.megabytes:,.1f} MB in fp32"
    assert wide.megabytes > 1.8 * kept.megabytes
    exact = dict(AutoModelForCausalLM.from_pretrained(tmp_path / "wide").named_parameters())
    for name, x in AutoModelForCausalLM.from_pretrained(tmp_path / "kept", dtype="auto").named_parameters():
        assert torch.equal(x, exact[name].to(torch.bfloat16)), f"{name}: merged in fp32, rounded once"


def test_stored_precision_of_several_runs(bf16_base: Path, train_tiny: Any, tmp_path: Path) -> None:
    runs = [str(train_tiny(base=str(bf16_base), seed=s, out=str(tmp_path / f"run-{s}")).folder) for s in (1, 2)]
    reporter = Reporter(Console(quiet=True))
    assert merging.merge_several(runs, str(tmp_path / "a"), reporter, TIES).dtype == "bf16"
    assert stored(tmp_path / "a") == torch.bfloat16
    assert merging.merge_several(runs, str(tmp_path / "b"), reporter, TIES, dtype="fp16").dtype == "fp16"
    assert stored(tmp_path / "b") == torch.float16
