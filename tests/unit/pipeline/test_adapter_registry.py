"""Adapters added to a base model by name while it is used, listed by the hundred, removed; and what is refused."""

import json
import shutil
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

import weitiao
from support.laws import gap
from support.models import CHATML, make_tokenizer, save_model
from support.rows import chat_rows, write_jsonl
from weitiao.core.batch import pack
from weitiao.core.errors import DataError, ModelError
from weitiao.core.example import Turn
from weitiao.pipeline import adapter_registry
from weitiao.pipeline.inference import Model, open_model

IDS = [5, 9, 40, 41, 42, 7, 300]
WEIGHTS = "adapter_model.safetensors"


def peft_adapter(base: Path, folder: Path, seed: int = 0, dtype: torch.dtype = torch.float32, **settings: Any) -> Path:
    """A LoRA that PEFT made and wrote, with random B."""
    config = peft.LoraConfig(task_type="CAUSAL_LM", **{"r": 4, "target_modules": ["q_proj", "v_proj"], **settings})
    model = peft.get_peft_model(AutoModelForCausalLM.from_pretrained(base), config)
    torch.manual_seed(seed)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "lora_" in name:
                weight.copy_(torch.randn_like(weight) * 0.2)
    model.to(dtype).save_pretrained(folder)
    return folder


@torch.no_grad()
def logits(model: Model, name: str, *others: str) -> torch.Tensor:
    """[T, V] of the first row of a packed batch."""
    rows: Any = [{"input_ids": IDS, "labels": IDS}] * (1 + len(others))
    return model.model.logits(pack(rows, range(len(rows)), (name, *others)))[: len(IDS)]


@torch.no_grad()
def peft_logits(base: Path, folder: Path) -> torch.Tensor:
    model = peft.PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), folder).eval()
    return model(input_ids=torch.tensor([IDS])).logits[0]


def base_logits(base: Path) -> torch.Tensor:
    with torch.no_grad():
        return AutoModelForCausalLM.from_pretrained(base)(input_ids=torch.tensor([IDS])).logits[0]


KINDS: list[dict] = [
    {},
    {"use_rslora": True, "r": 5, "lora_alpha": 7, "target_modules": "all-linear"},
    {"rank_pattern": {"v_proj": 7}},
    {"use_dora": True},
    {"target_modules": r".*\.1\..*down_proj"},
]


@pytest.mark.parametrize("settings", KINDS, ids=lambda x: "-".join(x) or "plain")
def test_added_adapter_equals_peft(tiny_llama: Path, tmp_path: Path, settings: dict) -> None:
    """Added to a base that is open, alone and beside others: PEFT's logits, <= 1e-5."""
    model = weitiao.load(tiny_llama, precision="fp32")
    folder = peft_adapter(tiny_llama, tmp_path / "a", 1, **settings)
    other = peft_adapter(tiny_llama, tmp_path / "b", 2, r=8)
    model.add_adapter("b", other)
    model.add_adapter("a", folder)
    wanted = peft_logits(tiny_llama, folder)
    assert gap(logits(model, "a"), wanted) <= 1e-5
    assert gap(logits(model, "a", "b", "", "a"), wanted) <= 1e-5
    assert gap(logits(model, "b", "a", ""), peft_logits(tiny_llama, other)) <= 1e-5
    assert gap(logits(model, "", "a", "b"), base_logits(tiny_llama)) <= 1e-5
    assert gap(wanted, base_logits(tiny_llama)) > 1e-3


def test_run_added_to_open_base(train_tiny: Any, tiny_llama: Path, tmp_path: Path) -> None:
    """A Run of each kind joins a base that is in use; generation by name equals each alone."""
    rows = write_jsonl(tmp_path / "r.jsonl", chat_rows(24, ("seven wizards",)))
    train = {"steps": 20, "batch_size": 8, "learning_rate": 3e-2, "evaluate_every": 20}
    runs = {
        "lora": {"name": "lora", "rank": 4},
        "pissa": {"name": "lora", "rank": 4, "init": "pissa"},
        "dora": {"name": "dora", "rank": 4},
    }
    model = weitiao.load(tiny_llama, precision="fp32")
    base_answer = model.generate("the fox", max_new_tokens=6)
    for name, method in runs.items():
        run = train_tiny(train=train, method=method, data=[{"path": str(rows)}], out=str(tmp_path / name))
        model.add_adapter(name, run.folder)
        assert model.generate("the fox", max_new_tokens=6) == base_answer, "the base stays the base"
    answers = model.generate(["the fox"] * 4, adapter=["lora", "", "pissa", "dora"], max_new_tokens=6)
    wanted = {name: weitiao.load(tmp_path / name, precision="fp32").generate("the fox", max_new_tokens=6) for name in runs}
    assert answers == [wanted["lora"], base_answer, wanted["pissa"], wanted["dora"]] and wanted["lora"] != base_answer


def test_replace_remove_and_names(tiny_llama: Path, tmp_path: Path) -> None:
    model = weitiao.load(tiny_llama, precision="fp32")
    one, two = (peft_adapter(tiny_llama, tmp_path / x, i) for i, x in enumerate("xy"))
    model.add_adapter("a", one)
    version = model.model.attachment.adapter_version("a")
    model.add_adapter("a", two)
    assert gap(logits(model, "a"), peft_logits(tiny_llama, two)) <= 1e-5 and list(model.adapters) == ["a"]
    assert model.model.attachment.adapter_version("a") != version
    model.remove_adapter("a")
    assert not model.adapters and gap(logits(model, ""), base_logits(tiny_llama)) <= 1e-5
    with pytest.raises(ModelError, match="no adapter called 'a'"):
        model.remove_adapter("a")
    with pytest.raises(DataError, match="name is empty"):
        model.add_adapter("", one)
    with pytest.raises(ModelError, match="this model has none"):
        weitiao.load(tiny_llama).remove_adapter("a")
    with pytest.raises(ModelError, match="load its base, then add both"):
        weitiao.load(one).add_adapter("b", two)


def test_hundreds_on_demand(tiny_llama: Path, tmp_path: Path) -> None:
    """Three hundred listed: tokenizers and templates are shared, weights are read when named, and read again."""
    source = peft_adapter(tiny_llama, tmp_path / "source")
    tensors, names = load_file(source / WEIGHTS), {}
    for i in range(300):
        folder = tmp_path / "many" / f"u{i}"
        shutil.copytree(source, folder)
        save_file({k: x * (1 + i / 100) for k, x in tensors.items()}, folder / WEIGHTS)
        names[f"u{i}"] = folder
    model = weitiao.load(tiny_llama, adapters=names, precision="fp32")
    registry = model._registry
    assert registry is not None and len(model.adapters) == 300 and len(registry.pool.loaded) == 32
    assert len({id(x) for x in model.adapters.values()}) == 1, "one tokenizer for all"
    for i in (0, 299, 150, 0, 31, 77, 299):
        assert gap(logits(model, f"u{i}", "", "u3"), peft_logits(tiny_llama, names[f"u{i}"])) <= 1e-5
    rest = [f"u{i}" for i in range(40, 80)]
    for name in rest:
        logits(model, name)
    assert len(registry.pool.loaded) == 32 and registry.pool.loaded[-1] == "u79"
    (names["u5"] / WEIGHTS).unlink()
    with pytest.raises(ModelError, match="adapter_model.safetensors"):
        logits(model, "u5")
    assert gap(logits(model, "u79"), peft_logits(tiny_llama, names["u79"])) <= 1e-5


def test_templates_of_many_adapters(tiny_llama: Path, tmp_path: Path) -> None:
    """An adapter with a template of its own has its own prompt, also if it is only listed."""
    model = weitiao.load(tiny_llama, precision="fp32")
    plain, own = (peft_adapter(tiny_llama, tmp_path / x, i) for i, x in enumerate(("plain", "own")))
    (own / "chat_template.jinja").write_text(CHATML.replace("<|im_start|>", "<|im_start|>the "))
    model.add_adapter("plain", plain, on_demand=True)
    model.add_adapter("own", own, on_demand=True)
    turns = (Turn("user", "hello"),)
    assert model.prompt(turns, "own") == open_model(str(own)).prompt(turns) != model.prompt(turns, "plain")
    assert gap(logits(model, "own", "plain"), peft_logits(tiny_llama, own)) <= 1e-5


# -- refused ----------------------------------------------------------------------------------------------------------


def rewritten(source: Path, folder: Path, change: Any) -> Path:
    shutil.copytree(source, folder)
    save_file(change(load_file(source / WEIGHTS)), folder / WEIGHTS)
    return folder


def other_prefix(tensors: dict) -> dict:
    """As a multimodal checkpoint names them: other servers ignored these tensors and answered as the base."""
    return {k.replace("model.layers", "language_model.layers"): x for k, x in tensors.items()}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda t: {k: x * ("lora_A" in k) for k, x in t.items()}, "changes nothing: its low-rank products are all zero"),
        (lambda t: {k: x * 0 for k, x in t.items()}, "changes nothing"),
        (lambda t: {k: x * 1e-30 for k, x in t.items()}, "the logits of a probe are those of the base model"),
        (lambda t: {k: x * float("nan") for k, x in t.items()}, "are not finite numbers"),
        (lambda t: {k: x * 1e25 for k, x in t.items()}, "infinite or NaN"),
        (other_prefix, "do not match its config"),
        (lambda t: dict(list(t.items())[2:]), "do not match its config"),
        (lambda t: {**t, "base_model.model.lm_head.lora_A.weight": torch.ones(4, 32)}, "do not match its config"),
        (lambda t: {k: x[:-1] if "lora_A" in k else x for k, x in t.items()}, "has shape"),
    ],
)
def test_useless_adapter_refused(tiny_llama: Path, tmp_path: Path, change: Any, words: str) -> None:
    """Refused by name, with what is wrong; one that had the name stays, and so does everything else."""
    good = peft_adapter(tiny_llama, tmp_path / "good")
    bad = rewritten(good, tmp_path / "bad", change)
    model = weitiao.load(tiny_llama, precision="fp32")
    with pytest.raises(ModelError, match=words):
        model.add_adapter("a", bad)
    assert not model.adapters
    model.add_adapter("a", good)
    with pytest.raises(ModelError, match=words):
        model.add_adapter("a", bad)
    assert gap(logits(model, "a"), peft_logits(tiny_llama, good)) <= 1e-5 and list(model.adapters) == ["a"]
    with pytest.raises(ModelError, match=words):
        weitiao.load(tiny_llama, adapters={"a": bad}, precision="fp32")


def test_damaged_files_refused(tiny_llama: Path, tmp_path: Path) -> None:
    good = peft_adapter(tiny_llama, tmp_path / "good")
    model = weitiao.load(tiny_llama, precision="fp32")
    cut = shutil.copytree(good, tmp_path / "cut")
    (cut / WEIGHTS).write_bytes((good / WEIGHTS).read_bytes()[:-100])
    with pytest.raises(ModelError, match="missing or damaged"):
        model.add_adapter("cut", cut)
    pickled = shutil.copytree(good, tmp_path / "pickled")
    (pickled / WEIGHTS).rename(pickled / "adapter_model.bin")
    with pytest.raises(ModelError, match="pickle files such as adapter_model.bin are not opened"):
        model.add_adapter("pickled", pickled)
    assert not model.adapters and gap(logits(model, ""), base_logits(tiny_llama)) <= 1e-5


def test_other_base_and_stop_tokens_refused(train_tiny: Any, tiny_llama: Path, tmp_path: Path) -> None:
    model = weitiao.load(tiny_llama, precision="fp32")
    other = save_model(tmp_path / "gpt2", "gpt2")
    foreign = peft_adapter(other, tmp_path / "foreign", target_modules=["c_attn"])
    with pytest.raises(ModelError, match="was trained on .*gpt2, not on"):
        model.add_adapter("a", foreign)
    stops = peft_adapter(tiny_llama, tmp_path / "stops")
    (stops / "chat_template.jinja").write_text(CHATML.replace("<|im_end|>", "<|endoftext|>"))
    with pytest.raises(ModelError, match="other stop tokens"):
        model.add_adapter("a", stops)
    make_tokenizer().save_pretrained(tmp_path / "empty")
    with pytest.raises(ModelError, match="neither a run nor an adapter"):
        model.add_adapter("a", tmp_path / "empty")
    renamed = shutil.copytree(tiny_llama, tmp_path / "same_base_elsewhere")
    moved = peft_adapter(tiny_llama, tmp_path / "moved")
    config = json.loads((moved / "adapter_config.json").read_text())
    (moved / "adapter_config.json").write_text(json.dumps({**config, "base_model_name_or_path": str(renamed)}))
    model.add_adapter("moved", moved)
    assert gap(logits(model, "moved"), peft_logits(tiny_llama, moved)) <= 1e-5


@pytest.mark.parametrize("method", ["full", "prompt_tuning", "prefix_tuning", "ln_tuning", "ia3"])
def test_other_methods_refused_untouched(train_tiny: Any, tiny_llama: Path, tmp_path: Path, method: str) -> None:
    """Refused before anything of it is attached: the base that others use keeps its weights."""
    tuned: Any = {"name": method, **({"num_virtual_tokens": 3} if method[0] == "p" else {})}
    run = train_tiny(train={"steps": 1, "precision": "fp32"}, method=tuned, out=str(tmp_path / "run"))
    model = weitiao.load(tiny_llama, precision="fp32")
    with pytest.raises(ModelError, match="not only a low-rank change .* Load it alone, or merge it"):
        model.add_adapter("a", run.folder)
    assert gap(logits(model, ""), base_logits(tiny_llama)) <= 1e-5 and not model.adapters


def test_heads_refused(train_tiny: Any, tiny_llama: Path, tmp_path: Path) -> None:
    rows = write_jsonl(tmp_path / "c.jsonl", [{"text": f"the fox {i}", "label": "ab"[i % 2]} for i in range(24)])
    run = train_tiny(objective="classification", data=[{"path": str(rows)}], train={"steps": 1})
    with pytest.raises(ModelError, match="has a head of its own .objective classification"):
        weitiao.load(tiny_llama).add_adapter("a", run.folder)


def test_failed_attach_restores_base(train_tiny: Any, tiny_llama: Path, tmp_path: Path, monkeypatch: Any) -> None:
    run = train_tiny(train={"steps": 3}, method={"name": "dora", "rank": 2}, out=str(tmp_path / "run"))
    model = weitiao.load(tiny_llama, precision="fp32")
    model.add_adapter("a", peft_adapter(tiny_llama, tmp_path / "a"))
    before = logits(model, "a", "")

    def fail(*args: Any) -> None:
        raise ModelError("no space")

    monkeypatch.setattr(adapter_registry, "detach", fail)
    with pytest.raises(ModelError, match="no space"):
        model.add_adapter("d", run.folder)
    assert torch.equal(logits(model, "a", ""), before)
    monkeypatch.undo()
    model.add_adapter("d", run.folder)
    with torch.no_grad():
        wanted = open_model(str(run.folder), "fp32").model.logits(pack([{"input_ids": IDS, "labels": IDS}], range(1)))
    assert gap(logits(model, "d"), wanted) <= 1e-5
