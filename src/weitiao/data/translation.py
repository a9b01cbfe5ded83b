"""Sources and targets as a translation model's tokenizer encodes them: by vocabulary (Marian) and by language code.

Marian              source.spm for sources, target.spm for targets; several languages: >>fr<< before the source
mBART               source  hello </s> en_XX       decoder   fr_XX bonjour </s>
mBART-50            source  en_XX hello </s>       decoder   </s> fr_XX bonjour </s>
M2M-100, NLLB       source  __en__ hello </s>      decoder   </s> __fr__ bonjour </s>
T5, BART            one vocabulary, no codes
"""

from collections.abc import Callable
from typing import Any

from weitiao.core.errors import DataError
from weitiao.core.processor import Target

CODES_NAMED = 8


def encode_source(
    tokenizer: Any,
    encode: Callable[[str], list[int]],
    text: str,
    source_language: str | None,
    target_language: str | None,
) -> list[int]:
    """A source, in its language.

    Args:
        encode: a text with the tokenizer's special tokens around it.

    Raises:
        DataError: the tokenizer needs another language, or knows none.
    """
    if _has_codes(tokenizer):
        _set_languages(tokenizer, source_language, target_language)
    elif codes := getattr(tokenizer, "supported_language_codes", None):
        if target_language is not None:
            text = f"{_marian_code(codes, target_language)} {text}"
        elif not text.startswith(">>"):
            raise _unknown("target_language", target_language, [x.strip("><") for x in codes])
    elif source_language is not None or target_language is not None:
        raise DataError(
            "objective: this base's tokenizer ({tokenizer}) has no language codes; leave out source_language and "
            "target_language",
            tokenizer=type(tokenizer).__name__,
        )
    return encode(text) if tokenizer.is_fast else _slowly(tokenizer, text=text)


def encode_target(
    tokenizer: Any,
    encode: Callable[[str], list[int]],
    body: Callable[[str], list[int]],
    text: str,
    source_language: str | None,
    target_language: str | None,
    start_id: int | None,
    eos_id: int,
) -> Target:
    """A target, by the target's vocabulary and in its language.

    Args:
        encode: a text with the tokenizer's special tokens around it.
        body: without them.
        start_id: the config's decoder_start_token_id.

    Raises:
        DataError: as `encode_source`.
    """
    start = eos_id if start_id is None else start_id
    if not _has_codes(tokenizer):
        switches = hasattr(tokenizer, "_switch_to_target_mode")
        ids = _as_target(tokenizer, body, text, eos_id) if switches else encode(text)
        return Target(start, ids if ids and ids[-1] == eos_id else [*ids, eos_id])
    _set_languages(tokenizer, source_language, target_language)
    ids, code = _as_target(tokenizer, body, text, eos_id), _language_id(tokenizer, str(target_language))
    ends_with_code = bool(ids) and ids[-1] == code
    if ends_with_code and start_id != eos_id:  # mBART: the decoder starts with the code
        return Target(int(code or 0), ids[:-1])
    return Target(start, [code, *ids[:-1]] if ends_with_code else ids, code)  # pyright: ignore[reportArgumentType]


def _as_target(tokenizer: Any, body: Callable[[str], list[int]], text: str, eos_id: int) -> list[int]:
    """By the target's vocabulary, with the special tokens of its language around it."""
    if not tokenizer.is_fast:
        return _slowly(tokenizer, text_target=text)
    frame = list(tokenizer(text_target="").input_ids)
    start = frame.index(eos_id)
    return [*frame[:start], *body(text), *frame[start:]]


def _slowly(tokenizer: Any, **text: str) -> list[int]:
    """By a tokenizer in Python; special tokens that the text spells stay text."""
    return list(tokenizer(**text, split_special_tokens=True).input_ids)


def _has_codes(tokenizer: Any) -> bool:
    return hasattr(tokenizer, "src_lang") and hasattr(tokenizer, "_switch_to_target_mode")


def _set_languages(tokenizer: Any, source_language: str | None, target_language: str | None) -> None:
    for key, code in (("source_language", source_language), ("target_language", target_language)):
        if code is None or _language_id(tokenizer, code) is None:
            raise _unknown(key, code, _codes(tokenizer))
    if tokenizer.src_lang != source_language:
        tokenizer.src_lang = source_language
    tokenizer.tgt_lang = target_language


def _language_id(tokenizer: Any, code: str) -> int | None:
    """The id of a language code; None: there is no such code."""
    if hasattr(tokenizer, "get_lang_id"):  # M2M-100 writes en as __en__
        return tokenizer.get_lang_id(code) if code in tokenizer.lang_code_to_token else None
    token_id = tokenizer.convert_tokens_to_ids(code)
    return token_id if code in _codes(tokenizer) and token_id != tokenizer.unk_token_id else None


def _codes(tokenizer: Any) -> list[str]:
    """All codes that the tokenizer knows."""
    codes = getattr(tokenizer, "lang_code_to_id", None) or getattr(tokenizer, "fairseq_language_codes", None)
    return list(codes) if codes else [str(x) for x in tokenizer.all_special_tokens if "_" in str(x)]


def _marian_code(codes: list[str], language: str) -> str:
    code = f">>{language}<<"
    if code not in codes:
        raise _unknown("target_language", language, [x.strip("><") for x in codes])
    return code


def _unknown(key: str, code: str | None, codes: list[str]) -> DataError:
    available = ", ".join(codes[:CODES_NAMED]) + (" ..." if len(codes) > CODES_NAMED else "")
    if code is None:
        return DataError(
            "objective: this base knows several languages; name objective.{key}. There are: {known}",
            key=key,
            known=available,
        )
    return DataError(
        "objective.{key}: the base has no language {code!r}. There are: {known}", key=key, code=code, known=available
    )
