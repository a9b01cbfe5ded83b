"""Token classification (NER): which words are names, places, dates: a tag for each unit of a text.

Devlin et al. 2019, "BERT", arXiv 1810.04805, sec. 5.3; with a CRF, Lample et al. 2016, arXiv 1603.01360, sec. 2.2 and 2.3:

    e = W dropout(h) + b                               [N, C]: of each unit, at its first token
    softmax     loss = - sum log softmax(e)_y          divided by the number of units
    crf         loss = - sum log p(y_1 ... y_U)        divided by the number of units

    [CLS]  Wash  ##ington  met   Ada  .  [SEP]
      -    B-PER     -      O   B-PER O    -           labels; - carries no loss

A unit is a word; in Chinese, a character. With either loss the prediction is the best sequence that the scheme allows (no
I-x after O), and a text that was read in windows is decoded as a whole.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.rnn import pad_sequence

from weitiao.core.batch import IGNORE, Batch, Row, take_tokens
from weitiao.core.bio_tags import Entity, Scheme, all_tags, entities_to_tags, split_tag, tags_to_entities
from weitiao.core.errors import DataError, InvalidValue
from weitiao.core.example import TokenTags
from weitiao.core.messages import Message
from weitiao.core.objective import HeadObjective, Preview
from weitiao.core.plain_form import PlainForm
from weitiao.core.processor import Processor
from weitiao.core.trainable_model import TrainableModel
from weitiao.core.traits import Traits
from weitiao.objective.crf import Chain, ChainScores, log_likelihood, scheme_rules, span_logprobs, viterbi, with_open_ends
from weitiao.objective.pooling import linear_head
from weitiao.objective.preview import preview_lost
from weitiao.objective.token_units import encode_units, with_special_tokens

HEAD, CRF = "tags", "crf"
OVERLAP = 4  # neighbouring windows share at least 1/4 of a window


@dataclass(frozen=True)
class UnitScores:
    """The scores of a row's units, before decoding."""

    emissions: Tensor  # [U, C]
    chain: Chain


@dataclass(frozen=True)
class TaggedText:
    """The prediction for one text: a tag for each unit, and the entities with their probabilities."""

    tags: list[str]
    entities: list[dict[str, Any]]

    def __str__(self) -> str:
        return ", ".join(f"{x['text']} ({x['label']})" for x in self.entities) or "none"


class TokenClassification(HeadObjective):
    """Tag each word, or each Chinese character: names, places, any typed span of text."""

    default_traits: ClassVar[Traits] = Traits(
        example_type=TokenTags,
        generative=False,
        splittable=True,
        overlong="sliding_window",
        overlong_reason=Message("every word of a long text is tagged: it is read in overlapping windows"),
        metrics=("loss", "entity_f1", "entity_precision", "entity_recall"),
    )

    entity_types: tuple[str, ...] = ()
    """The types of entities, in the order of the scores; default: those of the training data."""
    scheme: Literal["auto", "bio", "bioes"] = "auto"
    """The tagging scheme to train with, whatever the data use; auto: bioes if the data have E- or S-, else bio."""
    crf: bool = False
    """Train on the tags of a text as one sequence (linear-chain CRF) rather than on each alone."""
    repair_tags: bool = False
    """Read I-x after O as the start of an entity; otherwise such a row is a bad row."""
    tag_names: tuple[str, ...] = ()
    """id2label, for tags that are numbers: the name of tag 0, of tag 1 ... (as in data sets of the Hugging Face hub)."""
    dropout: float = Field(default=0.1, ge=0, lt=1)
    """Dropout on the hidden states, during training."""

    def fit(self, examples: Sequence[TokenTags]) -> "TokenClassification":
        """The objective with its entity types and its scheme. Rows with unreadable tags are reported when encoded."""
        prefixes, entity_types = set(), set()
        for tag in {tag for x in examples for tag in x.tags}:
            try:
                prefix, entity_type = split_tag(*self._named([tag]))
            except ValueError:
                continue
            prefixes.add(prefix)
            entity_types.add(entity_type)
        entity_types.discard("")
        if not entity_types:
            raise DataError(
                "data: there is no entity in {num_rows:,} rows, so there is nothing to train on. Tags are O, B-x, I-x; "
                "name tags that are numbers with tag_names",
                num_rows=len(examples),
            )
        scheme = self.scheme if self.scheme != "auto" else "bioes" if prefixes & {"E", "S"} else "bio"
        return self.model_copy(update={"entity_types": self.entity_types or tuple(sorted(entity_types)), "scheme": scheme})

    def heads(self, width: int) -> dict[str, nn.Module]:
        """One linear layer, and with a CRF its scores."""
        heads: dict[str, nn.Module] = {HEAD: linear_head(width, len(self._tags))}
        return {**heads, CRF: ChainScores(self._rules)} if self.crf else heads

    def plain_form(self, kind: str) -> PlainForm:
        """Scores of the tags at each token; those of a word's first token are the word's."""
        crf = Message("a CRF scores the tags of a text together, which transformers' classes do not do")
        return PlainForm("token_classification", HEAD, self._tags, obstacle=crf if self.crf else None)

    # -- rows ---------------------------------------------------------------------------------------------------------

    def rows(self, example: TokenTags, processor: Processor) -> list[Row]:
        """The text between its special tokens, with the tag of each unit at its first token."""
        ids, first_tokens = encode_units(example, processor)
        tags = entities_to_tags(*self._tokenized_entities(example, first_tokens), self._scheme)
        number_of = {tag: i for i, tag in enumerate(self._tags)}
        return [self._labelled(ids, first_tokens, [number_of[tag] for tag in tags], processor)]

    def encode_input(self, example: TokenTags, processor: Processor) -> Row:
        """The same with O as the label of every unit: labels mark the units to be tagged."""
        ids, first_tokens = encode_units(example, processor)
        return self._labelled(ids, first_tokens, [0] * len(first_tokens), processor)

    def _labelled(
        self, ids: Sequence[int], first_tokens: Sequence[int | None], tags: Sequence[int], processor: Processor
    ) -> Row:
        row = with_special_tokens(ids, processor)
        labels = list(row["labels"])
        for token, tag in zip((token for token in first_tokens if token is not None), tags):
            labels[len(processor.special_tokens.first) + token] = tag
        return Row(input_ids=row["input_ids"], labels=labels)

    def windows(self, row: Row, max_length: int) -> list[Row]:
        """Overlapping windows, each between the row's special tokens; a label is in the window where it is farthest from
        an edge.

            [CLS] a b c d e f g h i j [SEP]    ->    [CLS] a b c d e f [SEP]    labels of a b c d e
                                                     [CLS] e f g h i j [SEP]    labels of f g h i j
        """
        labels = [int(x) for x in row["labels"]]
        last, start = len(labels) - 1, next((t for t, x in enumerate(labels) if x != IGNORE), 0)  # rows start with a unit
        length, size = last - start, max_length - start - 1
        if size < OVERLAP:
            raise InvalidValue(
                "max_length {max_length} leaves no room for windows; at least {least} is needed",
                max_length=max_length,
                least=start + 1 + OVERLAP,
            )
        num_windows = max(1, math.ceil((length - size) / (size - size // OVERLAP))) + 1
        starts = [round(i * (length - size) / (num_windows - 1)) for i in range(num_windows)]
        edges = [0, *((a + size + b) // 2 for a, b in zip(starts, starts[1:])), length]  # where a window's labels end
        windows: list[Row] = []
        for a, first, end in zip(starts, edges, edges[1:]):
            window = take_tokens(row, [*range(start), *range(start + a, min(start + a + size, last)), last])
            inside = [x if first <= i < end else IGNORE for i, x in enumerate(labels[start:last])][a : a + size]
            window["labels"] = [*labels[:start], *inside, IGNORE]
            windows.append(window)
        return windows

    def preview(self, row: Row, lost: Sequence[int], processor: Processor) -> Preview:
        """The text, with the types of its entities after them."""
        ids, labels = [int(x) for x in row["input_ids"]], [int(x) for x in row["labels"]]
        units = [t for t, x in enumerate(labels) if x != IGNORE]
        spans = tags_to_entities([self._tags[labels[t]] for t in units], repair=True)  # a window may start inside one
        edges = [*units, len(ids) - 1]
        preview: Preview = []
        text = ""  # everything in the preview so far
        for _, end, entity_type in spans:
            longer = processor.decode(ids[: edges[end]], skip_special_tokens=False)
            preview += [("context", longer[len(text) :].rstrip()), ("target", f"‹{entity_type}›")]
            text = longer.rstrip()
        preview.append(("context", processor.decode(ids, skip_special_tokens=False)[len(text) :]))
        num_outside = len(units) - sum(end - first for first, end, _ in spans)
        summary = Message("{num_entities} entities, O at {num_units} units", num_entities=len(spans), num_units=num_outside)
        return [*preview, *preview_lost(lost, processor), ("target", f" → {summary}")]

    # -- loss ---------------------------------------------------------------------------------------------------------

    def _emissions(self, model: TrainableModel, batch: Batch) -> tuple[Tensor, list[int]]:
        """[N, C] fp32, before softmax; and the number of units of each row."""
        is_unit = batch.labels != IGNORE
        hidden = F.dropout(model.hidden(batch)[is_unit].float(), self.dropout, model.training)
        return model.heads[HEAD](hidden), [int(x.sum()) for x in is_unit.split(list(batch.lengths))]

    def row_losses(self, model: TrainableModel, batch: Batch) -> Tensor:
        """[B]: the loss of each row."""
        e, num_units = self._emissions(model, batch)
        y = batch.labels[batch.labels != IGNORE]
        if not self.crf:
            losses = F.cross_entropy(e, y, reduction="none")
            return torch.stack([x.sum() for x in losses.split(num_units)])
        tags, lengths = pad_sequence(list(y.split(num_units)), batch_first=True), torch.tensor(num_units, device=e.device)
        # a window may start or end inside an entity: its first or last tag is then one that no text starts or ends with
        starts = ~(self._rules.start < 0).to(e.device)[tags[:, 0]]
        ends = ~(self._rules.end < 0).to(e.device)[tags.gather(1, lengths[:, None] - 1)[:, 0]]
        chain = with_open_ends(model.heads[CRF](), starts, ends)
        return -log_likelihood(pad_sequence(list(e.split(num_units)), batch_first=True), tags, lengths, chain)

    def row_counts(self, batch: Batch) -> Tensor:
        """[B]: the number of units of each row."""
        return torch.tensor([int((x != IGNORE).sum()) for x in batch.labels.split(list(batch.lengths))])

    # -- prediction ---------------------------------------------------------------------------------------------------

    def predict(self, model: TrainableModel, batch: Batch) -> list[UnitScores]:
        """The scores of each segment's units, to be decoded by `merge_windows`."""
        e, num_units = self._emissions(model, batch)
        chain = (model.heads[CRF]() if self.crf else self._rules).cpu()
        e = (e if self.crf else e.log_softmax(1)).detach().cpu()
        return [UnitScores(x, chain) for x in e.split(num_units)]

    def merge_windows(self, predictions: Sequence[UnitScores], example: TokenTags, processor: Processor) -> TaggedText:
        """The best tags of the whole text. A unit without a token belongs to what surrounds it."""
        e, chain = torch.cat([x.emissions for x in predictions]), predictions[0].chain
        units = [u for u, token in enumerate(encode_units(example, processor)[1]) if token is not None]
        if not len(e):
            return TaggedText(entities_to_tags([], len(example.units)), [])
        (path,) = viterbi(e[None], torch.tensor([len(e)]), chain)
        spans = tags_to_entities([self._tags[i] for i in path])
        logprobs = span_logprobs(e, chain, torch.tensor(path), [(first, end) for first, end, _ in spans])
        whole = [(units[first], units[end - 1] + 1, entity_type) for first, end, entity_type in spans]
        records: list[dict[str, Any]] = []
        for (first, end, label), logprob in zip(whole, logprobs):
            a, b = example.units[first][0], example.units[end - 1][1]
            text = example.text[a:b]
            records.append({"start": a, "end": b, "label": label, "text": text, "probability": math.exp(logprob)})
        return TaggedText(entities_to_tags(whole, len(example.units), self._scheme), records)

    def to_record(self, prediction: TaggedText) -> dict[str, Any]:
        records = [{**x, "probability": round(x["probability"], 6)} for x in prediction.entities]
        return {"entities": records, "tags": prediction.tags}

    def metric_pair(self, prediction: TaggedText, example: TokenTags) -> tuple[list[str], list[str]]:
        return prediction.tags, entities_to_tags(self._entities(example), len(example.units), self._scheme)

    # -- tags ---------------------------------------------------------------------------------------------------------

    @property
    def _scheme(self) -> Scheme:
        return "bio" if self.scheme == "auto" else self.scheme

    @property
    def _tags(self) -> tuple[str, ...]:
        """[C]: every tag, O first."""
        return all_tags(self.entity_types, self._scheme)

    @property
    def _rules(self) -> Chain:
        return scheme_rules(self._tags, self._scheme)

    def _named(self, tags: Sequence[str]) -> list[str]:
        """The names of tags that are numbers.

        Raises:
            InvalidValue: a number has no name.
        """
        for tag in tags:
            if tag.isdecimal() and not self.tag_names:
                raise InvalidValue("tag {tag} is a number: name the tags with tag_names: [O, B-x, I-x ...]", tag=tag)
            if tag.isdecimal() and int(tag) >= len(self.tag_names):
                raise InvalidValue("tag {tag} is a number, but tag_names has {num} names", tag=tag, num=len(self.tag_names))
        return [self.tag_names[int(tag)] if tag.isdecimal() else tag for tag in tags]

    def _entities(self, example: TokenTags) -> list[Entity]:
        """The entities of an example with tags.

        Raises:
            InvalidValue: the tags break their scheme, or have a type that was not in the training data.
        """
        spans = tags_to_entities(self._named(example.tags), self.repair_tags)
        for first, _, entity_type in spans:
            if entity_type not in self.entity_types:
                raise InvalidValue(
                    "tag {number} is {tag}, but {type!r} is not one of the entity types: {types}",
                    number=first + 1,
                    tag=example.tags[first],
                    type=entity_type,
                    types=", ".join(self.entity_types)[:200],
                )
        return spans

    def _tokenized_entities(self, example: TokenTags, first_tokens: Sequence[int | None]) -> tuple[list[Entity], int]:
        """The entities by units that have a token, and the number of those units."""
        before = [0]  # of each unit, how many units before it have a token
        for token in first_tokens:
            before.append(before[-1] + (token is not None))
        spans = [(before[first], before[end], entity_type) for first, end, entity_type in self._entities(example)]
        return [x for x in spans if x[0] < x[1]], before[-1]
