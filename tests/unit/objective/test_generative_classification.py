"""Classes as generated text: probabilities by definition, truncation, refusals, and a whole run."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from rich.console import Console

from support.laws import attached
from support.models import make_tokenizer, save_model
from support.rows import batch_of, write_jsonl
from weitiao.core.batch import IGNORE
from weitiao.core.errors import DataError, RecipeError
from weitiao.core.example import TextLabel, Turn
from weitiao.core.reporter import Reporter
from weitiao.core.trainable_model import reference_logits
from weitiao.data.tokenization import ChatProcessor
from weitiao.objective.objectives.generative_classification import GenerativeClassification
from weitiao.pipeline.evaluate import evaluate
from weitiao.pipeline.inference import open_model
from weitiao.pipeline.predict import predict_file
from weitiao.pipeline.train import train

DESK = Reporter(Console(quiet=True))
CLASSES = ("fox", "the fox", "lazy dog")  # one begins as another goes on


@pytest.fixture
def processor() -> ChatProcessor:
    return ChatProcessor.make(make_tokenizer())


@pytest.mark.parametrize("method", ["lora", "prompt_tuning", "prefix_tuning"])
def test_probabilities_equal_label_text_likelihood(method: str, processor: ChatProcessor) -> None:
    """By hand: a plain forward pass over question and class, and the log-probability of each word and of the stop."""
    objective, model = GenerativeClassification(classes=CLASSES), attached(method)
    model.processor = processor
    found = [TextLabel(f"{'train_tiny brown ' * i}time", (CLASSES[i % 3],)) for i in range(5)]
    rows = [objective.rows(x, processor)[0] for x in found]
    asked = [objective.encode_input(x, processor) for x in found]
    said, blind = (objective.predict(model, batch_of(x)) for x in (rows, asked))
    order = sorted(range(5), key=lambda i: -len(rows[i]["input_ids"]))
    with torch.no_grad():
        for i, mine in zip(order, said):
            turns = objective._prompt_turns(found[i].text)
            prompt, scores = processor.prompt(turns), []
            for name in CLASSES:
                (whole,) = processor.chat((*turns, Turn("assistant", name)))
                words = [token for token, supervised in zip(whole.ids, whole.assistant_mask) if supervised]
                assert whole.ids[: len(prompt) + len(words)] == prompt + words and words[-1] == processor.stop_ids[0]
                p = reference_logits(model, whole.ids[: len(prompt) + len(words)]).log_softmax(-1)[len(prompt) - 1 : -1]
                scores.append(float(p[torch.arange(len(words)), words].sum()))
            assert list(mine.values()) == pytest.approx(torch.tensor(scores).softmax(0).tolist(), rel=1e-4)
    assert [x for _, x in sorted(zip(order, said), key=lambda x: x[0])] == [
        pytest.approx(x, rel=1e-4)
        for _, x in sorted(zip(sorted(range(5), key=lambda i: -len(asked[i]["input_ids"])), blind), key=lambda x: x[0])
    ]


def test_loss_on_class_only_and_text_truncated(processor: ChatProcessor) -> None:
    objective = GenerativeClassification(classes=CLASSES, prompt="is it {classes}: {text} ?")
    (row,) = objective.rows(TextLabel("quick brown fox jumps over", ("lazy dog",)), processor)
    ids, labels = list(row["input_ids"]), list(row["labels"])
    supervised = [x for x in labels if x != IGNORE]
    assert (
        processor.decode(supervised, skip_special_tokens=False) == "lazy dog<|im_end|>"
        and labels[-len(supervised) :] == supervised
    )
    assert processor.decode(ids, skip_special_tokens=False).startswith(
        "<|im_start|>user\nis it fox, the fox, lazy dog: quick brown fox jumps over ?"
    )
    kept, lost = objective.cut(row, len(ids) - 3)
    assert len(kept["input_ids"]) == len(kept["labels"]) == len(ids) - 3 and len(lost) == 3
    assert [x for x in kept["labels"] if x != IGNORE] == supervised
    whole = "quick brown fox jumps over"
    assert processor.decode(kept["input_ids"], skip_special_tokens=False) == processor.decode(
        ids, skip_special_tokens=False
    ).replace(whole, whole.removesuffix(processor.decode(lost, skip_special_tokens=False)))
    with pytest.raises(ValueError, match="the question takes .* tokens without a text"):
        objective.cut(row, 10)


def test_invalid_settings_refused(processor: ChatProcessor) -> None:
    with pytest.raises(DataError, match="at least two classes are needed; there are: a"):
        GenerativeClassification().fit([TextLabel("x", ("a",))])
    with pytest.raises(DataError, match="101 classes, but a question lists at most 100"):
        GenerativeClassification().fit([TextLabel("x", (f"c{i}",)) for i in range(101)])
    with pytest.raises(ValidationError, match="write {text} once"):
        GenerativeClassification(prompt="which is it?")
    for labels, words in (
        (("a", "b"), "2 classes, but one is expected"),
        (("z",), "'z' is not one of the training classes: a, b"),
    ):
        with pytest.raises(ValueError, match=words):
            GenerativeClassification(classes=("a", "b")).rows(TextLabel("x", labels), processor)


def test_trains_and_reopens(train_tiny: Any, tmp_path: Path) -> None:
    rows = [
        {"text": f"{'fox' if i % 2 else 'dog'} {'train_tiny ' * (i % 5)}{i}", "label": ("time", "paris")[i % 2]}
        for i in range(60)
    ]
    run = train_tiny(
        base=str(save_model(tmp_path / "base")),
        data=[{"path": str(write_jsonl(tmp_path / "rows.jsonl", rows))}],
        objective="generative_classification",
        method={"name": "full"},
        train={"steps": 60, "learning_rate": 3e-3, "evaluate_every": 30, "best_metric": "accuracy"},
        evaluate={"metrics": "auto", "samples": 2},
    )
    scores = run.read("scores.json")
    assert scores["before"]["accuracy"]["value"] < 0.9 and scores["after"]["accuracy"]["value"] == 1.0
    again = evaluate(str(run.folder), DESK)
    assert again["loss"].value == pytest.approx(scores["after"]["loss"]["value"])
    assert all(x["after"] == x["reference"] for x in run.read("samples.jsonl"))
    file = write_jsonl(tmp_path / "new.jsonl", [{"id": i, "text": row["text"]} for i, row in enumerate(rows)])
    assert predict_file(open_model(str(run.folder)), str(file), str(tmp_path / "out.jsonl"), DESK).rows == 60
    said = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert [x["id"] for x in said] == list(range(60))
    assert sum(x["predicted"] == row["label"] for x, row in zip(said, rows)) >= 58
    assert all(sum(x["probabilities"].values()) == pytest.approx(1, abs=1e-5) for x in said)


def test_encoder_refused(recipe_file: Any, tmp_path: Path) -> None:
    from weitiao.core.recipe import read_recipe

    base = save_model(tmp_path / "bert", "bert")
    with pytest.raises(
        RecipeError, match="generative_classification needs a decoder or encoder-decoder model.*classification"
    ):
        train(read_recipe(recipe_file(base=str(base), objective="generative_classification")), DESK)
