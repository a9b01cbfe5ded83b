"""Token classification: which words are names, places, dates: a tag for each unit of a text.

Devlin et al. 2019, "BERT", arXiv 1810.04805, sec. 5.3; with a CRF, Lample et al. 2016, arXiv 1603.01360, sec. 2.2 and 2.3:

    e = W dropout(h) + b                               [N, C]: of each unit, at its first token
    softmax     loss = - sum log softmax(e)_y          divided by the number of units
    crf         loss = - sum log p(y_1 ... y_U)        divided by the number of units

    [CLS]  Wash  ##ington  met   Ada  .  [SEP]
      -    B-PER     -      O   B-PER O    -           labels; - is not learnt

A unit is a word, and of Chinese a character. Whatever the loss, what is predicted is the best sequence among those that
the scheme allows (no I-x behind O), and a text that was read in windows is decoded as a whole.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.rnn import pad_sequence

from weitiao.core.batch import IGNORE, Batch, Row
from weitiao.core.bio_tags import (
    Entity,
    Scheme,
    all_tags,
    can_end,
    can_follow,
    can_start,
    entities_to_tags,
    split_tag,
    tags_to_entities,
)
from weitiao.core.errors import DataError
from weitiao.core.example import TokenTags
from weitiao.core.objective import HeadObjective, Preview
from weitiao.core.processor import Processor
from weitiao.core.trainable_model import TrainableModel
from weitiao.core.traits import Traits
from weitiao.objective.crf import FORBIDDEN, Chain, ChainScores, log_likelihood, opened, stretch_logprobs, viterbi

HEAD, CRF = "tags", "crf"
OVERLAP = 4  # neighbouring windows share at least this part of their room


@dataclass(frozen=True)
class Scored:
    """What the head says of a row's units, before anything is decided."""

    emissions: Tensor  # [U, C]
    chain: Chain


@dataclass(frozen=True)
class Found:
    """What was decided: a tag a unit, and the entities with how probable they are."""

    tags: list[str]
    entities: list[dict[str, Any]]


class TokenClassification(HeadObjective):
    """Tag each word, or each Chinese character: names, places, any stretch of text with a kind."""

    default_traits: ClassVar[Traits] = Traits(
        example_type=TokenTags,
        generative=False,
        splittable=True,
        overlong="sliding_window",
        overlong_reason="every word of a long text is tagged: it is read in windows that overlap",
        metrics=("loss", "entity_f1", "entity_precision", "entity_recall"),
    )

    entity_types: tuple[str, ...] = ()
    """The entity_types of entities, in the order of the scores; none: those of the training data."""
    scheme: Literal["auto", "bio", "bioes"] = "auto"
    """How entities are spelt in tags, whatever the data have; auto: bioes where the data have E- or S-, else bio."""
    crf: bool = False
    """Learn the tags of a text as one sequence (a linear-chain CRF) rather than each alone."""
    repair_tags: bool = False
    """Take I-x behind O as the beginning of an entity; else such a row is put aside."""
    tag_names: tuple[str, ...] = ()
    """What tags that are numbers mean: the tag of 0, of 1 ... (as in data sets of the Hugging Face hub)."""
    dropout: float = Field(default=0.1, ge=0, lt=1)
    """On the hidden states, while training."""

    def fit(self, examples: Sequence[TokenTags]) -> "TokenClassification":  # pyright: ignore[reportIncompatibleMethodOverride]
        """The objective that knows its entity_types and its scheme. Rows whose tags cannot be read are named later."""
        prefixes, entity_types = set(), set()
        for tag in {tag for x in examples for tag in x.tags}:
            try:
                prefix, kind = split_tag(*self._named([tag]))
            except ValueError:
                continue
            prefixes.add(prefix)
            entity_types.add(kind)
        entity_types.discard("")
        if not entity_types:
            raise DataError(
                f"data: in {len(examples):,} rows there is no entity, every tag is O or none: there is nothing to learn. "
                "Tags are O, B-x, I-x; where they are numbers, say what they mean with names."
            )
        scheme = self.scheme if self.scheme != "auto" else "bioes" if prefixes & {"E", "S"} else "bio"
        return self.model_copy(update={"entity_types": self.entity_types or tuple(sorted(entity_types)), "scheme": scheme})

    @property
    def tags(self) -> tuple[str, ...]:
        """[C]: every tag, O first."""
        return all_tags(self.entity_types, self._scheme)

    @property
    def head_labels(self) -> Any:
        return self.entity_types

    def heads(self, width: int) -> dict[str, nn.Module]:
        """One linear layer, and with a CRF its scores."""
        head = nn.Linear(width, len(self.tags))
        nn.init.normal_(head.weight, std=0.02)
        nn.init.zeros_(head.bias)
        return {HEAD: head, **({CRF: ChainScores(self._rules())} if self.crf else {})}

    # -- rows ---------------------------------------------------------------------------------------------------------

    def rows(self, example: TokenTags, processor: Processor) -> list[Row]:
        """The text between its special tokens, with the tag of each unit at its first token."""
        ids, firsts = placed_units(example, processor)
        row = _framed(ids, processor)
        known = {tag: i for i, tag in enumerate(self.tags)}
        for at, tag in zip(
            (at for at in firsts if at is not None), entities_to_tags(*self._kept(example, firsts), self._scheme)
        ):
            row["labels"][at + len(processor.frame.first)] = known[tag]  # pyright: ignore[reportIndexIssue]
        return [row]

    def encode_input(self, example: TokenTags, processor: Processor) -> Row:
        ids, firsts = placed_units(example, processor)
        row = _framed(ids, processor)
        for at in firsts:
            if at is not None:
                row["labels"][at + len(processor.frame.first)] = 0  # pyright: ignore[reportIndexIssue]
        return row

    def right(self, example: TokenTags) -> list[Entity]:
        """The entities of an example whose tags are known.

        Raises:
            ValueError: the tags break their scheme, or name a kind that was not learnt.
        """
        found = tags_to_entities(self._named(example.tags), self.repair_tags)
        for first, _, kind in found:
            if kind not in self.entity_types:
                words = f"tag {first + 1} is {example.tags[first]}: {kind!r} is not among the entity_types learnt"
                raise ValueError(f"{words}: {', '.join(self.entity_types)[:200]}")
        return found

    def windows(self, row: Row, max_length: int) -> list[Row]:
        """Stretches that overlap, each between the row's first and last special tokens; a label stands in the window
        where it is farthest from a cut.

            [CLS] a b c d e f g h i j [SEP]    ->    [CLS] a b c d e f [SEP]    labels of a b c d e
                                                     [CLS] e f g h i j [SEP]    labels of f g h i j
        """
        ids, labels = [int(x) for x in row["input_ids"]], [int(x) for x in row["labels"]]
        begin = next((i for i, x in enumerate(labels) if x != IGNORE), 0)  # rows begin with a unit's first token
        body, room = len(ids) - begin - 1, max_length - begin - 1
        if room < OVERLAP:
            raise ValueError(
                f"a max_length of {max_length} tokens leaves no room for windows; at least {begin + 1 + OVERLAP}"
            )
        many = max(1, math.ceil((body - room) / (room - room // OVERLAP))) + 1
        starts = [round(i * (body - room) / (many - 1)) for i in range(many)]
        ends = [0, *((here + room + there) // 2 for here, there in zip(starts, starts[1:])), body]  # of the labels
        made = []
        for start, first, behind in zip(starts, ends, ends[1:]):
            kept = [x if first <= i < behind else IGNORE for i, x in enumerate(labels[begin:-1])][start : start + room]
            part = ids[begin + start : begin + start + room]
            made.append(Row(input_ids=[*ids[:begin], *part, ids[-1]], labels=[*labels[:begin], *kept, IGNORE]))
        return made

    def preview(self, row: Row, lost: Sequence[int], processor: Processor) -> Preview:
        """The text, with its entities' entity_types behind them."""
        ids, labels = [int(x) for x in row["input_ids"]], [int(x) for x in row["labels"]]
        units = [i for i, x in enumerate(labels) if x != IGNORE]
        found = tags_to_entities([self.tags[labels[i]] for i in units], repair=True)  # a window may begin inside one
        edges = [*units, len(ids) - 1]
        drawn: list[tuple[str, str]] = []
        told = ""
        for _, end, kind in found:
            so_far = processor.decode(ids[: edges[end]], skip_special_tokens=False)
            drawn += [("context", so_far[len(told) :].rstrip()), ("target", f"‹{kind}›")]
            told = so_far.rstrip()
        others = len(units) - sum(end - first for first, end, _ in found)
        drawn.append(("context", processor.decode(ids, skip_special_tokens=False)[len(told) :]))
        gone = [("lost", processor.decode(lost, skip_special_tokens=False))] if lost else []
        return [*drawn, *gone, ("target", f" → {len(found)} entities, O at {others} units")]

    # -- the loss -----------------------------------------------------------------------------------------------------

    def emissions(self, model: TrainableModel, batch: Batch) -> tuple[Tensor, list[int]]:
        """[N, C] fp32, before softmax; and how many units each row has."""
        asked = batch.labels != IGNORE
        hidden = F.dropout(model.hidden(batch)[asked].float(), self.dropout, model.training)
        return model.heads[HEAD](hidden), [int(x.sum()) for x in asked.split(list(batch.lengths))]

    def row_losses(self, model: TrainableModel, batch: Batch) -> Tensor:
        """[B]: the loss of each row."""
        e, units = self.emissions(model, batch)
        y = batch.labels[batch.labels != IGNORE]
        if not self.crf:
            losses = F.cross_entropy(e, y, reduction="none")
            return torch.stack([x.sum() for x in losses.split(units)])
        tags, lengths = pad_sequence(list(y.split(units)), batch_first=True), torch.tensor(units, device=e.device)
        begins = ~(self._rules().start < 0).to(e.device)[tags[:, 0]]  # a window's first unit may stand inside an entity
        ends = ~(self._rules().end < 0).to(e.device)[tags.gather(1, lengths[:, None] - 1)[:, 0]]
        chain = opened(model.heads[CRF](), begins, ends)
        return -log_likelihood(pad_sequence(list(e.split(units)), batch_first=True), tags, lengths, chain)

    def row_counts(self, batch: Batch) -> Tensor:
        """[B]: how many units each row has."""
        return torch.tensor([int((x != IGNORE).sum()) for x in batch.labels.split(list(batch.lengths))])

    # -- what is predicted --------------------------------------------------------------------------------------------

    def predict(self, model: TrainableModel, batch: Batch) -> list[Scored]:
        """The scores of each segment's units, to be joined."""
        e, units = self.emissions(model, batch)
        chain = (model.heads[CRF]() if self.crf else self._rules()).cpu()
        e = (e if self.crf else e.log_softmax(1)).detach().cpu()
        return [Scored(x, chain) for x in e.split(units)]

    def merge_windows(self, said: Sequence[Scored], example: TokenTags, processor: Processor) -> Found:
        """The best tags of the whole text. A unit that the tokenizer has nothing for is part of what surrounds it."""
        e, chain = torch.cat([x.emissions for x in said]), said[0].chain
        there = [u for u, at in enumerate(placed_units(example, processor)[1]) if at is not None]
        if not len(e):
            return Found(entities_to_tags([], len(example.units)), [])
        (path,) = viterbi(e[None], torch.tensor([len(e)]), chain)
        found = tags_to_entities([self.tags[i] for i in path])
        likely = stretch_logprobs(e, chain, torch.tensor(path), [(first, end) for first, end, _ in found])
        whole = [(there[first], there[end - 1] + 1, kind) for first, end, kind in found]
        told = []
        for (first, end, kind), log_p in zip(whole, likely):
            a, b = example.units[first][0], example.units[end - 1][1]
            told.append({"start": a, "end": b, "label": kind, "text": example.text[a:b], "probability": math.exp(log_p)})
        return Found(entities_to_tags(whole, len(example.units), self._scheme), told)

    def to_record(self, said: Found) -> dict[str, Any]:
        return {"entities": [{**x, "probability": round(x["probability"], 6)} for x in said.entities], "tags": said.tags}

    def answer(self, said: Found) -> str:
        return ", ".join(f"{x['text']} ({x['label']})" for x in said.entities) or "none"

    def metric_pair(self, said: Found, example: TokenTags) -> tuple[list[str], list[str]]:
        return said.tags, entities_to_tags(self.right(example), len(example.units), self._scheme)

    # -- inside -------------------------------------------------------------------------------------------------------

    @property
    def _scheme(self) -> Scheme:
        return "bio" if self.scheme == "auto" else self.scheme

    def _rules(self) -> Chain:
        return rules(self.tags, self._scheme)

    def _named(self, tags: Sequence[str]) -> list[str]:
        """Tags that are numbers, by their names."""
        for tag in tags:
            if tag.isdigit() and int(tag) >= len(self.tag_names):
                words = (
                    f"names has {len(self.tag_names)}"
                    if self.tag_names
                    else "say what they mean with names: [O, B-x, I-x ...]"
                )
                raise ValueError(f"the tag {tag} is a number; {words}")
        return [self.tag_names[int(tag)] if tag.isdigit() else tag for tag in tags]

    def _kept(self, example: TokenTags, firsts: Sequence[int | None]) -> tuple[list[Entity], int]:
        """The entities, counted by the units that have a token; and how many those are."""
        before = [0]
        for at in firsts:
            before.append(before[-1] + (at is not None))
        moved = [(before[first], before[end], kind) for first, end, kind in self.right(example)]
        return [x for x in moved if x[0] < x[1]], before[-1]


@cache
def rules(tags: tuple[str, ...], scheme: Scheme) -> Chain:
    """What may stand where: 0 or FORBIDDEN."""
    start = [can_start(x) for x in tags]
    follow = [[can_follow(x, before, scheme) for x in tags] for before in tags]
    end = [can_end(x, scheme) for x in tags]
    return Chain(*(torch.where(torch.tensor(x), 0.0, FORBIDDEN) for x in (start, follow, end)))


def placed_units(example: TokenTags, processor: Processor) -> tuple[list[int], list[int | None]]:
    """The tokens from the first unit to the last, and which is the first of each unit; None: the tokenizer has none for it.

    Where a token would hold letters of two units, the text is encoded in two parts.
    """
    cuts: set[int] = set()
    while True:
        ids, places = _in_parts(example.text, sorted(cuts), processor)
        crossed = _crossed(example.units, places)
        if not crossed:
            break
        cuts |= crossed
    firsts: list[int | None] = []
    at = 0
    for start, end in example.units:
        while at < len(places) and places[at][1] <= start:
            at += 1
        there = at < len(places) and places[at][0] < end and places[at][1] > places[at][0]
        firsts.append(at if there else None)
        at += there
    begin = next((x for x in firsts if x is not None), 0)
    last = example.units[-1][1] if example.units else 0
    behind = max((i + 1 for i, (a, b) in enumerate(places) if a < last), default=0)
    return ids[begin:behind], [None if x is None else x - begin for x in firsts]


def _crossed(units: Sequence[tuple[int, int]], places: Sequence[tuple[int, int]]) -> set[int]:
    """Where a unit begins inside a token that holds letters of the unit before it."""
    found, at = set[int](), 0
    for (_, end_before), (start, _) in zip(units, units[1:]):
        while at < len(places) and places[at][1] <= start:
            at += 1
        if at < len(places) and places[at][0] < end_before:
            found.add(start)
    return found


def _in_parts(text: str, cuts: Sequence[int], processor: Processor) -> tuple[list[int], list[tuple[int, int]]]:
    ids: list[int] = []
    places: list[tuple[int, int]] = []
    for start, end in zip([0, *cuts], [*cuts, len(text)]):
        more, where = processor.encode_with_offsets(text[start:end])
        ids += more
        places += [(start + a, start + b) for a, b in where]
    return ids, places


def _framed(ids: Sequence[int], processor: Processor) -> Row:
    """The tokens between the special ones, nothing learnt yet."""
    whole = [*processor.frame.first, *ids, *processor.frame.last]
    return Row(input_ids=whole, labels=[IGNORE] * len(whole))
