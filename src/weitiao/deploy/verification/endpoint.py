"""An OpenAI-compatible server, and what it predicts of given tokens: vLLM, llama.cpp, our own server.

    POST /v1/completions        prompt: token ids, echo, logprobs: k     one request a row, where the server echoes
                                prompt: token ids, max_tokens: 1         otherwise one request a token
    POST /v1/chat/completions   the prompt's tokens are counted          does it render the template as in training?

Only the host that is named is contacted: no proxy, no redirect.
"""

import json
import urllib.error
import urllib.request
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

from weitiao.core.errors import ModelError

TOP = 5  # most probable tokens: the most that every server gives
MAX_BYTES = 2**25  # of an answer of the server
TIMEOUT = 120.0  # seconds
IDS_AS_TOKENS = "return_tokens_as_token_ids"  # vLLM's; other servers ignore or refuse it


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, *args: Any, **kwargs: Any) -> None:
        return None


class Refused(Exception):
    """The server answered with an error: `status`, and the start of what it said."""

    def __init__(self, status: int, text: str) -> None:
        super().__init__(f"{status} {text}")
        self.status = status


@dataclass
class Endpoint:
    """An OpenAI-compatible server and one of its models."""

    url: str
    model: str = ""
    key: str = ""
    extra: dict[str, Any] = field(default_factory=lambda: {IDS_AS_TOKENS: True})
    echoes: bool = True
    """It gives the log-probabilities of a prompt's own tokens."""

    @classmethod
    def open(cls, url: str, model: str = "", key: str = "") -> "Endpoint":
        """Find the server, and its model where it has only one.

        Raises:
            ModelError: the address is none, nothing answers, or it has several models.
        """
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname or parts.username or parts.query:
            raise ModelError("{url} is no address of a server; write http://127.0.0.1:8000", url=url)
        endpoint = cls(url.rstrip("/").removesuffix("/v1"), model, key)
        if not model:
            names = [str(x.get("id")) for x in endpoint.call("/v1/models").get("data", []) if isinstance(x, Mapping)]
            if len(names) != 1:
                raise ModelError(
                    "{url} serves {names}: name one with --model.", url=url, names=", ".join(names) or "nothing"
                )
            endpoint.model = names[0]
        return endpoint

    def call(self, path: str, body: dict[str, Any] | None = None) -> dict[str, Any]:
        """The server's answer.

        Raises:
            Refused: it answers with an error of the request.
            ModelError: it cannot be reached, or its answer is not JSON.
        """
        headers = {"Content-Type": "application/json"} | ({"Authorization": f"Bearer {self.key}"} if self.key else {})
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self.url + path, data, headers)
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}), _NoRedirect())
        try:
            with opener.open(request, timeout=TIMEOUT) as response:
                answer = json.loads(response.read(MAX_BYTES))
        except urllib.error.HTTPError as error:
            text = error.read(300).decode("utf-8", "replace")
            if error.code in (400, 404, 405, 422, 501):
                raise Refused(error.code, text) from None
            raise ModelError("{url} answers {status}: {text}", url=self.url + path, status=error.code, text=text) from None
        except (OSError, ValueError) as error:
            raise ModelError("{url} cannot be reached: {reason}", url=self.url + path, reason=str(error)[:200]) from None
        if not isinstance(answer, dict):
            raise ModelError("{url} answers with something else than a JSON object.", url=self.url + path)
        return answer

    def complete(self, prompt: Sequence[int], **options: Any) -> dict[str, Any]:
        """The first choice of a completion, greedy."""
        body = {"model": self.model, "prompt": list(prompt), "temperature": 0, **options}
        try:
            answer = self.call("/v1/completions", {**body, **self.extra})
        except Refused:
            if not self.extra:
                raise
            self.extra = {}
            answer = self.call("/v1/completions", body)
        choices = answer.get("choices")
        if not isinstance(choices, list) or not choices or not isinstance(choices[0], dict):
            raise ModelError("{url} gives no completion.", url=self.url)
        return choices[0]

    def most_probable(self, ids: Sequence[int], start: int) -> list[list["TokenLogProb"]]:
        """Of each token of ids[start:], the server's most probable ones at its place."""
        if self.echoes:
            try:
                choice = self.complete(ids, max_tokens=1, logprobs=TOP, echo=True)
            except Refused:
                choice = {}
            positions = [] if has_new_form(choice) else positions_of(choice)
            if len(positions) >= len(ids):
                return positions[start : len(ids)]
            self.echoes = False
        answers = [positions_of(self.complete(ids[:t], max_tokens=1, logprobs=TOP))[:1] for t in range(start, len(ids))]
        return [x[0] if x else [] for x in answers]


@dataclass(frozen=True)
class TokenLogProb:
    """A token as a server names it, with its log-probability."""

    token: int | str
    logprob: float


def has_new_form(choice: Mapping[str, Any]) -> bool:
    """Whether log-probabilities are as chat completions have them, which never hold the prompt's."""
    logprobs = choice.get("logprobs")
    return isinstance(logprobs, Mapping) and isinstance(logprobs.get("content"), list)


def positions_of(choice: Mapping[str, Any]) -> list[list[TokenLogProb]]:
    """The most probable tokens of each place of a choice, in OpenAI's older or newer form."""
    logprobs = choice.get("logprobs")
    if not isinstance(logprobs, Mapping):
        return []
    if has_new_form(choice):
        return [_tokens(x.get("top_logprobs") or [x]) for x in logprobs["content"] if isinstance(x, Mapping)]
    positions = []
    for top in logprobs.get("top_logprobs") or []:
        named = [{"token": key, "logprob": x} for key, x in top.items()] if isinstance(top, Mapping) else top or []
        positions.append(_tokens(named))
    return positions


def _tokens(entries: Sequence[Any]) -> list[TokenLogProb]:
    tokens: list[TokenLogProb] = []
    for x in entries:
        if not isinstance(x, Mapping) or not isinstance(x.get("logprob"), (int, float)):
            continue
        name: Any = x["id"] if isinstance(x.get("id"), int) else x.get("token", "")
        if isinstance(name, str) and name.startswith("token_id:") and name[9:].isdigit():
            name = int(name[9:])
        tokens.append(TokenLogProb(name, float(x["logprob"])))
    return sorted(tokens, key=lambda x: -x.logprob)
