"""What the server needs of a model: live functions, handed over by pipeline/serving.py. Nothing here opens a model.

All of them run on the model's own thread (model_thread.py), except `encode_chat` and `encode_text`, which only tokenize.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from weitiao.core.engine import Engine
from weitiao.core.messages import Message

Ability = Literal["generate", "embed", "classify", "tag", "answer", "rerank", "transcribe", "predict"]
"""What a model can be asked for; each has its routes."""
ROUTES: dict[Ability, str] = {
    "generate": "/v1/chat/completions",
    "embed": "/v1/embeddings",
    "classify": "/v1/classify",
    "tag": "/v1/tag",
    "answer": "/v1/answer",
    "rerank": "/v1/rerank",
    "transcribe": "/v1/transcribe",
    "predict": "/v1/predict",
}
"""The first of each."""


@dataclass(frozen=True)
class TokenText:
    """A token as log-probabilities report it."""

    text: str
    bytes: tuple[int, ...] | None
    """UTF-8; None: not known for this tokenizer."""


@dataclass
class ServedModel:
    """A model with its adapters, ready to answer."""

    base: str
    """The name under which the base model, or the only model, answers."""
    abilities: frozenset[Ability]
    adapters: "AdapterSource"
    engine: Engine | None = None
    """Of a model that generates text token by token."""
    encode_chat: (
        Callable[[Sequence[Mapping[str, Any]], Sequence[Any], str, int], tuple[list[int], Sequence[int]]] | None
    ) = None
    """(messages, tools, adapter, tokens that the answer may have) -> the ids of the prompt, in the adapter's own chat
    template, and which messages it was too long for.

    Raises:
        DataError: the messages do not fit the model.
    """
    encode_text: Callable[[str], list[int]] | None = None
    """A text that is continued -> ids."""
    token_text: Callable[[int], TokenText] = lambda _: TokenText("", None)
    tool_format: str = ""
    """How its chat template writes calls of tools (tool_calls.py); "": in no known form."""
    predict: Callable[[Sequence[Mapping[str, Any]], str], list[dict[str, Any]]] | None = None
    """(rows, task) -> rows with what is predicted of them, or with `error`."""
    embed: Callable[[Sequence[str]], tuple[list[list[float]], int]] | None = None
    """Texts -> vectors, and how many tokens were read."""
    transcribe: Callable[[bytes], str] | None = None
    """The bytes of an audio file -> what is said.

    Raises:
        DataError: they are not audio, or too long.
    """
    vocab_size: int = 0
    """Token ids are below it."""
    max_length: int | None = None
    """Tokens of a prompt with its answer; None: unknown."""
    settings: list[Message] = field(default_factory=list)
    """What is in force, for the lines that are printed at the start."""


@dataclass
class AdapterSource:
    """Where adapters come from; pipeline/serving.py fills it in."""

    resident: tuple[str, ...] = ()
    """Named on the command line: always loaded."""
    list_folder: Callable[[], dict[str, str]] | None = None
    """Of --adapters-dir: a name -> the folder of an adapter; looked at again whenever it is called."""
    load: Callable[[str, str], None] | None = None
    """(name, folder): add an adapter to the model.

    Raises:
        WeitiaoError: it does not fit, or changes nothing.
    """
    unload: Callable[[str], None] | None = None
