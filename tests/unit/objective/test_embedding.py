"""Sentence embeddings: the losses by hand, texts that see no other, gradient caching, whole trips."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from torch.nn import functional as F

from support.laws import attached
from support.models import WORDS, make_wordpiece_tokenizer, save_model
from support.rows import batch_of, write_jsonl
from weitiao.core.batch import IGNORE
from weitiao.core.errors import DataError
from weitiao.core.example import Pair
from weitiao.core.registry import find_module
from weitiao.core.reporter import Reporter
from weitiao.data.mappings import pair as mapping
from weitiao.data.tokenization import ChatProcessor
from weitiao.evaluate.metrics.mrr import MRR
from weitiao.evaluate.metrics.recall_at_10 import RecallAt10
from weitiao.objective.objectives.embedding import Embedding
from weitiao.pipeline.evaluate import evaluate
from weitiao.pipeline.inference import open_model
from weitiao.pipeline.predict import predict_file
from weitiao.train.distributed import Distributed
from weitiao.train.step import Step

PROCESSOR = ChatProcessor.make(make_wordpiece_tokenizer())
DESK = Reporter(Console(quiet=True))
PAIRS = [
    Pair("the quick brown fox", "jumps over"),
    Pair("a lazy dog and a fox", "asks"),
    Pair("what time is it in paris", "seven wizards mix"),
    Pair("liquid", "boxes of boxes of boxes"),
]


def ready(objective: Embedding, pairs: list[Pair] = PAIRS, method: str = "full") -> tuple[Any, Any]:
    model = attached(method, "bert")
    model.heads = torch.nn.ModuleDict()
    return model, batch_of([row for x in pairs for row in objective.rows(x, PROCESSOR)])


def vectors(model: Any, texts: list[str]) -> torch.Tensor:
    """Each text alone, by transformers' own forward pass."""
    alone = [model.model(input_ids=torch.tensor([PROCESSOR.text(x)])).last_hidden_state[0].mean(0) for x in texts]
    return F.normalize(torch.stack(alone), dim=-1)


def by_row(batch: Any, each: torch.Tensor) -> list[float]:
    return [float(each[i].detach()) for i in batch.row_ids]


def test_packing_isolation() -> None:
    objective = Embedding()
    model, batch = ready(objective)
    found = dict(zip(batch.row_ids, objective.predict(model, batch)))
    for i, pair in enumerate(PAIRS):
        assert torch.allclose(found[i], vectors(model, [pair.text, pair.other]), atol=1e-5)


@pytest.mark.parametrize("symmetric", [False, True])
def test_in_batch_loss_equals_cross_entropy(symmetric: bool) -> None:
    objective = Embedding(symmetric=symmetric)
    model, batch = ready(objective)
    q, d = vectors(model, [x.text for x in PAIRS]), vectors(model, [x.other for x in PAIRS])
    each = F.cross_entropy(q @ d.T / 0.05, torch.arange(4), reduction="none")
    if symmetric:
        each = (each + F.cross_entropy(d @ q.T / 0.05, torch.arange(4), reduction="none")) / 2
    assert torch.allclose(objective.loss(model, batch).totals["embedding"], each.sum(), rtol=1e-4)
    assert [x for x, _ in objective.segment_losses(model, batch)] == pytest.approx(by_row(batch, each), rel=1e-3, abs=1e-4)
    assert objective.counts(batch) == {"embedding": 4.0}


def test_hard_negatives_in_loss() -> None:
    pairs = [Pair(x.text, x.other, ("the dog",) * (i % 2)) for i, x in enumerate(PAIRS)]
    objective = Embedding()
    model, batch = ready(objective, pairs)
    q = vectors(model, [x.text for x in pairs])
    d = vectors(model, [*(x.other for x in pairs), "the dog", "the dog"])
    by_hand = F.cross_entropy(q @ d.T / 0.05, torch.arange(4), reduction="sum")
    assert torch.allclose(objective.loss(model, batch).totals["embedding"], by_hand, rtol=1e-4)


def test_false_negatives_masked() -> None:
    """The same document twice, and the same query with another document."""
    pairs = [PAIRS[0], Pair("a lazy dog", "jumps over"), Pair("the quick brown fox", "asks")]
    objective = Embedding(symmetric=True)
    model, batch = ready(objective, pairs)
    s = vectors(model, [x.text for x in pairs]) @ vectors(model, [x.other for x in pairs]).T / 0.05
    for i, j in ((0, 1), (1, 0), (0, 2), (2, 0), (2, 1)):
        s[i, j] = -torch.inf
    s[1, 2] = (vectors(model, ["a lazy dog"]) @ vectors(model, ["asks"]).T / 0.05)[0, 0]
    at = torch.arange(3)
    by_hand = (F.cross_entropy(s, at, reduction="sum") + F.cross_entropy(s.T, at, reduction="sum")) / 2
    assert torch.allclose(objective.loss(model, batch).totals["embedding"], by_hand, rtol=1e-4)


def test_triplet_loss() -> None:
    pairs = [Pair(x.text, x.other, ("the dog", "a fox") if i == 1 else ()) for i, x in enumerate(PAIRS)]
    objective = Embedding(loss_type="triplet", margin=0.5)
    model, batch = ready(objective, pairs)
    q = vectors(model, [x.text for x in pairs])
    d = vectors(model, [*(x.other for x in pairs), "the dog", "a fox"])
    s = q @ d.T
    wrong = torch.stack([s[1, 4:].mean() if i == 1 else s[i, [j for j in range(6) if j != i]].max() for i in range(4)])
    by_hand = (0.5 - s.diagonal() + wrong).relu()
    assert [x for x, _ in objective.segment_losses(model, batch)] == pytest.approx(by_row(batch, by_hand), abs=1e-4)


def test_cosent_equals_formula() -> None:
    pairs = [Pair(x.text, x.other, similarity=y) for x, y in zip(PAIRS, (0.2, -0.0001, 5.0, 0.2))]
    objective = Embedding(loss_type="cosent").fit(pairs)
    model, batch = ready(objective, pairs)
    s = (vectors(model, [x.text for x in pairs]) * vectors(model, [x.other for x in pairs])).sum(-1) / 0.05
    y = [0.2, -0.0001, 5.0, 0.2]
    by_hand = (1 + sum(torch.exp(s[j] - s[i]) for i in range(4) for j in range(4) if y[i] > y[j])).log()
    total, count = objective.loss(model, batch).totals["embedding"], objective.counts(batch)["embedding"]
    assert torch.allclose(total / count, by_hand, rtol=1e-4)


def test_similarity_is_a_float_target() -> None:
    for value in (0.0, -0.0001, 1.0, -100.0, 4.5):
        (row,) = Embedding(loss_type="cosent").rows(Pair("a", "b", similarity=value), PROCESSOR)
        batch = batch_of([row])
        assert batch.targets["similarity"].dtype == torch.float32 and set(batch.labels.tolist()) == {IGNORE}
        assert batch.targets["similarity"].tolist() == [pytest.approx(value)]


# -- gradient caching -------------------------------------------------------------------------------------------------


def gradients(model: Any) -> dict[str, torch.Tensor]:
    return {name: p.grad.clone() for name, p in model.trainable().items() if p.grad is not None}


@pytest.mark.parametrize("many", [1, 3, 100])
@pytest.mark.parametrize("method", ["full", "lora", "prompt_tuning"])
def test_gradient_cache_equals_plain_step(method: str, many: int) -> None:
    found = []
    for objective in (Embedding(), Embedding(mini_batch_size=many)):
        model, batch = ready(objective, method=method)
        taken = find_module(Step, objective.traits.step).compute_gradients(
            model, objective, [batch], Distributed(torch.device("cpu")), 2.0
        )
        found.append((taken, gradients(model)))
    (plain, a), (cached, b) = found
    assert (cached.tokens, cached.supervised_tokens) == (plain.tokens, plain.supervised_tokens)
    assert cached.loss == pytest.approx(plain.loss, rel=1e-6) and a.keys() == b.keys()
    whole = torch.stack([g.norm() for g in a.values()]).norm()
    gap = torch.stack([(a[name] - b[name]).norm() for name in a]).norm()
    assert gap <= 3e-6 * whole  # fp32's rounding: 5e-7 here, twice that where memory lies otherwise


def test_gradient_cache_same_dropout() -> None:
    """Both times a chunk is embedded it has the same random numbers, and afterwards they go on where they were."""
    objective = Embedding(mini_batch_size=3)
    model, batch = ready(objective)
    model.model.train()
    texts = objective.texts(batch)
    torch.manual_seed(7)
    direct = torch.cat([objective.embed(model, texts[at : at + 3]) for at in range(0, len(texts), 3)])
    (objective.compare(direct, batch).totals["embedding"] / 4).backward()
    after, wanted = torch.get_rng_state(), gradients(model)
    model.model.zero_grad()
    torch.manual_seed(7)
    find_module(Step, "gradient_cache").compute_gradients(model, objective, [batch], Distributed(torch.device("cpu")))
    assert torch.equal(torch.get_rng_state(), after)
    found = gradients(model)
    whole = torch.stack([g.norm() for g in wanted.values()]).norm()
    assert torch.stack([(found[name] - wanted[name]).norm() for name in wanted]).norm() <= 1e-6 * whole


# -- data -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("record", "pair"),
    [
        ({"query": "a", "document": "b"}, Pair("a", "b")),
        ({"anchor": "a", "positive": "b", "negative": "c"}, Pair("a", "b", ("c",))),
        ({"question": "a", "answer": "b", "negatives": ["c", "d"]}, Pair("a", "b", ("c", "d"))),
        ({"sentence1": "a", "sentence2": "b", "score": "0.5"}, Pair("a", "b", similarity=0.5)),
    ],
)
def test_columns_detected(record: dict, pair: Pair) -> None:
    assert mapping.infer_columns(record)[0].make(record) == pair


@pytest.mark.parametrize(
    ("record", "words"),
    [
        ({"query": "a", "document": " "}, "the text is empty"),
        ({"query": "a", "document": "b", "negative": ""}, "has an entry that is empty or not text"),
        ({"query": "a", "document": "b", "negative": 3}, "is a number, not a text or a list of texts"),
        ({"query": "a", "document": "b", "score": "much"}, "column 'score' is 'much', not a number"),
        ({"query": "a", "document": "b", "score": "nan"}, "column 'score' is nan, not a finite number"),
    ],
)
def test_bad_rows_reported(record: dict, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        mapping.infer_columns(record)[0].make(record)


def test_scores_not_ignored() -> None:
    with pytest.raises(DataError, match="1 of 1 rows have a similarity score.*loss_type: cosent"):
        Embedding().fit([Pair("a", "b", similarity=1.0)])
    with pytest.raises(DataError, match="no row has one"):
        Embedding(loss_type="cosent").fit([Pair("a", "b")])


def test_each_text_up_to_max_length() -> None:
    objective = Embedding()
    (row,) = objective.rows(Pair("the quick brown fox jumps", "over the lazy dog", ("asks",)), PROCESSOR)
    longest = objective.num_positions(row)
    assert longest < len(row["input_ids"]) - 2
    kept, lost = objective.cut(row, longest - 1)
    assert objective.num_positions(kept) == longest - 1 and len(kept["input_ids"]) + len(lost) == len(row["input_ids"])
    assert sorted(set(kept["token_targets"]["text_index"])) == [0, 1, 2] and objective.num_targets(kept) == 3
    assert [kind for kind, _ in objective.preview(kept, lost, PROCESSOR)] == ["context", "target", "context", "lost"]


# -- measuring --------------------------------------------------------------------------------------------------------


def test_ranks_over_all_documents() -> None:
    e = torch.eye(4)
    said = [torch.stack([e[0], e[0]]), torch.stack([e[1], e[2]]), torch.stack([e[1], e[1]]), torch.stack([e[0], e[3]])]
    pairs = [Pair("a", "A"), Pair("b", "B"), Pair("c", "C"), Pair("a", "A2")]
    ranks = Embedding().metric_pairs(list(zip(said, pairs)))
    assert ranks == [(1, 4), (4, 4), (1, 4), (3, 4)], "ties count against; another right document of the query does not"
    assert RecallAt10().score([(10, 20), (11, 20)]).value == 0.5
    score = MRR().score([(1, 4), (4, 4)])
    assert score.value == pytest.approx(0.625) and score.higher_is_better and score.n == 2


# -- whole trips ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("cache", [0, 4])
def test_trains_reopens_and_embeds(train_tiny: Any, tmp_path: Path, cache: int) -> None:
    words = WORDS.split()[:16]
    other = dict(zip(words, words[6:] + words[:6]))  # each word has another one that stands for it
    rows = [{"query": f"{a} {b}", "document": f"{other[b]} {other[a]}"} for a in words for b in words[:5] if a != b]
    run = train_tiny(
        base=str(save_model(tmp_path / "bert", "bert")),
        data=[{"path": str(write_jsonl(tmp_path / "pairs.jsonl", rows))}],
        objective={"name": "embedding", "mini_batch_size": cache},
        method={"name": "full"},
        train={"steps": 40, "batch_size": 16, "learning_rate": 3e-3, "evaluate_every": 20},
        evaluate={"metrics": "auto", "samples": 2},
    )
    scores = run.read("scores.json")
    assert scores["after"]["mrr"]["value"] > scores["before"]["mrr"]["value"]
    assert scores["after"]["loss"]["value"] < scores["before"]["loss"]["value"]
    assert scores["after"]["recall_at_10"]["n"] >= 5
    again = evaluate(str(run.folder), DESK)
    assert again["mrr"].value == scores["after"]["mrr"]["value"]
    asked = write_jsonl(tmp_path / "asked.jsonl", [{"id": 7, "text": "quick fox"}, {"id": 8, "text": " "}])
    opened = open_model(str(run.folder))
    done = predict_file(opened, str(asked), str(tmp_path / "o.jsonl"), DESK, "text")
    assert (done.rows, done.bad) == (1, 1)
    line = json.loads((tmp_path / "o.jsonl").read_text())
    assert line.keys() == {"id", "text", "embedding"}
    ids = torch.tensor([opened.assets.processor.text("quick fox")])
    with torch.no_grad():
        plain = F.normalize(opened.model.model(input_ids=ids).last_hidden_state[0].mean(0), dim=-1)
    assert torch.allclose(torch.tensor(line["embedding"]), plain, atol=1e-5)


def test_queries_with_several_right_documents() -> None:
    """Query q has the documents a and b, query r has c; document scores by hand."""
    unit = torch.eye(4)
    q, r, a, b, c = unit[0], unit[1], unit[0] * 0.9, unit[0] * 0.2 + unit[1] * 0.5, unit[0] * 0.5 + unit[1] * 0.4
    pairs = [Pair("q", "a"), Pair("q", "b"), Pair("r", "c")]
    said = [torch.stack(x) for x in ((q, a), (q, b), (r, c))]
    assert Embedding().metric_pairs(list(zip(said, pairs)), by_query=True) == [([1, 3], 3), ([2], 3)]
    assert Embedding().metric_pairs(list(zip(said, pairs))) == [(1, 3), (2, 3), (2, 3)]


# -- sampling correction ----------------------------------------------------------------------------------------------


def test_sampling_correction_by_hand() -> None:
    """The document that three of four training rows have: log 3 is taken from its column of logits."""
    training = [Pair(f"q{i}", "jumps over") for i in range(3)] + [Pair("r", "asks")]
    plain, corrected = Embedding(), Embedding(sampling_correction=True).fit(training)
    model, batch = ready(corrected, PAIRS[:2])
    scores = vectors(model, [x.text for x in PAIRS[:2]]) @ vectors(model, [x.other for x in PAIRS[:2]]).T / 0.05
    logits = scores - torch.tensor([[3.0, 1.0]]).log()
    expected = [float((logits[i].logsumexp(0) - logits[i, i]).detach()) for i in range(2)]
    found = by_row(batch, corrected._row_losses(corrected.embed(model, corrected.texts(batch)), batch))
    assert found == pytest.approx(expected, abs=1e-4)
    _, other = ready(plain, PAIRS[:2])
    assert by_row(other, plain._row_losses(plain.embed(model, plain.texts(other)), other)) != pytest.approx(
        expected, abs=1e-2
    )


@pytest.mark.parametrize("settings, rows", [({"loss_type": "triplet"}, PAIRS), ({}, [Pair("a", "b", ("c",))])])
def test_sampling_correction_refused(settings: dict, rows: list[Pair]) -> None:
    with pytest.raises(DataError, match="sampling_correction is for loss_type: in_batch_negatives"):
        Embedding(sampling_correction=True, **settings).fit(rows)


def test_sampling_correction_survives_the_recipe() -> None:
    fitted = Embedding(sampling_correction=True).fit([*PAIRS, *PAIRS])
    again = Embedding(**{key: x for key, x in fitted.as_recipe().items() if key != "name"})
    assert again == fitted and set(again.sampling_correction.values()) == {2}  # pyright: ignore[reportAttributeAccessIssue]
    assert Embedding(sampling_correction=True).fit(PAIRS).sampling_correction is False, "no document comes twice"
    with pytest.raises(ValueError, match="negatives of its own"):
        fitted.rows(Pair("a", "b", ("c",)), PROCESSOR)
