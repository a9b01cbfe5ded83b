"""The review page on this machine: the routes of evaluate/review behind the guard of deploy/serve."""

import contextlib
import secrets
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path

from fastapi import FastAPI

from weitiao.core.messages import Message
from weitiao.core.reporter import Reporter
from weitiao.deploy.serve.app import with_guard
from weitiao.deploy.serve.guard import Access
from weitiao.deploy.serve.limits import Limits
from weitiao.deploy.serve.server import Server, open_socket
from weitiao.deploy.serve.server_metrics import ServerMetrics
from weitiao.evaluate.review.app import review_routes
from weitiao.evaluate.review.review_set import ReviewSet
from weitiao.evaluate.review.votes import VoteFile

HOST = "127.0.0.1"


@dataclass
class ReviewServer:
    """What the guard stands before."""

    limits: Limits = field(default_factory=Limits)
    metrics: ServerMetrics = field(default_factory=ServerMetrics)
    is_draining: bool = False


def review_app(review: ReviewSet, folder: Path, server: ReviewServer, key: str) -> FastAPI:
    """The page and its requests.

    Args:
        key: the first part of every path.
    """

    @contextlib.asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        yield

    return with_guard((review_routes(review, VoteFile(folder), key),), lifespan, Access(), server)


def serve_review(review: ReviewSet, folder: Path, port: int, reporter: Reporter) -> None:
    """Show the page until Ctrl-C.

    Args:
        port: 0: any that is free.

    Raises:
        ModelError: the port is taken.
    """
    listener, key, server = open_socket(HOST, port), secrets.token_urlsafe(16), ReviewServer()
    address = f"http://{HOST}:{listener.getsockname()[1]}/{key}/"
    reporter.say(Message("{n:,} pairs of answers to judge: {address}", n=len(review.pairs), address=address))
    reporter.say(Message("every vote is saved at once; Ctrl-C ends, the same command goes on"), "dim")
    Server(review_app(review, folder, server, key), server.limits, server).run([listener])
