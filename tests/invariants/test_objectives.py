"""Invariants of every objective. A new file in objective/objectives/ is tested without a new line here."""

from dataclasses import fields, replace
from typing import Any

import pytest
import torch

from support.laws import attached, perturb
from support.models import make_tokenizer, make_wordpiece_tokenizer
from support.parts import make_objective, method_config
from support.rows import batch_of, chat_rows
from weitiao.core.batch import IGNORE, pack
from weitiao.core.component_field import ComponentField
from weitiao.core.example import Chat, ExtractiveQA, Pair, SourceTarget, Task, Text, TextLabel, TextScore, TokenTags, Turn
from weitiao.core.method import Method
from weitiao.core.objective import Objective
from weitiao.core.registry import find, find_module, names
from weitiao.core.trainable_model import TrainableModel
from weitiao.data.tokenization import ChatProcessor
from weitiao.data.word_units import split_units
from weitiao.pipeline.load import heads_for, output_head
from weitiao.plan.compatibility import choose_step
from weitiao.train.distributed import Distributed
from weitiao.train.step import Step

OBJECTIVES = names(Objective)
EXAMPLES = {
    Text: [Text("the quick brown fox " * (i + 1)) for i in range(8)],
    TextLabel: [TextLabel("the quick brown fox " * (i + 1), ("abc"[i % 3],)) for i in range(8)],
    TextScore: [TextScore("the quick brown fox " * (i + 1), (float(i * i),), "lazy dog") for i in range(8)],
    ExtractiveQA: [
        ExtractiveQA("what asks", f"{'the fox ' * i}asks paris", ((8 * i + 5, "paris"),) * (i % 3 > 0)) for i in range(8)
    ],
    TokenTags: [
        TokenTags("the fox " * (i + 1), tuple(split_units("the fox " * (i + 1))), ("O", "B-who") * (i + 1))
        for i in range(8)
    ],
    Pair: [
        Pair("the quick brown fox " * (i + 1), f"jumps over {i}", tuple(f"dog {i} {k}" for k in range(1 + i % 3)))
        for i in range(8)
    ],
    Chat: [Chat(tuple(Turn(**turn) for turn in row["messages"])) for row in chat_rows(8)],
}


EXAMPLES[Task] = [Task("number" if i % 2 else "kind", EXAMPLES[TextScore if i % 2 else TextLabel][i]) for i in range(8)]
EXAMPLES[SourceTarget] = [SourceTarget("the quick brown fox " * (i + 1), f"jumps {'over ' * (i % 3)}{i}") for i in range(8)]
LIKELIHOODS = [name for name in OBJECTIVES if make_objective(name).traits.is_nll]


def fitted(name: str) -> Any:
    objective = make_objective(name)
    return objective.fit(EXAMPLES[objective.traits.example_type])


def rows_of(objective: Any) -> list[dict]:
    processor = ChatProcessor.make(make_wordpiece_tokenizer() if objective.traits.needs_mlm_head else make_tokenizer())
    return [row for x in EXAMPLES[objective.traits.example_type] for row in objective.rows(x, processor)]


def model_for(objective: Any, method: str) -> TrainableModel:
    model = attached(
        method, "t5" if objective.traits.needs_encoder_decoder else "bert" if objective.traits.needs_mlm_head else "llama"
    )
    if not objective.traits.generative:
        model.attachment.trainable -= output_head(model.model)
    torch.manual_seed(3)
    model.heads = torch.nn.ModuleDict(heads_for(model.model, objective)[0])
    if objective.traits.needs_mlm_head:
        model.processor = ChatProcessor.make(make_wordpiece_tokenizer())
    perturb(model)
    return model


def test_every_objective_found() -> None:
    assert {"causal_lm", "sft"} <= set(OBJECTIVES)


@pytest.mark.parametrize("name", LIKELIHOODS)
def test_counts_match_loss_terms(name: str) -> None:
    """The loss is a sum: by hand, minus the log-probability of every label, and as many as counted."""
    objective = fitted(name)
    batch, model = batch_of(rows_of(objective)), model_for(objective, "lora")
    supervised = batch.labels != IGNORE
    assert objective.counts(batch) == {name: float(supervised.sum())}
    by_hand = -model.logits(batch).log_softmax(-1)[supervised].gather(1, batch.labels[supervised][:, None]).sum()
    assert torch.allclose(objective.loss(model, batch).totals[name], by_hand, rtol=1e-5)
    by_row = objective.segment_losses(model, batch)
    assert sum(count for _, count in by_row) == float(supervised.sum())


@pytest.mark.parametrize("name", OBJECTIVES)
def test_batch_loss_is_sum_of_row_losses(name: str) -> None:
    """Each row's own loss and count add up to the batch's."""
    objective = fitted(name)
    batch, model = batch_of(rows_of(objective)), model_for(objective, "lora")
    by_row = objective.segment_losses(model, batch)
    assert len(by_row) == len(batch.lengths)
    totals = objective.loss(model, batch).totals
    assert objective.counts(batch).keys() == totals.keys()
    assert sum(count for _, count in by_row) == pytest.approx(sum(objective.counts(batch).values()))
    assert sum(total for total, _ in by_row) == pytest.approx(sum(float(x.detach()) for x in totals.values()), rel=1e-5)


PAIRS = [(name, method) for name in OBJECTIVES for method in names(Method) if not make_objective(name).traits.batch_coupled]
PAIRS = [
    (name, method)
    for name, method in PAIRS
    if find(Method, method).encoder_decoder or not make_objective(name).traits.needs_encoder_decoder
]


@pytest.mark.parametrize(("name", "method"), PAIRS)
def test_gradient_accumulation_exact(name: str, method: str) -> None:
    """1 x 8 = 2 x 4 = 8 x 1 = uneven: ||difference|| / ||gradient|| <= 1e-6 in fp32 (a likelihood: in each tensor)."""
    objective = fitted(name)
    rows = rows_of(objective)
    take = find_module(Step, choose_step(ComponentField("method").read(method_config(method)), objective)).compute_gradients
    assert len({len(row["input_ids"]) for row in rows}) > 2, "rows must be of unequal length"
    found = []
    for sizes in ((8,), (4, 4), (2, 2, 2, 2), (1,) * 8, (5, 1, 2)):
        model, at, window = model_for(objective, method), 0, []
        for size in sizes:
            window.append(pack(rows[at : at + size], range(at, at + size)))
            at += size
        taken = take(model, objective, window, Distributed(torch.device("cpu")))
        found.append((taken, {n: p.grad for n, p in model.trainable().items()}))
    first, gradients = found[0]
    for taken, other in found[1:]:
        assert (taken.tokens, taken.supervised_tokens) == (first.tokens, first.supervised_tokens)
        assert taken.loss == pytest.approx(first.loss, rel=1e-6)
        gaps = {tensor: (other[tensor] - g).norm() for tensor, g in gradients.items()}
        whole = torch.stack([g.norm() for g in gradients.values()]).norm()
        # scores held against each other, or one number a row: gradients that nearly cancel
        rounding = 1e-6 if objective.traits.is_nll and not objective.traits.repacks_segments else 3e-6
        assert torch.stack(list(gaps.values())).norm() <= rounding * whole
        # one label a row leaves some tensors a gradient that is a small difference of large ones
        most = 2e-6 if objective.traits.is_nll else 1e-5  # 1.4e-6 with AVX2, below 1e-6 with AVX-512
        # key biases: softmax ignores a shift of all scores, so their gradient is zero but for rounding
        nearly_nought = (
            objective.traits.needs_mlm_head or objective.traits.needs_encoder_decoder or not objective.traits.is_nll
        )
        least = 3e-8 * whole if nearly_nought else 0.0
        for tensor, g in gradients.items():
            assert gaps[tensor] <= most * g.norm() + least, tensor


def spelled(example: Any, words: str) -> Any:
    """The example with words at the end of each of its texts."""
    if isinstance(example, TokenTags):
        text = f"{example.text}{words}"
        units = tuple(split_units(text))
        return TokenTags(text, units, (*example.tags, *["O"] * (len(units) - len(example.tags))))
    if isinstance(example, Chat):
        return Chat(tuple(replace(turn, content=f"{turn.content} {words}") for turn in example.turns))
    if isinstance(example, Task):
        return replace(example, example=spelled(example.example, words))
    texts = {x.name: getattr(example, x.name) for x in fields(example) if x.name in ("text", "other", "target", "context")}
    return replace(example, **{key: f"{text} {words}" for key, text in texts.items()})


@pytest.mark.parametrize("name", OBJECTIVES)
def test_texts_never_become_control_tokens(name: str) -> None:
    """A row has as many control tokens as if its texts did not spell any, and it can be predicted from in the same way."""
    objective = fitted(name)
    made = ChatProcessor.make(make_wordpiece_tokenizer() if objective.traits.needs_mlm_head else make_tokenizer())
    control = set(made.tokenizer.all_special_ids) - {made.tokenizer.unk_token_id}

    def counts(words: str) -> list[list[int]]:
        examples = [spelled(x, words) for x in EXAMPLES[objective.traits.example_type]]
        rows = [row for x in examples for row in objective.rows(x, made)]
        return [[int(x) for x in row["input_ids"] if x in control] for row in rows]

    ordinary = counts("dog")
    for token in made.tokenizer.all_special_tokens:
        assert counts(f"{token} dog {token}") == ordinary, token
