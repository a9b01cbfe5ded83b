"""Token classification: labels where words begin, loss by definition, windows, and whole runs."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console

from support.laws import attached
from support.models import make_tokenizer, make_wordpiece_tokenizer, save_model
from support.rows import batch_of, write_jsonl
from weitiao.core.batch import IGNORE
from weitiao.core.bio_tags import tags_to_entities
from weitiao.core.errors import DataError
from weitiao.core.example import TokenTags
from weitiao.core.reporter import Reporter
from weitiao.data.tokenization import ChatProcessor
from weitiao.data.word_units import join_tokens, split_units
from weitiao.objective.crf import log_likelihood
from weitiao.objective.objectives.token_classification import TokenClassification, UnitScores
from weitiao.objective.token_units import encode_units
from weitiao.pipeline.evaluate import evaluate
from weitiao.pipeline.inference import open_model
from weitiao.pipeline.predict import predict_file

DESK = Reporter(Console(quiet=True))


def tagged(words: str, tags: str) -> TokenTags:
    text, units = join_tokens(words.split())
    return TokenTags(text, tuple(units), tuple(tags.split()))


def examples(count: int = 8) -> list[TokenTags]:
    rows = [
        ("the quick brown fox", "O O B-who I-who"),
        ("what time is it in paris", "O O O O O B-where"),
        ("seven wizards mix boxes", "B-who I-who O O"),
        ("你 好 世 界", "O O B-where I-where"),
    ]
    return [tagged(*rows[i % 4]) for i in range(count)]


def processor(family: str = "bert") -> ChatProcessor:
    return ChatProcessor.make(make_wordpiece_tokenizer() if family == "bert" else make_tokenizer())


def ready(objective: TokenClassification, family: str = "bert", scale: float = 20) -> tuple[Any, Any, Any]:
    """(the fitted objective, a tiny model with its heads, all rows as one batch)."""
    objective = objective.fit(examples())
    batch = batch_of([row for x in examples() for row in objective.rows(x, processor(family))])
    model = attached("lora", family)
    torch.manual_seed(0)
    model.heads = torch.nn.ModuleDict(objective.heads(32))
    for name, weight in model.heads.named_parameters():
        weight.data.mul_(scale) if name == "tags.weight" else weight.data.normal_()
    return objective, model, batch


# -- rows -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", ["bert", "llama"])
def test_label_on_first_token_of_word(family: str) -> None:
    """What the tokens from one label to the next entities_to_tags is the unit, to the letter; every unit has a label."""
    objective, p = TokenClassification().fit(examples()), processor(family)
    odd = tagged("dogs liquidizing 世 界 , (fox) é 😀 x", "B-who O O B-where O O B-who I-who O")
    for example in [*examples(), odd]:
        (row,) = objective.rows(example, p)
        ids, at = list(row["input_ids"]), [i for i, x in enumerate(row["labels"]) if x != IGNORE]
        assert [objective._tags[row["labels"][i]] for i in at] == list(example.tags)
        for (start, end), i, behind in zip(example.units, at, [*at[1:], len(ids) - len(p.special_tokens.last)]):
            decode_with_special = p.decode(ids[i:behind], skip_special_tokens=False).strip().replace(" ", "")
            assert (
                decode_with_special == example.text[start:end]
                or "[UNK]" in decode_with_special
                or (decode_with_special, family) == ("e", "bert")
            )


@pytest.mark.parametrize("family", ["bert", "llama"])
def test_token_spanning_two_words_split(family: str) -> None:
    """The tokenizers know whole words; here each letter has a tag."""
    p, text = processor(family), "the fox"
    units = tuple((i, i + 1) for i, x in enumerate(text) if x != " ")
    ids, firsts = encode_units(TokenTags(text, units, ("O",) * 6), p)
    assert len(p.encode_with_offsets(text)[0]) < 6 <= len(ids) and None not in firsts and len(set(firsts)) == 6
    assert p.decode(ids, skip_special_tokens=False).replace(" ", "") == "thefox"


def test_words_without_token_skipped() -> None:
    """BERT's tokenizer drops control characters: tags do not slip, and the entity is what remains of it."""
    objective, p = TokenClassification().fit(examples()), processor()
    odd = TokenTags(
        "fox \x00 lazy \x00 dog", ((0, 3), (4, 5), (6, 10), (11, 12), (13, 16)), ("O", "B-who", "I-who", "I-who", "I-who")
    )
    assert encode_units(odd, p)[1].count(None) == 2
    (row,) = objective.rows(odd, p)
    assert [objective._tags[x] for x in row["labels"] if x != IGNORE] == ["O", "B-who", "I-who"]
    e = torch.full((3, len(objective._tags)), -9.0)
    for u, tag in enumerate(["O", "B-who", "I-who"]):
        e[u, objective._tags.index(tag)] = 9.0
    found = objective.merge_windows([UnitScores(e, objective._rules)], odd, p)
    assert found.tags == ["O", "O", "B-who", "I-who", "I-who"] and found.entities[0]["text"] == "lazy \x00 dog"
    select_segments = TokenTags("\x00", ((0, 1),), ("B-who",))
    assert all(x == IGNORE for x in objective.rows(select_segments, p)[0]["labels"])
    assert objective.merge_windows([UnitScores(e[:0], objective._rules)], select_segments, p).tags == ["O"]


def test_predict_encodes_as_training() -> None:
    """The same ids and the same places, without the tags."""
    objective, p = TokenClassification().fit(examples()), processor()
    for example in examples():
        (row,) = objective.rows(example, p)
        shown = objective.encode_input(TokenTags(example.text, example.units, ()), p)
        assert row["input_ids"] == shown["input_ids"]
        assert [x == IGNORE for x in row["labels"]] == [x == IGNORE for x in shown["labels"]]
        assert set(shown["labels"]) <= {0, IGNORE}


def test_tag_schemes() -> None:
    found = examples()
    assert TokenClassification().fit(found)._tags == ("O", "B-where", "I-where", "B-who", "I-who")
    closed = TokenClassification(scheme="bioes").fit(found)
    assert closed._tags[:5] == ("O", "B-where", "I-where", "E-where", "S-where")
    (row,) = closed.rows(found[1], processor())
    assert [closed._tags[x] for x in row["labels"] if x != IGNORE][-1] == "S-where"
    assert TokenClassification().fit([tagged("a b", "S-x O")]).scheme == "bioes"
    numbers = TokenClassification(tag_names=("O", "B-who", "I-who")).fit([tagged("the fox", "0 1")])
    assert numbers._tags == ("O", "B-who", "I-who") and numbers._entities(tagged("the fox", "0 1")) == [(1, 2, "who")]
    with pytest.raises(ValueError, match="tag 7 is a number, but tag_names has 3 names"):
        numbers._entities(tagged("the fox", "0 7"))


@pytest.mark.parametrize(
    ("tags", "words"),
    [
        ("O I-who", "tag 2 is I-who after O.*repair_tags: true"),
        ("O B-when", "tag 2 is B-when, but 'when' is not one of the entity types: where, who"),
        ("O VB", "the tag 'VB' is none of O, B-x"),
        ("O 3", "tag 3 is a number: name the tags with tag_names"),
    ],
)
def test_untrainable_tags_refused(tags: str, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        TokenClassification().fit(examples()).rows(tagged("the fox", tags), processor())


def test_tag_repair() -> None:
    objective = TokenClassification(repair_tags=True).fit(examples())
    (row,) = objective.rows(tagged("the fox", "I-who I-who"), processor())
    assert [objective._tags[x] for x in row["labels"] if x != IGNORE] == ["B-who", "I-who"]


def test_only_o_tags_refused() -> None:
    with pytest.raises(DataError, match="there is no entity in 3 rows, so there is nothing to train on"):
        TokenClassification().fit([tagged("the fox", "O O")] * 3)


def test_preview_shows_kinds() -> None:
    objective, p = TokenClassification().fit(examples()), processor()
    (row,) = objective.rows(examples()[0], p)
    drawn = objective.preview(row, [], p)
    assert ("target", "‹who›") in drawn and drawn[-1] == ("target", " → 1 entities, O at 2 units")
    assert "".join(text for kind, text in drawn if kind == "context").split() == [
        "[CLS]",
        "the",
        "quick",
        "brown",
        "fox",
        "[SEP]",
    ]


# -- windows ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("context", [8, 11, 16, 30])
@pytest.mark.parametrize("length", [31, 48, 300])
def test_windows_label_once_with_most_context(context: int, length: int) -> None:
    """Every token is another here, so that it is seen where each window stands."""
    labels = [0 if i == 0 or i % 3 else IGNORE for i in range(length)]
    row: Any = {"input_ids": [1, *range(1000, 1000 + length), 2], "labels": [IGNORE, *labels, IGNORE]}
    windows = TokenClassification(entity_types=("a",)).windows(row, context)
    assert all((len(w["input_ids"]), w["input_ids"][0], w["input_ids"][-1]) == (context, 1, 2) for w in windows)
    starts, room = [w["input_ids"][1] - 1000 for w in windows], context - 2
    assert all(list(w["input_ids"])[1:-1] == list(range(1000 + a, 1000 + a + room)) for a, w in zip(starts, windows))

    def context_of(t: int, start: int) -> int:
        """The distance to the nearest cut; the text's own ends are none."""
        return min(t - start if start else length, start + room - 1 - t if start + room < length else length)

    held = [(a + i, a) for a, w in zip(starts, windows) for i, x in enumerate(list(w["labels"])[1:-1]) if x != IGNORE]
    assert [t for t, _ in held] == [t for t, x in enumerate(labels) if x != IGNORE], "each once, in order"
    for t, start in held:
        assert context_of(t, start) == max(context_of(t, a) for a in starts if a <= t < a + room)


@pytest.mark.parametrize("crf", [False, True])
def test_windows_decoded_as_whole(crf: bool) -> None:
    """Scores of the windows, joined, are those of the text: with a head alone (no context) even the same figures."""
    objective, model, batch = ready(TokenClassification(crf=crf))
    whole = objective.predict(model, batch)
    for i, row in enumerate(batch.row_ids):
        example = examples()[row]
        parts = [UnitScores(x, whole[i].chain) for x in whole[i].emissions.split(2)]
        one, other = (objective.merge_windows(x, example, processor()) for x in ([whole[i]], parts))
        assert one == other and one.tags == objective.metric_pair(one, example)[0]
        tags_to_entities(one.tags)


def test_window_starting_inside_entity() -> None:
    objective, model, batch = ready(TokenClassification(crf=True))
    rows = [row for x in examples() for row in objective.rows(x, processor())]
    first = [i for i, x in enumerate(rows[0]["labels"]) if x != IGNORE]
    inner = {**rows[0], "labels": [x if i >= first[3] else IGNORE for i, x in enumerate(rows[0]["labels"])]}
    assert objective._tags[inner["labels"][first[3]]] == "I-who"
    assert all(0 <= total < 100 for total, _ in objective.segment_losses(model, batch_of([inner, rows[1]])))


# -- the loss ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", ["bert", "llama"])
@pytest.mark.parametrize("crf", [False, True])
def test_loss_equals_definition(crf: bool, family: str) -> None:
    objective, model, batch = ready(TokenClassification(crf=crf), family)
    total, units = objective.loss(model, batch).totals["token_classification"], objective.counts(batch)
    assert units == {"token_classification": float(sum(len(x.units) for x in examples()))}
    hidden, wanted = model.hidden(batch), 0.0
    for a, b in zip(batch.bounds, batch.bounds[1:]):
        asked = batch.labels[a:b] != IGNORE
        e, y = model.heads["tags"](hidden[a:b][asked]), batch.labels[a:b][asked]
        if crf:
            wanted -= log_likelihood(e[None], y[None], torch.tensor([len(y)]), model.heads["crf"]())[0]
        else:
            wanted += torch.nn.functional.cross_entropy(e, y, reduction="sum")
    assert torch.allclose(total, torch.as_tensor(wanted), rtol=1e-5)


# -- whole trips ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_model(tmp_path_factory.mktemp("encoder") / "bert", "bert")


def rows(count: int) -> list[dict[str, Any]]:
    """fox and dog are who, paris is where, 世界 too; rows of unequal length."""
    made = []
    for i in range(count):
        text = (
            f"{'the train_tiny ' * (i % 5)}{'fox' if i % 2 else 'lazy dog'} asks in {'paris' if i % 3 else '你好世界'} {i}"
        )
        spans = [(text.index(w), text.index(w) + len(w), kind) for w, kind in
                 (("fox", "who"), ("lazy dog", "who"), ("paris", "where"), ("世界", "where")) if w in text]  # fmt: skip
        made.append({"id": i, "text": text, "entities": [{"start": a, "end": b, "label": k} for a, b, k in spans]})
    return made


@pytest.mark.parametrize("crf", [False, True])
def test_encoder_trains_reopens_and_predicts(train_tiny: Any, encoder: Path, tmp_path: Path, crf: bool) -> None:
    run = train_tiny(
        base=str(encoder),
        data=[{"path": str(write_jsonl(tmp_path / "rows.jsonl", rows(60)))}],
        objective={"name": "token_classification", "head_learning_rate": 1e-2, "crf": crf},
        method={"name": "full"},
        train={"steps": 60, "learning_rate": 3e-3, "evaluate_every": 60, "best_metric": "entity_f1"},
        evaluate={"metrics": "auto", "samples": 2},
    )
    scores = run.read("scores.json")
    assert scores["before"]["entity_f1"]["value"] < 0.9 and scores["after"]["entity_f1"]["value"] == 1.0
    assert scores["after"]["entity_recall"]["n"] == scores["after"]["loss"]["n"] >= 8
    assert all(x["after"] == x["reference"] != "none" for x in run.read("samples.jsonl"))
    assert ["target", "‹who›"] in run.read("resolved.json")["previews"][0]["pieces"]
    opened = open_model(str(run.folder))
    assert opened.objective.entity_types == ("where", "who") and ("crf" in opened.model.heads) == crf
    measured = evaluate(str(run.folder), DESK)
    assert measured["loss"].value == scores["after"]["loss"]["value"]
    long = {"text": " ".join(x["text"] for x in rows(60))}  # longer than the model takes
    file = write_jsonl(tmp_path / "new.jsonl", [*({"id": x["id"], "text": x["text"]} for x in rows(6)), long])
    done = predict_file(opened, str(file), str(tmp_path / "out.jsonl"), DESK)
    assert (done.rows, done.bad, done.truncated) == (7, 0, 0)
    lines = [json.loads(x) for x in (tmp_path / "out.jsonl").read_text().splitlines()]
    for line, row in zip(lines, rows(6)):
        assert [(x["start"], x["end"], x["label"]) for x in line["entities"]] == [
            (x["start"], x["end"], x["label"]) for x in row["entities"]
        ]
        assert all(0.5 < x["probability"] <= 1 for x in line["entities"]) and line["id"] == row["id"]
    found = lines[6]["entities"]
    assert len(found) > 100 and all(long["text"][x["start"] : x["end"]] == x["text"] for x in found)
    assert len(lines[6]["tags"]) == len(split_units(long["text"]))


def test_unusable_row_named_with_line(train_tiny: Any, encoder: Path, tmp_path: Path) -> None:
    bad = [
        {"text": "the fox", "entities": [{"start": 4, "end": 9, "label": "who"}]},
        {"text": "the fox", "entities": [[0, 5, "who"]]},
        {"text": "the lazy fox", "entities": [[0, 8, "who"], [4, 12, "who"]]},
        {"text": " ", "entities": []},
        {"text": "the fox", "entities": [[3, 4, "who"]]},
        {"text": "the fox", "entities": [["0", 3, "who"]]},
    ]
    unseen = write_jsonl(tmp_path / "held.jsonl", [*rows(9), {"text": "now", "entities": [[0, 3, "when"]]}])
    run = train_tiny(
        base=str(encoder),
        data=[{"path": str(write_jsonl(tmp_path / "rows.jsonl", [*rows(20), *bad]))}],
        objective="token_classification",
        evaluate={"data": str(unseen), "metrics": ["entity_f1"]},
        train={"steps": 1},
        max_bad_fraction=1.0,
    )
    assert run.read("scores.json")["after"]["entity_f1"]["n"] == 9
    reasons = {(Path(x["file"]).stem, x["line"]): x["reason"] for x in run.read("bad_rows.jsonl")}
    wanted = ["outside the text of 7 characters", "ends or starts inside the word 'fox'", "overlap", "the text is empty",
              "contains no word", "two whole numbers"]  # fmt: skip
    for line, words in enumerate(wanted, 21):
        assert words in reasons["rows", line], reasons
    assert "'when' is not one of the entity types" in reasons["held", 10]
    assert len(reasons) == len(wanted) + 1


def test_trains_from_conll(train_tiny: Any, encoder: Path, tmp_path: Path) -> None:
    """A row whose tags break BIO and one that lacks a column are set aside; the rest is trained on."""
    good = "the DT O\nfox NN B-who\n\n"
    (tmp_path / "a.conll").write_text(f"-DOCSTART- -X- O\n\n{good * 9}the DT O\nfox NN I-who\n\nin O\nparis NN O\n")
    run = train_tiny(
        base=str(encoder),
        data=[{"path": str(tmp_path / "a.conll")}],
        objective="token_classification",
        validation=0.0,
        train={"steps": 1},
        max_bad_fraction=0.5,
    )
    reasons = {x["line"]: x["reason"] for x in run.read("bad_rows.jsonl")}
    assert set(reasons) == {30, 34} and "tag 2 is I-who after O" in reasons[30] and "3 columns" in reasons[34]
