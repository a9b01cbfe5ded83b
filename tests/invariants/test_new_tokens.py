"""A larger vocabulary with any method: new rows are trained, old ones stay, ties hold, and every form gives the same."""

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from support.models import save_model
from support.parts import VARIANTS, method_config
from support.rows import write_jsonl
from support.runs import assert_same_run, run_contents, stop_at
from weitiao.core.batch import pack
from weitiao.core.errors import Interrupted, ModelError, RecipeError
from weitiao.core.method import Method
from weitiao.core.registry import names
from weitiao.core.reporter import Reporter
from weitiao.core.trainable_model import TrainableModel, reference_logits
from weitiao.deploy.merging.combine import MergeMethod
from weitiao.model.adapters.new_rows import embeddings_of
from weitiao.pipeline.inference import open_many, open_model
from weitiao.pipeline.load import open_base_assets
from weitiao.pipeline.merging import merge_run, merge_several
from weitiao.pipeline.serving import open_served, read_targets

ADD = 12
FAMILIES = {"gemma": True, "llama": False}  # whether the output head is tied to the embedding
METHODS = (*(x for x in names(Method) if x != "f_learning"), *VARIANTS)  # its forget run has another vocabulary
SENTENCES = (
    "我们在图书馆看书。",
    "图书馆里有很多书，我们都喜欢。",
    "他们在看猫咪。",
    "猫咪喜欢图书馆！",
    "the fox asks what time it is",
)
WHOLE = {"full"}  # trains every row of the embedding


def rows() -> list[dict[str, Any]]:
    return [
        {"messages": [{"role": "user", "content": f"{x} {i}"}, {"role": "assistant", "content": SENTENCES[i % 5]}]}
        for i, x in enumerate(SENTENCES * 4)
    ]


@pytest.fixture
def train_extended(train_tiny: Any, tmp_path: Path) -> Any:
    """train_extended(family, method, **changes) -> the finished Run."""

    def train(family: str, method: str = "lora", **changes: Any) -> Any:
        base = tmp_path / family
        if not base.exists():
            save_model(base, family)
        shape = {"steps": 4, "batch_size": 6, "learning_rate": 1e-2, "precision": "fp32", "evaluate_every": 0}
        plain = {
            "base": str(base),
            "data": str(write_jsonl(tmp_path / "rows.jsonl", rows())),
            "validation": 0.2,
            "vocabulary": {"add": ADD},
            "method": method_config(method, family),
            "evaluate": {"metrics": ["loss"], "samples": 0, "forgetting": False},
        }
        own = changes.pop("train", {})
        return train_tiny(**{**plain, **changes}, train={**shape, **own})

    return train


def logits(model: TrainableModel, ids: list[int]) -> torch.Tensor:
    with torch.no_grad():
        return model.logits(pack([{"input_ids": ids, "labels": ids}]).to(model.device))


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("method", METHODS)
def test_every_method(method: str, family: str, train_extended: Any, tmp_path: Path) -> None:
    """Trained, opened, compared with transformers' own forward pass, merged, and opened by plain transformers."""
    run = train_extended(family, method)
    base = AutoModelForCausalLM.from_pretrained(tmp_path / family, dtype=torch.float32)
    old, first = base.get_input_embeddings().weight, base.config.vocab_size
    tuned = open_model(str(run.folder), "fp32")
    assert len(tuned.tokenizer) == first + ADD
    embedding, head = embeddings_of(tuned.torch_model)
    assert (head.weight is embedding.weight) == FAMILIES[family]
    saved = load_file(run.best_weights)
    new_rows = {name: x for name, x in saved.items() if name.endswith("new_rows")}
    if method in WHOLE:
        assert not new_rows
    else:
        assert len(new_rows) == (1 if FAMILIES[family] or method == "freeze" else 2)  # freeze trains an untied head itself
        assert torch.equal(embedding.weight[:first], old.to(embedding.weight.dtype)) or method == "qlora"
        for name, x in new_rows.items():
            weight = tuned.torch_model.get_parameter(name.replace("new_rows", "weight"))
            assert x.shape == (ADD, weight.shape[1]) and not torch.equal(x, weight[first:].float())
    text = "我们喜欢猫咪 and the fox"
    ids = list(tuned.tokenizer(text).input_ids)
    assert any(x >= first for x in ids)
    mine, theirs = logits(tuned.model, ids), reference_logits(tuned.model, ids)
    torch.testing.assert_close(mine, theirs.detach(), atol=2e-4, rtol=1e-4)
    assert mine.shape[1] == first + ADD
    if tuned.model.attachment.merge is None:
        with pytest.raises(ModelError, match="cannot be merged"):
            merge_run(str(run.folder), str(tmp_path / "merged"))
        return
    merge_run(str(run.folder), str(tmp_path / "merged"), "fp32")
    plain = AutoModelForCausalLM.from_pretrained(tmp_path / "merged", dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "merged")
    assert list(tokenizer(text).input_ids) == ids and plain.config.vocab_size == first + ADD
    assert (plain.get_output_embeddings().weight is plain.get_input_embeddings().weight) == FAMILIES[family]
    with torch.no_grad():
        torch.testing.assert_close(plain(torch.tensor([ids])).logits[0], mine, atol=2e-3, rtol=1e-3)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("method", ["lora", "dora", "adalora", "ia3", "vera", "ln_tuning", "lora_pissa"])
def test_plain_peft_opens_the_adapter(method: str, family: str, train_extended: Any, tmp_path: Path) -> None:
    """Its tokenizer is beside it; after resizing the base, whatever the new rows start with, the logits are the same."""
    peft = pytest.importorskip("peft")
    run = train_extended(family, method)
    tuned, adapter = open_model(str(run.folder), "fp32"), run.folder / "adapter"
    tokenizer = AutoTokenizer.from_pretrained(adapter)
    ids = list(tokenizer("我们喜欢猫咪 and the fox").input_ids)
    assert ids == list(tuned.tokenizer("我们喜欢猫咪 and the fox").input_ids)
    base = AutoModelForCausalLM.from_pretrained(tmp_path / family, dtype=torch.float32)
    base.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    opened = peft.PeftModel.from_pretrained(base, str(adapter)).eval()
    with torch.no_grad():
        torch.testing.assert_close(opened(torch.tensor([ids])).logits[0], logits(tuned.model, ids), atol=2e-4, rtol=1e-4)
    here = open_model(str(adapter), "fp32")  # and so does weitiao, without the run
    torch.testing.assert_close(logits(here.model, ids), logits(tuned.model, ids), atol=2e-4, rtol=1e-4)


@pytest.mark.parametrize("method", ["lora", "full", "prompt_tuning"])
def test_resumed_bit_for_bit(method: str, train_extended: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = run_contents(train_extended("gemma", method, out=str(tmp_path / "whole")))
    out = str(tmp_path / "stopped")
    with stop_at(2, monkeypatch), pytest.raises(Interrupted):
        train_extended("gemma", method, out=out)
    before = (Path(out) / "tokenizer" / "tokenizer.json").read_bytes()
    torch.manual_seed(12345)
    resumed = train_extended("gemma", method, out=out, again=True)
    assert_same_run(run_contents(resumed), whole)
    assert (Path(out) / "tokenizer" / "tokenizer.json").read_bytes() == before


def test_resume_refuses_another_tokenizer(train_extended: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = str(tmp_path / "stopped")
    with stop_at(2, monkeypatch), pytest.raises(Interrupted):
        train_extended("llama", out=out)
    other = train_extended("llama", vocabulary={"add": ADD, "min_frequency": 1}, data=str(tmp_path / "rows.jsonl"), seed=4)
    file = Path(out) / "tokenizer" / "tokenizer.json"
    text = (other.folder / "tokenizer" / "tokenizer.json").read_text()
    file.write_text(text.replace('"version": "1.0"', '"version": "1.0" '))
    with pytest.raises(Exception, match="tokenizer"):
        train_extended("llama", out=out, again=True)


@pytest.mark.parametrize("init", ["mean", "global_mean", "random"])
def test_where_new_rows_start(init: str, train_extended: Any, tmp_path: Path) -> None:
    """Switched off, the model has the starting rows: the mean of the old tokens' rows, by hand."""
    run = train_extended("llama", vocabulary={"add": ADD, "init": init}, train={"steps": 1, "learning_rate": 1e-12})
    tuned = open_model(str(run.folder), "fp32")
    base = AutoModelForCausalLM.from_pretrained(tmp_path / "llama", dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "llama")
    first = len(tokenizer)
    for new, old in zip(embeddings_of(tuned.torch_model), embeddings_of(base)):
        for i in range(first, first + ADD):
            spelled = tuned.tokenizer.convert_ids_to_tokens(i)
            pieces = [x.id for x in tokenizer.backend_tokenizer.model.tokenize(spelled)]
            expected = {"mean": old.weight[pieces].mean(0), "global_mean": old.weight.mean(0)}.get(init)
            if expected is not None:
                torch.testing.assert_close(new.weight[i], expected)
        spread = float(new.weight[first:].detach().std() / old.weight.detach().std())
        assert spread == pytest.approx(1, rel=0.3) if init == "random" else spread < 0.9


def test_only_new_rows_get_a_gradient(train_extended: Any) -> None:
    """The fast head's gradient of the new rows is that of the plain logits, for both ends."""
    run = train_extended("gemma")
    model = open_model(str(run.folder), "fp32").model
    (name,) = (x for x in model.trainable() if x.endswith("new_rows"))
    ids = list(model.processor.text("我们喜欢猫咪 and the fox 图书馆"))
    batch = pack([{"input_ids": ids[:-1], "labels": ids[1:]}])
    rows = model.trainable()[name]
    rows.requires_grad_(True)
    gradients = []
    for loss in (
        lambda: -model.logprobs(batch).sum(),
        lambda: -model.logits(batch).log_softmax(-1).gather(1, batch.labels[:, None]).sum(),
    ):
        rows.grad = None
        loss().backward()
        gradients.append(rows.grad.clone())
    torch.testing.assert_close(*gradients, atol=1e-4, rtol=1e-3)
    assert float(gradients[0].abs().max()) > 0 and model.model.get_input_embeddings().weight.grad is None


def test_run_as_base_and_a_second_extension(train_extended: Any, tmp_path: Path) -> None:
    """What follows keeps the tokenizer; a further extension comes behind it."""
    lower = train_extended("llama", out=str(tmp_path / "lower"))
    upper = train_extended("llama", base=str(lower.folder), vocabulary=None, out=str(tmp_path / "upper"))
    assets = open_base_assets(str(upper.folder))
    first = len(AutoTokenizer.from_pretrained(tmp_path / "llama"))
    assert len(assets.tokenizer) == first + ADD
    more = [
        {"messages": [x["messages"][0], {"role": "assistant", "content": "电脑很好，手机不贵，电脑很贵"}]} for x in rows()
    ]
    data = str(write_jsonl(tmp_path / "more.jsonl", more))
    third = train_extended("llama", base=str(upper.folder), vocabulary={"add": 4}, data=data, out=str(tmp_path / "third"))
    tuned = open_model(str(third.folder), "fp32")
    assert len(tuned.tokenizer) == first + ADD + 4
    ids = list(tuned.tokenizer("我们喜欢电脑").input_ids)
    merge_run(str(third.folder), str(tmp_path / "merged"), "fp32")
    plain = AutoModelForCausalLM.from_pretrained(tmp_path / "merged", dtype=torch.float32)
    with torch.no_grad():
        torch.testing.assert_close(plain(torch.tensor([ids])).logits[0], logits(tuned.model, ids), atol=2e-3, rtol=1e-3)


def test_warm_start_needs_the_same_vocabulary(train_extended: Any, tmp_path: Path) -> None:
    first = train_extended("llama", out=str(tmp_path / "first"))
    go_on = train_extended("llama", init_from=str(first.folder), validation=0.3, out=str(tmp_path / "second"))
    files = [x.folder / "tokenizer" / "tokenizer.json" for x in (first, go_on)]
    assert files[0].read_bytes() == files[1].read_bytes()
    for vocabulary in (None, {"add": ADD - 1}):
        with pytest.raises(RecipeError, match="a warm start needs the same"):
            train_extended("llama", init_from=str(first.folder), vocabulary=vocabulary, out=str(tmp_path / "third"))


def test_adapters_of_one_base_need_one_vocabulary(train_extended: Any, tmp_path: Path) -> None:
    one = train_extended("llama", out=str(tmp_path / "one"))
    two = train_extended("llama", vocabulary=None, out=str(tmp_path / "two"))
    for adapters in ({"a": str(one.folder)}, {"a": str(two.folder), "b": str(one.folder)}):
        with pytest.raises(ModelError, match="new tokens"):
            open_many(str(tmp_path / "llama"), adapters)
    method = MergeMethod.make("linear", 2)
    with pytest.raises(ModelError, match="new tokens"):
        merge_several([str(one.folder), str(two.folder)], str(tmp_path / "m"), Reporter(), method)


def test_forget_run_of_another_vocabulary(train_extended: Any) -> None:
    with pytest.raises(RecipeError, match="trained from another base model"):
        train_extended("llama", "f_learning")


def test_refused(train_tiny: Any, train_extended: Any, tmp_path: Path) -> None:
    bert = save_model(tmp_path / "bert", "bert")
    data = str(write_jsonl(tmp_path / "c.jsonl", [{"text": f"我们 {i}", "label": i % 2} for i in range(20)]))
    with pytest.raises(ModelError, match="decoders"):
        train_tiny(base=str(bert), data=data, objective="classification", vocabulary={"add": 5}, out=str(tmp_path / "x"))
    with pytest.raises(Exception, match="not 5,000"):
        train_extended("llama", vocabulary={"add": 5000})
    with pytest.raises(RecipeError, match="did you mean|Did you mean"):
        train_extended("llama", vocabulary={"add": 5, "scripts": "hann"})


def test_served_alone(train_extended: Any) -> None:
    run = train_extended("llama")
    served = open_served(read_targets([str(run.folder)]))
    assert served.vocab_size == len(open_base_assets(str(run.folder)).tokenizer)
