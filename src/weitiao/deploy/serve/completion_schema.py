"""What clients may ask of a model that generates: OpenAI's names and types, and vLLM's names where OpenAI has none.

Unknown fields are refused: a misspelled `max_token` that is ignored costs more than an error.
"""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, StrictBool, StrictInt, StrictStr

Text = Annotated[StrictStr, Field(max_length=8_388_608)]
Number = Annotated[float, Field(strict=True)]
StopText = Annotated[StrictStr, Field(min_length=1, max_length=256)]
TokenId = Annotated[StrictInt, Field(ge=0)]


class Body(BaseModel):
    """A request; numbers are finite, and there are no other fields than these."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False, use_attribute_docstrings=True)


class FunctionCall(Body):
    """A call that an assistant made."""

    name: StrictStr
    arguments: StrictStr = "{}"
    """JSON, an object."""


class ToolCallMessage(Body):
    """A call in an assistant's message."""

    id: StrictStr = ""
    type: Literal["function"] = "function"
    function: FunctionCall
    index: StrictInt | None = None


class ContentPart(Body):
    """A part of a message's content; only text can be read."""

    type: Literal["text"]
    text: Text


class ChatMessage(Body):
    """A message of a conversation."""

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: Text | Annotated[list[ContentPart], Field(max_length=64)] | None = None
    name: StrictStr | None = None
    tool_calls: Annotated[list[ToolCallMessage], Field(max_length=128)] | None = None
    tool_call_id: StrictStr | None = None
    reasoning_content: Text | None = None
    refusal: None = None
    audio: None = None
    function_call: None = None
    annotations: list[Any] | None = None


class Function(Body):
    """A function that the model may call."""

    name: Annotated[StrictStr, Field(pattern=r"^[A-Za-z0-9_.-]{1,64}$")]
    description: Text | None = None
    parameters: dict[str, Any] | None = None
    """A JSON Schema."""
    strict: StrictBool | None = None


class Tool(Body):
    """A tool that the model may call."""

    type: Literal["function"]
    function: Function


class NamedFunction(Body):
    """The name of a function."""

    name: StrictStr


class NamedTool(Body):
    """The one tool that must be called."""

    type: Literal["function"]
    function: NamedFunction


class JsonSchema(Body):
    """A schema that the answer must follow."""

    name: StrictStr = ""
    description: Text | None = None
    schema_: dict[str, Any] = Field(default_factory=dict, alias="schema")
    strict: StrictBool | None = None


class ResponseFormat(Body):
    """What the answer must look like."""

    type: Literal["text", "json_object", "json_schema"]
    json_schema: JsonSchema | None = None


class StreamOptions(Body):
    """What a stream also tells."""

    include_usage: StrictBool = False
    include_obfuscation: StrictBool | None = None


class GenerationBody(Body):
    """What requests for chats and for texts have in common."""

    model: StrictStr
    """A name of GET /v1/models."""
    max_tokens: Annotated[StrictInt, Field(ge=1)] | None = None
    temperature: Annotated[Number, Field(ge=0, le=2)] | None = None
    top_p: Annotated[Number, Field(gt=0, le=1)] | None = None
    top_k: Annotated[StrictInt, Field(ge=-1)] | None = None
    """vLLM's; -1 and 0: all tokens."""
    min_p: Annotated[Number, Field(ge=0, le=1)] | None = None
    repetition_penalty: Annotated[Number, Field(gt=0, le=2)] | None = None
    presence_penalty: Annotated[Number, Field(ge=-2, le=2)] | None = None
    frequency_penalty: Annotated[Number, Field(ge=-2, le=2)] | None = None
    logit_bias: Annotated[dict[str, Annotated[Number, Field(ge=-100, le=100)]], Field(max_length=300)] | None = None
    n: Annotated[StrictInt, Field(ge=1)] | None = None
    stop: StopText | Annotated[list[StopText], Field(max_length=16)] | None = None
    seed: Annotated[StrictInt, Field(ge=-(2**63), lt=2**63)] | None = None
    stream: StrictBool | None = None
    stream_options: StreamOptions | None = None
    ignore_eos: StrictBool = False
    user: StrictStr | None = None
    """Accepted and not kept."""


class ChatRequest(GenerationBody):
    """POST /v1/chat/completions."""

    messages: Annotated[list[ChatMessage], Field(min_length=1)]
    max_completion_tokens: Annotated[StrictInt, Field(ge=1)] | None = None
    logprobs: StrictBool | None = None
    top_logprobs: Annotated[StrictInt, Field(ge=0, le=20)] | None = None
    tools: Annotated[list[Tool], Field(max_length=128)] | None = None
    tool_choice: Literal["none", "auto", "required"] | NamedTool | None = None
    parallel_tool_calls: StrictBool | None = None
    response_format: ResponseFormat | None = None
    store: Literal[False] | None = None
    metadata: dict[str, StrictStr] | None = None
    """Accepted and not kept."""


class CompletionRequest(GenerationBody):
    """POST /v1/completions."""

    prompt: (
        Text
        | Annotated[list[TokenId], Field(min_length=1)]
        | Annotated[list[Text], Field(min_length=1)]
        | Annotated[list[Annotated[list[TokenId], Field(min_length=1)]], Field(min_length=1)]
    )
    logprobs: Annotated[StrictInt, Field(ge=0, le=20)] | None = None
    echo: Literal[False] | None = None
    best_of: None = None
    suffix: None = None


def num_answers(body: GenerationBody) -> int:
    """How many answers a request asks for: n to each prompt."""
    prompt: Any = body.prompt if isinstance(body, CompletionRequest) else ""
    prompts = len(prompt) if isinstance(prompt, list) and not isinstance(prompt[0], int) else 1
    return prompts * (body.n or 1)
