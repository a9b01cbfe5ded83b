"""A tokenizer in GGUF: tokens with their kinds, merges or scores, special tokens, chat template, stop tokens.

llama.cpp has no file of splitting rules; it knows pre-tokenizers by name (`tokenizer.ggml.pre`). Which one a byte-level BPE
tokenizer has is proven, never guessed: the ids of one text that all of them split differently have a known SHA-256
(pre_tokenizers.json, from llama.cpp's converter). A wrong one gives other tokens without a warning.

    byte-level BPE      GPT-2, Llama 3, Qwen, SmolLM       model gpt2   merges
    SentencePiece BPE   Gemma, Llama 2, Mistral 7B         model llama  scores: minus the rank of a token's merge
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

from gguf import GGUFWriter, SpecialVocab, TokenType

from weitiao.core.errors import ModelError
from weitiao.core.extended_tokenizer import without_new_merges

PRE_TOKENIZERS = Path(__file__).with_name("pre_tokenizers.json")
SPLIT_DIFFERENTLY = (
    "\n \n\n \n\n\n \t \t\t \t\n  \n   \n    \n     \n🚀 (normal) 😶\u200d🌫️ (multiple emojis "
    "concatenated) ✅ 🦙🦙 3 33 333 3333 33333 333333 3333333 33333333 3.3 3..3 3...3 "
    "កាន់តែពិសេសអាច😁 ?我想在apple工作1314151天～ ------======= нещо на Български "
    "''''''```````\"\"\"\"......!!!!!!?????? I've been 'told he's there, 'RE you sure? "
    "'M not sure I'll make it, 'D you like some tea? We'Ve a'lL"
)  # llama.cpp's; every character counts
END_OF_TURN = ("<|im_end|>", "<|eot_id|>", "<end_of_turn>", "<|end|>", "<|endofturn|>")
ADDED_SCORE = -1000.0


@dataclass(frozen=True)
class Vocabulary:
    """What llama.cpp knows of a tokenizer."""

    model: str
    """gpt2: byte-level BPE; llama: SentencePiece."""
    pre: str
    tokens: list[str]
    kinds: list[TokenType]
    merges: list[str]
    scores: list[float]
    special: dict[str, int]
    """bos, eos, unk, sep, pad, cls, mask, eot -> id"""
    add_bos: bool
    chat_template: str | None


def read_vocabulary(tokenizer: Any, num_rows: int, stop_ids: Sequence[int], folder: Path) -> Vocabulary:
    """A transformers tokenizer as llama.cpp has it.

    Args:
        num_rows: of the embeddings.
        stop_ids: tokens that end an answer; the first is the one that ends a turn.
        folder: the model's, whose files name the special tokens.

    Raises:
        ModelError: llama.cpp cannot split texts as it does.
    """
    if not hasattr(tokenizer, "backend_tokenizer"):
        raise ModelError(
            "GGUF: this tokenizer is written in Python ({cls}); llama.cpp has none like it.", cls=type(tokenizer)
        )
    spec = json.loads(tokenizer.backend_tokenizer.to_str())
    model = spec["model"]
    if model["type"] != "BPE":
        raise ModelError("GGUF: a tokenizer of type {type} is not written here; BPE is.", type=model["type"])
    if len(tokenizer) > num_rows:
        raise ModelError(
            "GGUF: the tokenizer has {tokens:,} tokens, the embeddings have {rows:,} rows.",
            tokens=len(tokenizer),
            rows=num_rows,
        )
    merges = [tuple(x.split(" ")) if isinstance(x, str) else tuple(x) for x in model["merges"]]
    is_sentencepiece = bool(model.get("byte_fallback"))
    tokens, kinds = read_tokens(tokenizer, num_rows, is_sentencepiece)
    template = tokenizer.chat_template
    return Vocabulary(
        "llama" if is_sentencepiece else "gpt2",
        "default" if is_sentencepiece else pre_tokenizer(tokenizer),
        tokens,
        kinds,
        [] if is_sentencepiece else [" ".join(x.replace(" ", "\u0120") for x in pair) for pair in merges],
        read_scores(tokens, kinds, merges) if is_sentencepiece else [],
        special_ids(tokenizer, stop_ids, folder),
        _adds_bos(tokenizer),
        template if isinstance(template, str) else None,
    )


def pre_tokenizer(tokenizer: Any) -> str:
    """llama.cpp's name for how a tokenizer splits a text before it merges; new merges are left out, for they split nothing.

    Raises:
        ModelError: it is none that llama.cpp is known to have.
    """
    known = json.loads(PRE_TOKENIZERS.read_text(encoding="utf-8"))
    digest = sha256(str(list(without_new_merges(tokenizer).encode(SPLIT_DIFFERENTLY))).encode()).hexdigest()
    if digest not in known:
        raise ModelError(
            "GGUF: llama.cpp has no pre-tokenizer that is proven to split texts as this tokenizer does (sha256 {digest}), "
            "and a guess would give other tokens without a warning. If the base is one that llama.cpp knows, its tokenizer "
            "was changed: train on the original one. Otherwise serve with vllm, or with weitiao.",
            digest=digest[:16],
        )
    return known[digest]


def read_tokens(tokenizer: Any, num_rows: int, is_sentencepiece: bool) -> tuple[list[str], list[TokenType]]:
    """The text of each row of the embeddings, and its kind."""
    by_id = {i: token for token, i in tokenizer.get_vocab().items()}
    added = tokenizer.added_tokens_decoder
    tokens: list[str] = []
    kinds: list[TokenType] = []
    for i in range(num_rows):
        token, kind = by_id.get(i), TokenType.NORMAL
        if token is None:
            token, kind = f"[PAD{i}]", TokenType.UNUSED
        elif i in added:
            control = added[i].special or looks_special(token)
            kind = TokenType.CONTROL if control else TokenType.USER_DEFINED
            if not added[i].normalized and not is_sentencepiece:
                token = tokenizer.decode(tokenizer.encode(token, add_special_tokens=False))
            token = token if control else token.replace("▁", " ")
        if is_sentencepiece and token == tokenizer.unk_token:
            kind = TokenType.UNKNOWN
        elif is_sentencepiece and len(token) == 6 and token.startswith("<0x"):
            kind = TokenType.BYTE
        tokens.append(token)
        kinds.append(kind)
    return tokens, kinds


def looks_special(token: str) -> bool:
    """Control tokens that some models do not mark as special; llama.cpp's list."""
    return (
        token in ("<pad>", "<mask>", "<2mass>", "[@BOS@]")
        or (token.startswith("<|") and token.endswith("|>"))
        or (token.startswith("<｜") and token.endswith("｜>"))
        or (token.startswith("<unused") and token.endswith(">"))
    )


def read_scores(tokens: list[str], kinds: list[TokenType], merges: Sequence[tuple[str, ...]]) -> list[float]:
    """SentencePiece's score of each token: it merges the pair whose result has the highest score, the leftmost of equals.

    Raises:
        ModelError: the merges of one token do not follow one another, so no score gives their order.
    """
    rank: dict[str, int] = {}
    last = ""
    for left, right in merges:
        token = left + right
        if token != last and token in rank:
            raise ModelError("GGUF: the merges of this tokenizer have no order by scores (token {token!r}).", token=token)
        rank.setdefault(token, len(rank))
        last = token
    scores: list[float] = []
    for token, kind in zip(tokens, kinds):
        if kind in (TokenType.CONTROL, TokenType.USER_DEFINED, TokenType.UNUSED):
            scores.append(ADDED_SCORE)
        else:
            scores.append(-float(rank.get(token, 0)))
    return scores


def special_ids(tokenizer: Any, stop_ids: Sequence[int], folder: Path) -> dict[str, int]:
    """The special tokens; eos ends a turn, eot is another token that ends an answer.

    They are read from the files, as the official converter does: transformers' classes for some families (Qwen2) add
    tokens of their own, such as an unk_token, that the model was not trained with.
    """
    stops = tuple(stop_ids) or (tokenizer.eos_token_id,)
    return SpecialVocab(folder).special_token_ids | dict(zip(("eos", "eot", "eom"), stops))


def _adds_bos(tokenizer: Any) -> bool:
    ids = tokenizer("a").input_ids
    return bool(ids) and tokenizer.bos_token_id is not None and ids[0] == tokenizer.bos_token_id


def write_vocabulary(writer: GGUFWriter, vocabulary: Vocabulary) -> None:
    """The keys of `tokenizer`."""
    writer.add_tokenizer_model(vocabulary.model)
    writer.add_tokenizer_pre(vocabulary.pre)
    writer.add_token_list(vocabulary.tokens)
    if vocabulary.scores:
        writer.add_token_scores(vocabulary.scores)
        writer.add_add_space_prefix(False)
    writer.add_token_types([int(x) for x in vocabulary.kinds])
    if vocabulary.merges:
        writer.add_token_merges(vocabulary.merges)
    for name, i in vocabulary.special.items():
        getattr(writer, f"add_{name}_token_id", lambda _: None)(i)  # there is no key for CLS
    writer.add_add_bos_token(vocabulary.add_bos)
    if vocabulary.chat_template:
        writer.add_chat_template(vocabulary.chat_template)
