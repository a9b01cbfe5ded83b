"""The contract of text generation: requests in, tokens out. Every command that generates goes through an Engine.

    engine.submit(request) -> generation        waits for a slot
    engine.step()          -> [generation ...]  one forward pass: new prompts and the next token of all that run
    generation.tokens, .finish_reason           grow until the model stops, the room is used up, or it is cancelled

The sampling law, in this order, on the fp32 logits of one row:

    z = logits + logit_bias                              logit_bias
    z_t = z_t / r if z_t > 0 else z_t r                  repetition_penalty r, for t in the prompt or the answer
    z_t = z_t - f count(t) - p [count(t) > 0]            frequency_penalty f, presence_penalty p, over the answer
    z_t = -inf where the grammar does not allow t        grammar
    temperature 0: argmax z, the lowest id of equals
    p = softmax(z / temperature)
    keep the k most probable                             top_k      (0: all)
    keep the fewest most probable that reach top_p       top_p      (Holtzman et al. 2020, "The Curious Case of Neural Text
                                                                     Degeneration", sec. 3.1)
    keep p_t >= min_p max p                              min_p      (Nguyen et al. 2024, arXiv 2407.01082)
    draw from what is kept, renormalized

The n-th token of a row is drawn with a number that follows from (seed, index, n) alone, so an answer does not depend on the
rows beside it. Nothing is inherited from a model's generation_config.json. Log-probabilities are those of the model
itself, log softmax(logits), before all of this.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol

FinishReason = Literal["stop", "length", "cancelled", "error"]
"""The model ended its answer (or a stop sequence did); max_new_tokens or the model's length was reached; cancelled; the
grammar could not be followed any longer, so that the answer is no whole one (`Generation.error`)."""


@dataclass(frozen=True)
class Grammar:
    """What an answer must look like; checked token by token (extra: weitiao[json])."""

    kind: Literal["json", "json_schema", "regex", "choice"]
    value: str = ""
    """The JSON Schema or the choices (both as JSON), or the regular expression; "" for json: any JSON object."""


@dataclass(frozen=True)
class SamplingParams:
    """How the next token is chosen, and when to stop; the names are vLLM's and OpenAI's."""

    max_new_tokens: int = 256
    temperature: float = 0.0
    """0 is greedy."""
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: Mapping[int, float] = field(default_factory=dict)
    stop: tuple[str, ...] = ()
    """Texts that end an answer; the answer is cut before the first of them."""
    ignore_eos: bool = False
    """Go on after the model's stop tokens (benchmarks)."""
    seed: int | None = None
    """None: a new one for every request."""
    top_logprobs: int | None = None
    """How many most probable tokens are reported with each token; 0: the token's own log-probability only; None: none."""
    grammar: Grammar | None = None


@dataclass(frozen=True)
class Request:
    """One answer that is asked for; `n` answers to a prompt are n requests with indexes 0 .. n - 1."""

    prompt_ids: Sequence[int]
    sampling: SamplingParams = SamplingParams()
    adapter: str = ""
    """"": the base model, or the only one that there is."""
    index: int = 0
    """Which of n answers: part of the random stream."""


@dataclass(frozen=True)
class GeneratedToken:
    """One token of an answer."""

    id: int
    logprob: float | None = None
    top_logprobs: tuple[tuple[int, float], ...] = ()
    """(token, log-probability), most probable first."""


@dataclass
class Generation:
    """An answer while it is generated, and afterwards."""

    request: Request
    tokens: list[GeneratedToken] = field(default_factory=list)
    """Without the stop token."""
    text: str = ""
    """Decoded so far, cut before a stop sequence; what may become a stop sequence or a whole character is held back."""
    finish_reason: FinishReason | None = None
    error: str = ""
    """Why it ended with `error`: the limit of the grammar's engine that was reached."""
    cached_tokens: int = 0
    """Tokens of the prompt whose keys and values were cached."""

    @property
    def token_ids(self) -> list[int]:
        return [x.id for x in self.tokens]

    @property
    def is_finished(self) -> bool:
        return self.finish_reason is not None


@dataclass(frozen=True)
class EngineLoad:
    """What an engine is doing."""

    running: int
    waiting: int
    slots: int
    cached_tokens: int = 0
    """Tokens of prefixes that are kept."""


class Engine(Protocol):
    """Generates text for many requests at once. One thread at a time may call it; `cancel` may come from any thread."""

    @property
    def max_length(self) -> int:
        """The most tokens of a prompt with its answer."""
        ...

    @property
    def load(self) -> EngineLoad: ...

    def submit(self, request: Request) -> Generation:
        """Queue a request.

        Raises:
            DataError: the prompt leaves no room for an answer, or there is no such adapter.
        """
        ...

    def step(self) -> list[Generation]:
        """Run the model once; the generations that got tokens or ended. []: there was nothing to do."""
        ...

    def cancel(self, generation: Generation) -> None:
        """End a generation before its next token; its slot is free at the next step."""
        ...
