"""Reranking: loss by definition, isolation of pairs, refusals, and a whole run."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console

from support.laws import attached
from support.models import make_wordpiece_tokenizer, save_model
from support.rows import batch_of, write_jsonl
from weitiao.core.batch import pack
from weitiao.core.errors import DataError
from weitiao.core.example import Pair
from weitiao.core.reporter import Reporter
from weitiao.data.tokenization import ChatProcessor
from weitiao.objective.objectives.rerank import Rerank
from weitiao.objective.pooling import pooled, text_row
from weitiao.pipeline.evaluate import evaluate
from weitiao.pipeline.inference import open_model
from weitiao.pipeline.predict import predict_file

PROCESSOR, DESK = ChatProcessor.make(make_wordpiece_tokenizer()), Reporter(Console(quiet=True))
PAIRS = [
    Pair("what time is it", "in paris", ("the lazy dog", "seven boxes of liquid")),
    Pair("the fox", "jumps over the dog", ("quietly",)),
    Pair("who asks", "seven wizards", ("the quick brown fox " * 3, "boxes", "liquid")),
]


def ready() -> tuple[Rerank, Any, Any]:
    objective, model = Rerank(), attached("lora", "bert")
    torch.manual_seed(0)
    model.heads = torch.nn.ModuleDict(objective.heads(32))
    model.heads["relevance"].weight.data.mul_(50)
    return objective, model, batch_of([row for x in PAIRS for row in objective.rows(x, PROCESSOR)])


def test_loss_equals_cross_entropy_over_documents() -> None:
    """Each pair alone through the model, scored and compared by hand."""
    objective, model, batch = ready()
    by_hand = []
    for i in batch.row_ids:
        x = PAIRS[i]
        scores = []
        for document in (x.other, *x.negatives):
            row = pack([text_row(PROCESSOR, x.text, document)])
            scores.append(model.heads["relevance"](pooled(model, row, "auto"))[0, 0])
        by_hand.append(torch.nn.functional.cross_entropy(torch.stack(scores)[None], torch.tensor([0])))
    assert torch.allclose(objective.row_losses(model, batch), torch.stack(by_hand), rtol=1e-4)
    assert objective.counts(batch) == {"rerank": 3.0}


def test_rank_ties() -> None:
    objective = Rerank()
    assert objective.metric_pair([2.0, 1.0, 3.0, 2.0], PAIRS[0]) == (3, 4) and objective.metric_pair(
        [2.0, 1.0], PAIRS[1]
    ) == (1, 2)


def test_long_pair_truncated() -> None:
    objective = Rerank()
    (row,) = objective.rows(PAIRS[2], PROCESSOR)
    kept, lost = objective.cut(row, 9)
    assert objective.num_positions(row) > 9 == objective.num_positions(kept) and lost
    assert sorted(set(kept["token_targets"]["text_index"])) == [0, 1, 2, 3]
    assert len(kept["input_ids"]) + len(lost) == len(row["input_ids"])


@pytest.mark.parametrize(
    ("pair", "words"),
    [
        (Pair("a", "fox"), "no wrong document"),
        (Pair("a", "fox", ("dog", "dog")), "names a document twice"),
        (Pair("a", "fox", ("fox",)), "right and wrong at once"),
    ],
)
def test_bad_rows_reported(pair: Pair, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        Rerank().rows(pair, PROCESSOR)
    with pytest.raises(ValueError, match="query and document are read together"):
        Rerank().encode_input(Pair("a", ""), PROCESSOR)


def test_data_without_negatives_refused() -> None:
    with pytest.raises(DataError, match="no row has a wrong document.*objective: embedding, which needs none"):
        Rerank().fit([Pair("a", "b")])


def test_trains_and_reopens(train_tiny: Any, tmp_path: Path) -> None:
    """The right document is the one that names a place."""
    words = ("fox", "dog", "box", "time")
    rows = [
        {
            "query": f"the quick {words[i % 4]} {i}",
            "document": f"{'lazy ' * (i % 3)}paris {words[i % 4]}",
            "negatives": [f"lazy {words[(i + k) % 4]}" for k in (0, 1)],
        }
        for i in range(60)
    ]
    run = train_tiny(
        base=str(save_model(tmp_path / "bert", "bert")),
        data=[{"path": str(write_jsonl(tmp_path / "rows.jsonl", rows))}],
        validation=0.3,
        objective={"name": "rerank", "head_learning_rate": 1e-2},
        method="full",
        train={"steps": 50, "learning_rate": 3e-3, "evaluate_every": 0},
        evaluate={"metrics": "auto", "samples": 2},
    )
    scores = run.read("scores.json")
    assert scores["before"]["mrr"]["value"] < 0.8 < scores["after"]["mrr"]["value"]
    assert evaluate(str(run.folder), DESK)["mrr"].value == scores["after"]["mrr"]["value"]
    asked = [
        {"id": i, "query": "the quick fox", "document": f"lazy {word}"} for i, word in enumerate(("paris", *words[:3]))
    ]
    file = write_jsonl(tmp_path / "asked.jsonl", [*asked, {"id": 9, "query": "the quick fox", "document": ""}])
    done = predict_file(open_model(str(run.folder)), str(file), str(tmp_path / "out.jsonl"), DESK)
    said = [json.loads(x) for x in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert (done.rows, done.bad) == (4, 1) and [x["id"] for x in said] == [0, 1, 2, 3]
    assert max(said, key=lambda x: x["predicted"])["id"] == 0
