"""Words to token ids, with the mask of what is learnt: the assistant's words and their stop token, nothing else.

    <|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\nHello!<|im_end|>\n
                                                          ------------------  learnt

The mask comes from the template itself: what it writes for the turns so far, with the words that make the assistant
speak, is what the model is given; what it writes more when the assistant's turn is added is what the model must say.
So it holds for every template, without a table of models.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from weitiao.core.batch import AUDIO_PLACEHOLDER
from weitiao.core.errors import DataError
from weitiao.core.example import Turn
from weitiao.core.processor import FeatureExtractor, Rendered, SpecialTokens
from weitiao.data.audio import with_leading_space
from weitiao.data.template import NO_TEMPLATE, Template


@dataclass
class ChatProcessor:
    """A tokenizer and its chat template."""

    tokenizer: Any
    template: Template | None = None
    eos_id: int = 0
    stop_ids: tuple[int, ...] = ()
    special: frozenset[str] = field(default_factory=frozenset)
    frame: SpecialTokens = SpecialTokens((), (), (0,))
    mask_id: int | None = None
    start_id: int | None = None
    feature_extractor: FeatureExtractor | None = None

    @classmethod
    def make(
        cls,
        tokenizer: Any,
        generation_stops: Sequence[int] = (),
        start_id: int | None = None,
        feature_extractor: FeatureExtractor | None = None,
    ) -> "ChatProcessor":
        """From a transformers tokenizer.

        Args:
            generation_stops: the model's own stop ids.
            start_id: of a model of two halves, what its decoder begins from (decoder_start_token_id).
            ear: of a model that hears.

        Raises:
            DataError: the tokenizer has no end-of-text token.
        """
        end = tokenizer.eos_token_id if tokenizer.eos_token_id is not None else tokenizer.sep_token_id  # BERT's [SEP]
        if end is None:
            raise DataError("base: the tokenizer names no end-of-text token (eos_token), so an answer could never end.")
        names = {f"{key}_token": value for key, value in _special_tokens(tokenizer).items()}
        template = Template(tokenizer.chat_template, names) if tokenizer.chat_template else None
        special = frozenset(str(t) for t in tokenizer.get_added_vocab() if t in tokenizer.all_special_tokens) | frozenset(
            str(t.content) for t in tokenizer.added_tokens_decoder.values() if t.special
        )
        made = cls(tokenizer, template, end, (), special)
        stops = [end, *generation_stops]
        if template is not None:
            stops.insert(0, made._template_stop())
        made.frame = made._frame()
        made.mask_id, made.start_id, made.feature_extractor = (
            getattr(tokenizer, "mask_token_id", None),
            start_id,
            feature_extractor,
        )
        made.stop_ids = tuple(dict.fromkeys(x for x in stops if x is not None))
        return made

    def _frame(self) -> SpecialTokens:
        one, two = ([-1 if x == "a" else x for x in self._around(*texts)] for texts in (("a",), ("a", "a")))
        at, then = one.index(-1), [i for i, x in enumerate(two) if x == -1]
        between = two[then[0] + 1 : then[1]] or self._ids("\n")
        return SpecialTokens(tuple(one[:at]), tuple(between), tuple(one[at + 1 :]) or (self.eos_id,))

    def _around(self, *texts: str) -> list[Any]:
        """Ids of special tokens, and "a" for each text."""
        encoded = self.tokenizer(*texts, return_special_tokens_mask=True)
        return [x if special else "a" for x, special in zip(encoded.input_ids, encoded.special_tokens_mask)]

    def encode_with_offsets(self, text: str) -> tuple[list[int], list[tuple[int, int]]]:
        encoded = self.tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
        return list(encoded.input_ids), [(int(a), int(b)) for a, b in encoded.offset_mapping]

    def encode_with_word_ids(self, text: str) -> tuple[list[int], list[int]]:
        encoded = self.tokenizer(text, add_special_tokens=False)
        return list(encoded.input_ids), [int(word) for word in encoded.word_ids()]

    def text(self, text: str) -> list[int]:
        return list(self.tokenizer(text).input_ids)

    def encode_transcript(self, text: str) -> list[int]:
        return self._ids(with_leading_space(text))

    def decode(self, ids: Sequence[int], *, skip_special_tokens: bool = True) -> str:
        ids = [x for x in ids if x != AUDIO_PLACEHOLDER]
        return self.tokenizer.decode(ids, skip_special_tokens=skip_special_tokens)

    def prompt(self, turns: Sequence[Turn]) -> list[int]:
        whole = self._need_template().render(turns, ask=True)
        return self._masked(whole, self._spans(turns, whole) or [])[0]

    def chat(self, turns: Sequence[Turn]) -> list[Rendered]:
        """One row with every assistant turn learnt; where the template rewrites what was said before (some strip
        earlier thoughts), one row a turn, each as the model will see it."""
        whole = self._need_template().render(turns)
        spans = self._spans(turns, whole)
        if spans is not None:
            return [self._rendered(whole, spans, turns)]
        speaking = [i for i, turn in enumerate(turns) if turn.role == "assistant"]
        return [row for i in speaking for row in self._last_turn(turns[: i + 1])]

    # -- inside -------------------------------------------------------------------------------------------------------

    def _need_template(self) -> Template:
        if self.template is None:
            raise DataError(NO_TEMPLATE)
        return self.template

    def _spans(self, turns: Sequence[Turn], whole: str) -> list[tuple[int, int]] | None:
        """Where each assistant turn's words and stop stand in `whole`; None where they are not there as they were said."""
        template, spans = self._need_template(), []
        for i, turn in enumerate(turns):
            if turn.role == "assistant":
                asked, told = template.render(turns[:i], ask=True), template.render(turns[: i + 1])
                end = self._end(told, asked, turn)
                if not (told.startswith(asked) and whole.startswith(told[:end])):
                    return None
                spans.append((len(asked), end))
        return spans

    def _last_turn(self, turns: Sequence[Turn]) -> list[Rendered]:
        template = self._need_template()
        asked, told = template.render(turns[:-1], ask=True), template.render(turns)
        if not told.startswith(asked):
            raise ValueError("the chat template does not continue its own prompt with the assistant's words")
        return [self._rendered(told, [(len(asked), self._end(told, asked, turns[-1]))], turns)]

    def _end(self, told: str, asked: str, turn: Turn) -> int:
        """Where the assistant's turn ends: after the first special token behind its words."""
        words = turn.content.strip()
        at = told.find(words, len(asked))
        after = (at + len(words)) if at >= 0 else len(asked)
        found = [(told.find(token, after), token) for token in self.special]
        found = [(where, token) for where, token in found if where >= 0]
        if not found:
            return len(told.rstrip()) if told.rstrip() != told and at >= 0 else len(told)
        where = min(found)[0]
        return where + max(len(token) for place, token in found if place == where)

    def _rendered(self, whole: str, spans: list[tuple[int, int]], turns: Sequence[Turn]) -> Rendered:
        ids, said = self._masked(whole, spans)
        if turns[-1].role == "assistant" and not (said and said[-1] and ids[-1] in self.stop_ids):
            last = max(i for i, x in enumerate(said) if x) if any(said) else -1
            if last >= 0 and ids[last] not in self.stop_ids:  # a template without a stop token: add the tokenizer's
                ids, said = [*ids[: last + 1], self.eos_id], [*said[: last + 1], True]
        return Rendered(ids, said)

    def _masked(self, whole: str, spans: list[tuple[int, int]]) -> tuple[list[int], list[bool]]:
        """Ids of the whole string and which lie in a span. Where a token would straddle a span's edge, what stands
        before and behind is encoded apart, as it is when the model writes."""
        edges = {edge for span in spans for edge in span}
        offsets = self.tokenizer(whole, add_special_tokens=False, return_offsets_mapping=True).offset_mapping
        cuts = sorted(edge for edge in edges if any(a < edge < b for a, b in offsets))
        ids: list[int] = []
        said: list[bool] = []
        for start, end in zip([0, *cuts], [*cuts, len(whole)]):
            encoded = self.tokenizer(whole[start:end], add_special_tokens=False, return_offsets_mapping=True)
            places = [(start + a, start + b) for a, b in encoded.offset_mapping]
            ids += encoded.input_ids
            said += [b > a and any(first <= a and b <= last for first, last in spans) for a, b in places]
        return ids, said

    def _ids(self, text: str) -> list[int]:
        """The template writes its own special tokens; the tokenizer adds none (or BOS would stand there twice)."""
        return list(self.tokenizer(text, add_special_tokens=False).input_ids)

    def _template_stop(self) -> int | None:
        """The token with which this template ends an assistant's turn."""
        turns = (Turn("user", "Hi."), Turn("assistant", "Hello."))
        try:
            template = self._need_template()
            asked, told = template.render(turns[:1], ask=True), template.render(turns)
        except ValueError:
            return None
        ids = self._ids(told[: self._end(told, asked, turns[1])])
        return ids[-1] if ids and self.tokenizer.decode([ids[-1]]) in self.special else None


def _special_tokens(tokenizer: Any) -> dict[str, str]:
    names = ("bos", "eos", "unk", "pad", "sep", "cls", "mask")
    found = {name: getattr(tokenizer, f"{name}_token", None) for name in names}
    return {name: str(value) for name, value in found.items() if value is not None}
