"""The judge that a user names: a model of this machine, or an OpenAI-compatible server. Nothing is reached unless named."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from weitiao.core.errors import ModelError
from weitiao.core.messages import Message
from weitiao.core.reporter import Reporter
from weitiao.deploy.verification.endpoint import Endpoint, Refused
from weitiao.evaluate.review.judge_model import judge_pairs
from weitiao.evaluate.review.review_set import ReviewSet
from weitiao.pipeline.inference import open_model

KEY = "WEITIAO_JUDGE_KEY"
MAX_TOKENS = 256  # of a verdict with its reason


def open_judge(target: str, model: str, reporter: Reporter) -> tuple[str, Callable[[list[dict[str, Any]]], str]]:
    """The judge's name, and a function that asks it, greedily.

    Args:
        target: a model, or an address (http://127.0.0.1:8000, https://...); a server's key is in WEITIAO_JUDGE_KEY.
        model: of a server with several, the one that judges.

    Raises:
        ModelError: it cannot be opened, or nothing answers at the address.
    """
    if target.startswith(("http://", "https://")):
        endpoint = Endpoint.open(target, model, os.environ.get(KEY, "").strip())
        return endpoint.model, lambda messages: _ask(endpoint, messages)
    with reporter.spin(Message("loading the judge")):
        judge = open_model(target)
    if not judge.objective.traits.generative or judge.assets.continues_text:
        raise ModelError("--judge {target}: a judge is a chat model; this one has no conversations", target=target)
    return target, lambda messages: judge.generate(messages, max_new_tokens=MAX_TOKENS, system="")


def _ask(endpoint: Endpoint, messages: list[dict[str, Any]]) -> str:
    body = {"model": endpoint.model, "messages": messages, "max_tokens": MAX_TOKENS, "temperature": 0}
    try:
        answer = endpoint.call("/v1/chat/completions", body)
    except Refused as error:
        raise ModelError("the judge {url} refuses: {error}", url=endpoint.url, error=str(error)[:200]) from None
    try:
        return str(answer["choices"][0]["message"]["content"] or "")
    except (KeyError, IndexError, TypeError):
        raise ModelError("the judge {url} gives no answer that can be read", url=endpoint.url) from None


def judge_review(review: ReviewSet, folder: Path, judge: str, model: str, reporter: Reporter) -> None:
    """Let a judge model say its verdicts; they are kept in the folder.

    Raises:
        ModelError: it cannot be reached, or does not judge.
    """
    name, ask = open_judge(judge, model, reporter)
    label = Message("verdicts of {name}", name=name)
    judge_pairs(review, name, ask, folder, lambda pairs: reporter.track(pairs, label))
