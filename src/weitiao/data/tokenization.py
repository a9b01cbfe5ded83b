"""Text to token ids, and the assistant mask: the assistant's content and its stop token carry loss, nothing else does.

    <|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\nHello!<|im_end|>\n
                                                          ------------------  carries loss

The mask comes from the chat template itself: the turns before an assistant turn, rendered with the generation prompt, are
its prompt; what the template adds when that turn is added is what the model must generate. So it holds for every template,
without a table of models.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from transformers import PreTrainedTokenizerBase

from weitiao.core.batch import AUDIO_PLACEHOLDER
from weitiao.core.errors import DataError, InvalidValue
from weitiao.core.example import Turn
from weitiao.core.processor import FeatureExtractor, Rendered, SpecialTokens, Target
from weitiao.data.audio import with_leading_space
from weitiao.data.template import NO_TEMPLATE, Template
from weitiao.data.translation import encode_source, encode_target

Span = tuple[int, int]  # start and end in characters


@dataclass
class ChatProcessor:
    """A tokenizer and its chat template."""

    tokenizer: PreTrainedTokenizerBase
    template: Template | None = None
    eos_id: int = 0
    stop_ids: tuple[int, ...] = ()
    special: frozenset[str] = field(default_factory=frozenset)
    """The texts of all special tokens."""
    special_tokens: SpecialTokens = SpecialTokens((), (), (0,))
    mask_id: int | None = None
    decoder_start_id: int | None = None
    feature_extractor: FeatureExtractor | None = None

    @classmethod
    def make(
        cls,
        tokenizer: PreTrainedTokenizerBase,
        generation_stops: Sequence[int] = (),
        decoder_start_id: int | None = None,
        feature_extractor: FeatureExtractor | None = None,
    ) -> "ChatProcessor":
        """From a transformers tokenizer.

        Args:
            generation_stops: stop ids of the model's generation config.
            decoder_start_id: of an encoder-decoder model, its decoder_start_token_id.
            feature_extractor: of a speech model.

        Raises:
            DataError: the tokenizer has no end-of-text token.
        """
        eos_id: Any = (
            tokenizer.eos_token_id if tokenizer.eos_token_id is not None else tokenizer.sep_token_id
        )  # BERT: [SEP]
        if eos_id is None:
            raise DataError("base: the tokenizer has no end-of-text token (eos_token), so an answer could never end.")
        names = {f"{key}_token": value for key, value in _special_tokens(tokenizer).items()}
        text: Any = tokenizer.chat_template
        template = Template(text, names) if text else None
        special = _special_token_texts(tokenizer)
        processor = cls(tokenizer, template, eos_id, (), special)
        stops = [eos_id, *generation_stops]
        if template is not None:
            stops.insert(0, processor._template_stop(template))
        processor.special_tokens = processor._find_special_tokens()
        processor.mask_id = getattr(tokenizer, "mask_token_id", None)
        processor.decoder_start_id, processor.feature_extractor = decoder_start_id, feature_extractor
        processor.stop_ids = tuple(dict.fromkeys(x for x in stops if x is not None))
        return processor

    def encode_with_offsets(self, text: str) -> tuple[list[int], list[tuple[int, int]]]:
        encoded = self.tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
        return list(encoded.input_ids), [(int(a), int(b)) for a, b in encoded.offset_mapping]

    def encode_with_word_ids(self, text: str) -> tuple[list[int], list[int]]:
        encoded = self.tokenizer(text, add_special_tokens=False)
        return list(encoded.input_ids), [-1 if x is None else x for x in encoded.word_ids()]

    def text(self, text: str) -> list[int]:
        return list(self.tokenizer(text).input_ids)

    def source(self, text: str, source_language: str | None, target_language: str | None) -> list[int]:
        return encode_source(self.tokenizer, self.text, text, source_language, target_language)

    def target(self, text: str, source_language: str | None, target_language: str | None) -> Target:
        languages = source_language, target_language
        encoders = self.text, lambda x: self.encode_with_offsets(x)[0]
        return encode_target(self.tokenizer, *encoders, text, *languages, self.decoder_start_id, self.eos_id)

    def encode_transcript(self, text: str) -> list[int]:
        return self._ids(with_leading_space(text))

    def decode(self, ids: Sequence[int], *, skip_special_tokens: bool = True) -> str:
        ids = [x for x in ids if x != AUDIO_PLACEHOLDER]
        return str(self.tokenizer.decode(ids, skip_special_tokens=skip_special_tokens))

    def prompt(self, turns: Sequence[Turn]) -> list[int]:
        text = self._need_template().render(turns, ask=True)
        return self._masked_ids(text, self._assistant_spans(turns, text) or [])[0]

    def chat(self, turns: Sequence[Turn]) -> list[Rendered]:
        """One row in which all assistant turns carry loss. If the template rewrites earlier turns (some remove earlier
        reasoning), one row per assistant turn, each as the model will see it."""
        text = self._need_template().render(turns)
        spans = self._assistant_spans(turns, text)
        if spans is not None:
            return [self._rendered(text, spans, turns)]
        assistant_turns = [i for i, turn in enumerate(turns) if turn.role == "assistant"]
        return [self._last_turn(turns[: i + 1]) for i in assistant_turns]

    # -- inside -------------------------------------------------------------------------------------------------------

    def _find_special_tokens(self) -> SpecialTokens:
        """What the tokenizer adds around one text and between two."""
        one, two = self._special_ids("a"), self._special_ids("a", "a")
        start, texts = one.index(None), [i for i, x in enumerate(two) if x is None]
        between = two[texts[0] + 1 : texts[1]] or self._ids("\n")
        last = tuple(x for x in one[start + 1 :] if x is not None)
        return SpecialTokens(
            tuple(x for x in one[:start] if x is not None),
            tuple(x for x in between if x is not None),
            last or (self.eos_id,),
        )

    def _special_ids(self, text: str, text_pair: str | None = None) -> list[int | None]:
        """Ids of the special tokens, and None for each token of a text."""
        encoded = self.tokenizer(text, text_pair, return_special_tokens_mask=True)
        return [x if special else None for x, special in zip(encoded.input_ids, encoded.special_tokens_mask)]

    def _need_template(self) -> Template:
        if self.template is None:
            raise DataError(NO_TEMPLATE)
        return self.template

    def _assistant_spans(self, turns: Sequence[Turn], text: str) -> list[Span] | None:
        """Where each assistant turn's content and stop token are in `text`; None if the template rewrote a turn."""
        template, spans = self._need_template(), []
        for i, turn in enumerate(turns):
            if turn.role == "assistant":
                prompt, conversation = template.render(turns[:i], ask=True), template.render(turns[: i + 1])
                end = self._turn_end(conversation, prompt, turn)
                if not (conversation.startswith(prompt) and text.startswith(conversation[:end])):
                    return None
                spans.append((len(prompt), end))
        return spans

    def _last_turn(self, turns: Sequence[Turn]) -> Rendered:
        template = self._need_template()
        prompt, conversation = template.render(turns[:-1], ask=True), template.render(turns)
        if not conversation.startswith(prompt):
            raise InvalidValue("the chat template does not continue its own generation prompt with the assistant's content")
        return self._rendered(conversation, [(len(prompt), self._turn_end(conversation, prompt, turns[-1]))], turns)

    def _turn_end(self, conversation: str, prompt: str, turn: Turn) -> int:
        """Where the assistant's turn ends: after the first special token that follows its content."""
        content = turn.content.strip()
        position = conversation.find(content, len(prompt))
        end = (position + len(content)) if position >= 0 else len(prompt)
        following = [(conversation.find(token, end), token) for token in self.special]
        following = [(i, token) for i, token in following if i >= 0]
        if not following:
            stripped = len(conversation.rstrip())
            return stripped if stripped < len(conversation) and position >= 0 else len(conversation)
        first = min(following)[0]
        return first + max(len(token) for i, token in following if i == first)

    def _rendered(self, text: str, spans: list[Span], turns: Sequence[Turn]) -> Rendered:
        ids, mask = self._masked_ids(text, spans)
        if turns[-1].role == "assistant" and not (mask and mask[-1] and ids[-1] in self.stop_ids):
            last = max(i for i, x in enumerate(mask) if x) if any(mask) else -1
            if last >= 0 and ids[last] not in self.stop_ids:  # a template without a stop token: add the tokenizer's
                ids, mask = [*ids[: last + 1], self.eos_id], [*mask[: last + 1], True]
        return Rendered(ids, mask)

    def _masked_ids(self, text: str, spans: list[Span]) -> tuple[list[int], list[bool]]:
        """Ids of the whole text, and which of them are in a span.

        If a token would cross the edge of a span, the text before and after the edge is encoded separately, as it is when
        the model generates.
        """
        edges = {edge for span in spans for edge in span}
        offsets = self.tokenizer(text, add_special_tokens=False, return_offsets_mapping=True).offset_mapping
        cuts = sorted(edge for edge in edges if any(a < edge < b for a, b in offsets))
        ids: list[int] = []
        mask: list[bool] = []
        for start, end in zip([0, *cuts], [*cuts, len(text)]):
            encoded = self.tokenizer(text[start:end], add_special_tokens=False, return_offsets_mapping=True)
            offsets = [(start + a, start + b) for a, b in encoded.offset_mapping]
            ids += encoded.input_ids
            mask += [b > a and any(first <= a and b <= last for first, last in spans) for a, b in offsets]
        return ids, mask

    def _ids(self, text: str) -> list[int]:
        """Without special tokens: the template writes its own, and BOS must not be there twice."""
        return list(self.tokenizer(text, add_special_tokens=False).input_ids)

    def _template_stop(self, template: Template) -> int | None:
        """The token with which this template ends an assistant's turn."""
        turns = (Turn("user", "Hi."), Turn("assistant", "Hello."))
        try:
            prompt, conversation = template.render(turns[:1], ask=True), template.render(turns)
        except ValueError:
            return None
        ids = self._ids(conversation[: self._turn_end(conversation, prompt, turns[1])])
        return ids[-1] if ids and self.tokenizer.decode([ids[-1]]) in self.special else None


def _special_tokens(tokenizer: PreTrainedTokenizerBase) -> dict[str, str]:
    names = ("bos", "eos", "unk", "pad", "sep", "cls", "mask")
    tokens = {name: getattr(tokenizer, f"{name}_token", None) for name in names}
    return {name: str(value) for name, value in tokens.items() if value is not None}


def _special_token_texts(tokenizer: Any) -> frozenset[str]:
    added = (str(x) for x in tokenizer.get_added_vocab() if x in tokenizer.all_special_tokens)
    return frozenset(added) | frozenset(str(x.content) for x in tokenizer.added_tokens_decoder.values() if x.special)
