"""Text to token ids, and the assistant mask: the assistant's turns and their stop tokens carry loss, nothing else does.

    <|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\nHello!<|im_end|>\n
                                                          ------------------  carries loss

What a text spells is text: <|im_end|> in a user's message does not become the control token (data/control_tokens.py).
"""

import datetime
import re
from collections.abc import Sequence
from dataclasses import dataclass, field, fields, replace
from functools import cached_property
from typing import Any

from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from weitiao.core.batch import AUDIO_PLACEHOLDER
from weitiao.core.errors import DataError, InvalidValue
from weitiao.core.example import Turn
from weitiao.core.processor import FeatureExtractor, Rendered, SpecialTokens, Target
from weitiao.data.audio import with_leading_space
from weitiao.data.chat.conversation import PROBE, Conversation, Span
from weitiao.data.chat.messages import PLAIN, MessageForm, choose_form
from weitiao.data.chat.template import NO_TEMPLATE, Template
from weitiao.data.control_tokens import OPEN, ControlTokens
from weitiao.data.translation import encode_source, encode_target

MARKER = re.compile(r"[<\[{].*[>\]}]")  # how templates spell the tokens between turns
THOUGHTS = ("<think>", "</think>")  # which answers spell, too


@dataclass
class ChatProcessor:
    """A tokenizer and its chat template."""

    tokenizer: PreTrainedTokenizerBase
    template: Template | None = None
    eos_id: int = 0
    stop_ids: tuple[int, ...] = ()
    _special: frozenset[str] = field(default_factory=frozenset)
    """The texts of all special tokens."""
    special_tokens: SpecialTokens = SpecialTokens((), (), (0,))
    mask_id: int | None = None
    _decoder_start_id: int | None = None
    feature_extractor: FeatureExtractor | None = None
    _parse_special_tokens: bool = False
    """Special tokens in texts become control tokens."""
    _forms: dict[tuple[bool, bool], MessageForm | InvalidValue] = field(default_factory=dict)

    @classmethod
    def make(
        cls,
        tokenizer: PreTrainedTokenizerBase,
        generation_stops: Sequence[int] = (),
        decoder_start_id: int | None = None,
        feature_extractor: FeatureExtractor | None = None,
        now: datetime.datetime | None = None,
    ) -> "ChatProcessor":
        """From a transformers tokenizer.

        Args:
            generation_stops: stop ids of the model's generation config.
            decoder_start_id: of an encoder-decoder model, its decoder_start_token_id.
            feature_extractor: of a speech model.
            now: the date that the template writes; default: today's.

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
        template = Template(text, names, now) if text else None
        special = _special_token_texts(tokenizer)
        processor = cls(tokenizer, template, eos_id, (), special)
        stops = [eos_id, *generation_stops]
        if template is not None:
            stops.insert(0, processor._template_stop(template))
        processor.special_tokens = processor._find_special_tokens()
        processor.mask_id = getattr(tokenizer, "mask_token_id", None)
        processor._decoder_start_id, processor.feature_extractor = decoder_start_id, feature_extractor
        processor.stop_ids = tuple(dict.fromkeys(x for x in stops if x is not None))
        return processor

    def __getstate__(self) -> dict[str, Any]:
        """Without what is computed when it is first needed."""
        return {x.name: getattr(self, x.name) for x in fields(self)}

    @property
    def parsing_special_tokens(self) -> "ChatProcessor":
        return replace(self, _parse_special_tokens=True)

    def contains_special_tokens(self, text: str) -> bool:
        return self._control_tokens.contains(text)

    @cached_property
    def _control_tokens(self) -> ControlTokens:
        """The special tokens, and the tokens that the template writes between turns even if they are not called special."""
        texts = set(self._special)
        if self.template is not None:
            try:
                prompt = self.template.render(PROBE, ask=True)
            except (InvalidValue, DataError):
                prompt = ""
            added = (str(x) for x in _added_vocab(self.tokenizer))
            texts |= {x for x in added if x in prompt and MARKER.fullmatch(x) and x not in THOUGHTS}
        return ControlTokens(self.tokenizer, frozenset(texts))

    def encode_with_offsets(self, text: str) -> tuple[list[int], list[tuple[int, int]]]:
        if self._is_literal(text):
            encoding = self._control_tokens.encode_literally(text)
            return encoding.ids, encoding.offsets
        encoded = self.tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
        return list(encoded.input_ids), [(int(a), int(b)) for a, b in encoded.offset_mapping]

    def encode_with_word_ids(self, text: str) -> tuple[list[int], list[int]]:
        if self._is_literal(text):
            literal = self._control_tokens.encode_literally(text)
            return literal.ids, [-1 if x is None else x for x in literal.word_ids]
        encoded = self.tokenizer(text, add_special_tokens=False)
        return list(encoded.input_ids), [-1 if x is None else x for x in encoded.word_ids()]

    def text(self, text: str, masks: bool = False) -> list[int]:
        mask = self.decode([self.mask_id], skip_special_tokens=False) if masks and self.mask_id is not None else ""
        if mask and mask in text and self._is_literal(text.replace(mask, "")):
            hidden = self._control_tokens.hide(text, visible=mask)
            return self._control_tokens.encode(hidden, add_special_tokens=True).ids
        if mask and mask in text:
            return list(self.tokenizer(text).input_ids)
        return self._plain(text, add_special_tokens=True)

    def source(self, text: str, source_language: str | None, target_language: str | None) -> list[int]:
        return encode_source(self.tokenizer, self.text, text, source_language, target_language)

    def target(self, text: str, source_language: str | None, target_language: str | None) -> Target:
        languages = source_language, target_language
        encoders = self.text, lambda x: self.encode_with_offsets(x)[0]
        return encode_target(self.tokenizer, *encoders, text, *languages, self._decoder_start_id, self.eos_id)

    def encode_transcript(self, text: str) -> list[int]:
        return self._plain(with_leading_space(text), add_special_tokens=False)

    def decode(self, ids: Sequence[int], *, skip_special_tokens: bool = True) -> str:
        ids = [x for x in ids if x != AUDIO_PLACEHOLDER]
        return str(self.tokenizer.decode(ids, skip_special_tokens=skip_special_tokens))

    def prompt(self, turns: Sequence[Turn], tools: str = "") -> list[int]:
        conversation = self.conversation(turns, tools)
        text = conversation.render(ask=True)
        conversation.check_tools(text)
        return self._masked_ids(text, conversation.spans(text) or [])[0]

    def chat(self, turns: Sequence[Turn], tools: str = "") -> list[Rendered]:
        """One row in which all assistant turns carry loss. If the template rewrites earlier turns (some remove earlier
        reasoning), one row per assistant turn, each as the model will see it."""
        conversation = self.conversation(turns, tools)
        text = conversation.render()
        conversation.check_tools(text)
        targets = [i for i, turn in enumerate(conversation.turns) if turn.is_target]
        if (spans := conversation.spans(text)) is not None:
            for i, span in zip(targets, (x for x in spans if x.supervised)):
                conversation.check_turn(i, text[span.start : span.end])
            return [self._rendered(text, spans)]
        rows: list[Rendered] = []
        for i in targets:
            text, span = conversation.up_to(i)
            conversation.check_turn(i, text[span.start : span.end])
            rows.append(self._rendered(text, [span]))
        return rows

    def conversation(self, turns: Sequence[Turn], tools: str = "") -> Conversation:
        """Turns in the chat template; the control tokens that they spell are hidden."""
        template = self._need_template()
        if not self._parse_special_tokens:
            turns, tools = [self._hidden(turn) for turn in turns], self._control_tokens.hide(tools) if tools else ""
        form = self._form(any(x.tool_calls for x in turns), any(x.reasoning for x in turns))
        return Conversation(template, tuple(turns), tools, form, self._special, self._stops)

    @cached_property
    def _stops(self) -> tuple[str, ...]:
        return tuple(self.decode([x], skip_special_tokens=False) for x in self.stop_ids)

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

    def _hidden(self, turn: Turn) -> Turn:
        hide = self._control_tokens.hide
        if not (turn.tool_calls or turn.reasoning or turn.name):
            content = hide(turn.content)
            return turn if content == turn.content else replace(turn, content=content)
        calls = tuple(replace(x, name=hide(x.name), arguments=hide(x.arguments)) for x in turn.tool_calls)
        return replace(
            turn, content=hide(turn.content), reasoning=hide(turn.reasoning), name=hide(turn.name), tool_calls=calls
        )

    def _form(self, calls: bool, reasoning: bool) -> MessageForm:
        """How the template expects messages.

        Raises:
            InvalidValue: it does not render calls or reasoning.
        """
        key = calls, reasoning
        if key not in self._forms:
            template = self._need_template()
            try:
                self._forms[key] = choose_form(lambda turns, tools, form: template.render(turns, False, tools, form), *key)
            except InvalidValue as error:
                self._forms[key] = error
        form = self._forms[key]
        if isinstance(form, InvalidValue):
            raise form
        return form

    def _rendered(self, text: str, spans: list[Span]) -> Rendered:
        ids, mask = self._masked_ids(text, spans)
        is_last = bool(spans) and spans[-1].supervised and not text[spans[-1].end :].strip()
        if is_last and not (mask and mask[-1] and ids[-1] in self.stop_ids):
            last = max(i for i, x in enumerate(mask) if x) if any(mask) else -1
            if last >= 0 and ids[last] not in self.stop_ids:  # a template without a stop token: add the tokenizer's
                ids, mask = [*ids[: last + 1], self.eos_id], [*mask[: last + 1], True]
        return Rendered(ids, mask)

    def _masked_ids(self, text: str, spans: list[Span]) -> tuple[list[int], list[bool]]:
        """Ids of the whole text, and which of them are in a span that carries loss.

        If a token would cross the edge of a span, the text before and after the edge is encoded separately, as it is when
        the model generates.
        """
        ids, offsets = self._encode(text)
        edges = {edge for span in spans for edge in (span.start, span.end)}
        if cuts := sorted(edge for edge in edges if any(a < edge < b for a, b in offsets)):
            ids, offsets = [], []
            for start, end in zip([0, *cuts], [*cuts, len(text)]):
                piece_ids, piece_offsets = self._encode(text[start:end])
                ids += piece_ids
                offsets += [(start + a, start + b) for a, b in piece_offsets]
        supervised = [(x.start, x.end) for x in spans if x.supervised]
        if len(supervised) == 1:
            ((start, end),) = supervised
            return ids, [start <= a < b <= end for a, b in offsets]
        return ids, [a < b and any(start <= a and b <= end for start, end in supervised) for a, b in offsets]

    def _encode(self, text: str) -> tuple[list[int], list[tuple[int, int]]]:
        """A rendered conversation, in which what the turns spell may be hidden."""
        if OPEN in text and not self._parse_special_tokens:
            encoding = self._control_tokens.encode(text)
            return encoding.ids, encoding.offsets
        backend = self._backend
        if backend is not None and not (backend.truncation or backend.padding or backend.encode_special_tokens):
            encoding = backend.encode(text, add_special_tokens=False)  # as below, in half the time
            return encoding.ids, encoding.offsets
        encoded = self.tokenizer(text, add_special_tokens=False, return_offsets_mapping=True, return_attention_mask=False)
        return list(encoded.input_ids), list(encoded.offset_mapping)

    @cached_property
    def _backend(self) -> Any:
        """The tokenizer in Rust, where transformers' does nothing but call it; None: it does more, or is in Python."""
        kind, plain = type(self.tokenizer), PreTrainedTokenizerFast
        own = any(getattr(kind, x, None) is not getattr(plain, x) for x in ("__call__", "_encode_plus"))
        literal = getattr(self.tokenizer, "split_special_tokens", True)
        return None if own or literal else getattr(self.tokenizer, "backend_tokenizer", None)

    def _is_literal(self, text: str) -> bool:
        """Whether a text spells special tokens that must stay text."""
        return not self._parse_special_tokens and self._control_tokens.contains(text)

    def _plain(self, text: str, add_special_tokens: bool) -> list[int]:
        if not self._is_literal(text):
            return list(self.tokenizer(text, add_special_tokens=add_special_tokens).input_ids)
        if not hasattr(self.tokenizer, "backend_tokenizer"):  # a tokenizer in Python
            settings: dict[str, Any] = {"add_special_tokens": add_special_tokens, "split_special_tokens": True}
            return list(self.tokenizer(text, **settings).input_ids)
        return self._control_tokens.encode_literally(text, add_special_tokens).ids

    def _ids(self, text: str) -> list[int]:
        """Without special tokens: the template writes its own, and BOS must not be there twice."""
        return list(self.tokenizer(text, add_special_tokens=False).input_ids)

    def _template_stop(self, template: Template) -> int | None:
        """The token with which this template ends an assistant's turn."""
        conversation = Conversation(template, (*PROBE, Turn("assistant", "Hello.")), "", PLAIN, self._special)
        try:
            text, span = conversation.up_to(1)
        except InvalidValue:
            return None
        ids = self._ids(text[: span.end])
        return ids[-1] if ids and self.tokenizer.decode([ids[-1]]) in self._special else None


def num_tokens(processor: ChatProcessor, turns: Sequence[Turn], tools: str = "", ask: bool = False) -> int:
    """Tokens of a conversation, in a fraction of the time of `chat` and `prompt`, which look for each turn in it.

    Args:
        ask: with what the template writes before an answer.
    """
    return len(processor._encode(processor.conversation(turns, tools).render(ask=ask))[0])


def _special_tokens(tokenizer: PreTrainedTokenizerBase) -> dict[str, str]:
    names = ("bos", "eos", "unk", "pad", "sep", "cls", "mask")
    tokens = {name: getattr(tokenizer, f"{name}_token", None) for name in names}
    return {name: str(value) for name, value in tokens.items() if value is not None}


def _added_vocab(tokenizer: Any) -> dict[str, int]:
    return tokenizer.get_added_vocab()


def _special_token_texts(tokenizer: Any) -> frozenset[str]:
    added = (str(x) for x in _added_vocab(tokenizer) if x in tokenizer.all_special_tokens)
    return frozenset(added) | frozenset(str(x.content) for x in tokenizer.added_tokens_decoder.values() if x.special)
