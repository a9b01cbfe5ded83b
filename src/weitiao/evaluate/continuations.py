"""Prompts with continuations as token ids: what an exam's options and lm-evaluation-harness ask for."""

from collections.abc import Sequence
from dataclasses import dataclass

from weitiao.core.processor import Processor


@dataclass(frozen=True)
class Prompt:
    """Token ids, and those of its continuations."""

    ids: tuple[int, ...]
    continuations: tuple[tuple[int, ...], ...]

    @property
    def length(self) -> int:
        """Tokens of the prompt with its longest continuation; the last one is only predicted."""
        return len(self.ids) + max(map(len, self.continuations)) - 1


def encode_prompt(processor: Processor, context: str, continuations: Sequence[str]) -> Prompt:
    """A context with its continuations, tokenized together, and cut where the context's own tokens end.

    (As lm-evaluation-harness does, with the spaces at the context's end moved to the continuation; the beginning-of-text
    token is the tokenizer's.) Where that leaves a continuation nothing, tokens of the context are scored with it.
    """
    stripped = context.rstrip()
    moved = context[len(stripped) :]
    ids = encode_text(processor, stripped) if stripped else [_first_token(processor)]
    wholes = [encode_text(processor, stripped + moved + x) for x in continuations]
    if not stripped:
        wholes = [x if x[:1] == ids else [*ids, *x] for x in wholes]
    length = min(len(ids), *(len(x) - 1 for x in wholes))
    return Prompt(tuple(ids[:length]), tuple(tuple(x[length:]) for x in wholes))


def encode_text(processor: Processor, text: str) -> list[int]:
    """A text that goes on: without the end-of-text token that some tokenizers add."""
    ids = processor.text(text)
    return ids[:-1] if len(ids) > 1 and ids[-1] == processor.eos_id else ids


def _first_token(processor: Processor) -> int:
    """What stands before an empty context: the beginning-of-text token, or else the end-of-text token."""
    return next(iter(processor.special_tokens.first), processor.eos_id)
