"""A law over all objectives: what plain libraries answer from a merged folder is what weitiao answers, on 20 inputs."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import peft
import pytest
import torch
from rich.console import Console
from transformers import (
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    AutoModelForQuestionAnswering,
    AutoModelForSeq2SeqLM,
    AutoModelForTokenClassification,
    AutoTokenizer,
    pipeline,
)

from support.models import save_model
from support.parts import OBJECTIVE_SETTINGS
from support.rows import chat_rows, question_rows, rated_rows, write_jsonl
from weitiao.core.errors import ModelError
from weitiao.core.objective import Objective
from weitiao.core.recipe import make_recipe
from weitiao.core.registry import names
from weitiao.core.reporter import Reporter
from weitiao.pipeline import inference as results
from weitiao.pipeline import merging
from weitiao.pipeline.train import train

N = 20
TEXTS = [f"{'the quick fox ' * (i % 4)}jumps over dog {i}" for i in range(N)]
LABELLED = [{"text": x, "label": "abc"[i % 3]} for i, x in enumerate(TEXTS)]
PAIRS = [{"query": x, "document": f"the lazy dog {i}", "negative": f"boxes {i}"} for i, x in enumerate(TEXTS)]
TAGGED = [{"tokens": x.split(), "tags": ["B-who" if w in ("fox", "dog") else "O" for w in x.split()]} for x in TEXTS]
ROWS: dict[str, list[dict]] = {
    "causal_lm": [{"text": x} for x in TEXTS],
    "classification": LABELLED,
    "embedding": [{"query": x, "document": f"dog {i}"} for i, x in enumerate(TEXTS)],
    "generative_classification": LABELLED,
    "masked_lm": [{"text": x} for x in TEXTS],
    "multi_task": LABELLED,
    "question_answering": question_rows(N),
    "regression": [{"text": row["text"], "score": row["score"]} for row in rated_rows(N)],
    "rerank": PAIRS,
    "seq2seq": [{"source": x, "target": "the lazy dog"} for x in TEXTS],
    "sft": chat_rows(N),
    "token_classification": TAGGED,
}
BASES = {"masked_lm": ("bert",), "seq2seq": ("t5", "bart")} | {x: ("llama",) for x in ("causal_lm", "sft")}
BASES["generative_classification"] = ("llama",)


def trained(objective: str, family: str, folder: Path, **settings: Any) -> str:
    data = [{"path": str(write_jsonl(folder / "rows.jsonl", ROWS[objective]))}]
    part: dict[str, Any] = {"name": objective, **OBJECTIVE_SETTINGS.get(objective, {}), **settings}
    if objective == "multi_task":
        part["tasks"], data[0]["task"] = {"kind": "classification"}, "kind"
    shape = {"steps": 3, "batch_size": 8, "learning_rate": 5e-2, "precision": "fp32", "evaluate_every": 0}
    plain = {"base": str(save_model(folder / family, family)), "data": data, "validation": 0, "objective": part}
    plain |= {"method": {"name": "lora", "rank": 4}, "train": shape, "out": str(folder / "run")}
    recipe = make_recipe({**plain, "evaluate": {"metrics": ["loss"], "samples": 0}})
    return str(train(recipe, Reporter(Console(quiet=True))).folder)


@torch.no_grad()
def generated(folder: Path, run: str, family: str) -> None:
    ours = results.open_model(run, "fp32")
    auto_class = AutoModelForSeq2SeqLM if family in ("t5", "bart") else AutoModelForCausalLM
    model: Any = auto_class.from_pretrained(folder)
    tokenizer: Any = AutoTokenizer.from_pretrained(folder)
    if family in ("t5", "bart"):
        expected = [x["predicted"] for x in ours.predict([{"source": x} for x in TEXTS])]
        got = [model.generate(**tokenizer(x, return_tensors="pt"), max_new_tokens=8)[0] for x in TEXTS]
        answers = [tokenizer.decode(x, skip_special_tokens=True).strip() for x in got]
    else:
        expected, answers = ours.generate(TEXTS, max_new_tokens=12), []
        for text in TEXTS:
            if ours.objective.name == "causal_lm":
                inputs = tokenizer(text, return_tensors="pt")
            else:
                chat = [{"role": "user", "content": text}]
                inputs = tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_tensors="pt")
            out = model.generate(**inputs, max_new_tokens=12)[0, inputs["input_ids"].shape[1] :]
            answers.append(tokenizer.decode(out, skip_special_tokens=True).strip())
    assert answers == expected


def texts_of(model: results.Model) -> list[str]:
    """The texts, the last of which spells every special token."""
    return [*TEXTS[:-1], f"the fox {' '.join(model.tokenizer.all_special_tokens)} dog"]


def class_scores(folder: Path, run: str, family: str) -> None:
    """sentence-transformers' probabilities and numbers of texts, and its CrossEncoder's scores of pairs."""
    library, ours = pytest.importorskip("sentence_transformers"), results.open_model(run, "fp32")
    objective = ours.objective.name
    if objective == "rerank":
        theirs = library.CrossEncoder(str(folder), device="cpu")
        got = theirs.predict([(x["query"], x["document"]) for x in PAIRS])
    else:
        theirs = library.SentenceTransformer(str(folder), device="cpu")
        got = theirs.encode(texts_of(ours))
    predicted = list(ours.predict(PAIRS if objective == "rerank" else [{"text": x} for x in texts_of(ours)]))
    if objective == "classification":
        expected = [list(x["probabilities"].values()) for x in predicted]
        id2label = json.loads((folder / "config.json").read_text())["id2label"]
        assert list(id2label.values()) == list(predicted[0]["probabilities"])
    else:
        expected = [x["predicted"] for x in predicted]
    np.testing.assert_allclose(np.squeeze(got), np.array(expected), rtol=1e-4, atol=1e-5)


def vectors(folder: Path, run: str, family: str) -> None:
    sentence_transformer = pytest.importorskip("sentence_transformers").SentenceTransformer
    ours = results.open_model(run, "fp32")
    theirs = sentence_transformer(str(folder), device="cpu").encode(texts_of(ours))
    np.testing.assert_allclose(theirs, ours.encode(texts_of(ours)), atol=1e-5)


@torch.no_grad()
def tags(folder: Path, run: str, family: str) -> None:
    """The pipeline's tag of each word's first token."""
    ours = results.open_model(run, "fp32")
    predicted = list(ours.predict([{"text": x} for x in TEXTS]))
    tagger: Any = pipeline("token-classification", str(folder), ignore_labels=[])
    for text, expected in zip(TEXTS, predicted):
        starts = {x["start"]: x["entity"] for x in tagger(text)}
        words = [i for i, c in enumerate(text) if c != " " and (i == 0 or text[i - 1] == " ")]
        got = [starts.get(i) or starts.get(i - 1) for i in words]  # byte-level tokens may begin with the space
        if all(not (b == "I-who" and a == "O") for a, b in zip(["O", *got], got)):  # else weitiao decodes otherwise
            assert got == expected["tags"]


@torch.no_grad()
def spans(folder: Path, run: str, family: str) -> None:
    """The scores of starts and ends, at each token."""
    ours = results.open_model(run, "fp32")
    model: Any = AutoModelForQuestionAnswering.from_pretrained(folder)
    for row in ROWS["question_answering"]:
        from weitiao.core.batch import pack
        from weitiao.core.example import ExtractiveQA

        encoded = ours.objective.encode_input(ExtractiveQA(row["question"], row["context"], ()), ours.assets.processor)
        batch = pack([encoded])
        expected = ours.model.heads["span"](ours.model.hidden(batch).float())
        out = model(input_ids=batch.input_ids[None])
        got = torch.stack([out.start_logits[0], out.end_logits[0]], -1)
        torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-4)
        if family == "bert":
            theirs = AutoTokenizer.from_pretrained(folder)(row["question"], row["context"])
            assert theirs.input_ids == batch.input_ids.tolist() and "token_type_ids" not in theirs


def filled(folder: Path, run: str, family: str) -> None:
    ours, fill = results.open_model(run, "fp32"), pipeline("fill-mask", str(folder), top_k=1)
    assert type(AutoModelForMaskedLM.from_pretrained(folder)).__name__ == "BertForMaskedLM"
    texts = [x.replace("jumps", "[MASK]") for x in TEXTS]
    for text, expected in zip(texts, ours.predict([{"text": x} for x in texts])):
        (best,) = fill(text)
        assert best["token_str"] == expected["filled"][0]
        assert best["score"] == pytest.approx(expected["probabilities"][0], abs=1e-4)


AUTO = {"token_classification": AutoModelForTokenClassification, "question_answering": AutoModelForQuestionAnswering}
WITHOUT_ADAPTER = (
    "classification",
    "regression",
    "rerank",
    "masked_lm",
    "multi_task",
)  # PEFT has no such heads


def check_adapter(run: Path, objective: str, family: str) -> None:
    """The run's adapter is complete where it is opened, or there is none and the reason is recorded."""
    if objective in WITHOUT_ADAPTER or (objective, family) == ("question_answering", "llama"):  # has another inner name
        assert not (run / "adapter").exists()
        assert json.loads((run / "resolved.json").read_text())["decisions"]["adapter"]["value"] == "none"
        return
    text = (run / "adapter" / "README.md").read_text()
    assert (run / "adapter" / "generation_config.json").is_file() == (objective not in ("embedding", *AUTO))
    assert ("pooled from its hidden states" in text) == (objective == "embedding")
    if objective not in AUTO:
        return
    ours = results.open_model(str(run), "fp32")
    head: Any = next(iter(ours.model.heads.values()))
    base = AUTO[objective].from_pretrained(run.parent / family, num_labels=len(head.weight))
    theirs = peft.PeftModel.from_pretrained(base, run / "adapter").eval()
    ids = torch.tensor([[5, 9, 40, 21, 17, 17, 3, 64]])
    with torch.no_grad():
        out = theirs(input_ids=ids)
        expected = head(ours.torch_model.base_model(input_ids=ids).last_hidden_state[0])
    got = out.logits[0] if objective == "token_classification" else torch.stack([out.start_logits, out.end_logits], -1)[0]
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-4)


CHECKS: dict[str, Callable[[Path, str, str], None]] = {
    "causal_lm": generated, "classification": class_scores, "embedding": vectors, "generative_classification": generated,
    "masked_lm": filled, "multi_task": class_scores, "question_answering": spans, "regression": class_scores,
    "rerank": class_scores, "seq2seq": generated, "sft": generated, "token_classification": tags,
}  # fmt: skip


def test_every_objective_has_a_plain_form() -> None:
    assert CHECKS.keys() == ROWS.keys() == set(names(Objective))


CASES = [(name, family) for name in CHECKS for family in BASES.get(name, ("bert", "llama"))]


@pytest.mark.parametrize(("objective", "family"), CASES)
def test_plain_libraries_answer_the_same(objective: str, family: str, tmp_path: Path) -> None:
    run = trained(objective, family, tmp_path)
    check_adapter(Path(run), objective, family)
    if objective == "multi_task":
        with pytest.raises(ModelError, match="a folder holds one task; name it with --task: kind"):
            merging.merge_run(run, str(tmp_path / "out"))
    report = merging.merge_run(run, str(tmp_path / "out"), task="kind" if objective == "multi_task" else "")
    assert report.gap <= 1e-4
    if objective == "multi_task":
        config = json.loads((tmp_path / "out" / "config.json").read_text())
        assert list(config["id2label"].values()) == ["a", "b", "c"]
        return
    CHECKS[objective](tmp_path / "out", run, family)


def test_multi_label_probabilities(tmp_path: Path) -> None:
    run = trained("classification", "bert", tmp_path, multi_label=True)
    merging.merge_run(run, str(tmp_path / "out"))
    assert json.loads((tmp_path / "out" / "config.json").read_text())["problem_type"] == "multi_label_classification"
    class_scores(tmp_path / "out", run, "bert")


@pytest.mark.parametrize("pooling", ["first", "last"])
def test_every_pooling(pooling: str, tmp_path: Path) -> None:
    run = trained("embedding", "bert", tmp_path, pooling=pooling)
    merging.merge_run(run, str(tmp_path / "out"))
    vectors(tmp_path / "out", run, "bert")


def test_crf_is_refused_with_its_reason(tmp_path: Path) -> None:
    run = trained("token_classification", "bert", tmp_path, crf=True)
    with pytest.raises(ModelError, match="a CRF scores the tags of a text together.* predict "):
        merging.merge_run(run, str(tmp_path / "out"))
    assert not (tmp_path / "out").exists() and not (Path(run) / "adapter").exists()
