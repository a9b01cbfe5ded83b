"""The routes of the review page. Nothing that goes out says which model an answer is of, until a judge has judged all."""

from pathlib import Path
from typing import Annotated, Any, Literal

from fastapi import APIRouter, HTTPException, Query
from pydantic import BaseModel, ConfigDict, Field
from starlette.responses import Response

from weitiao.evaluate.review.review_results import review_results
from weitiao.evaluate.review.review_set import ReviewSet
from weitiao.evaluate.review.votes import RUBRICS, Vote, VoteFile

PAGE = Path(__file__).parent / "page"
FILES = {
    "": ("review.html", "text/html"),
    "review.js": ("review.js", "text/javascript"),
    "review.css": ("review.css", "text/css"),
}
MAX_COMMENT, MAX_NAME = 4000, 60  # characters
Judge = Annotated[str, Query(min_length=1, max_length=MAX_NAME)]
Verdict = Literal["left", "right", "tie", "both_bad"]


class VoteBody(BaseModel):
    """A vote as the page sends it."""

    model_config = ConfigDict(extra="forbid")
    id: str = Field(max_length=64)
    judge: str = Field(min_length=1, max_length=MAX_NAME)
    verdict: Verdict
    rubrics: dict[Literal["accuracy", "completeness", "tone", "safety"], Verdict] = Field(default_factory=dict)
    comment: str = Field(default="", max_length=MAX_COMMENT)
    seconds: float = Field(default=0.0, ge=0, le=1e7)


def review_routes(review: ReviewSet, votes: VoteFile, key: str) -> APIRouter:
    """The page and its requests, all under a path that has the key of this start.

    Args:
        key: whoever knows the address with it may vote.
    """
    router = APIRouter(prefix=f"/{key}")
    for path, (name, kind) in FILES.items():
        _add_file(router, f"/{path}", (PAGE / name).read_bytes(), kind)

    @router.get("/item")
    def item(judge: Judge, position: Annotated[int | None, Query(ge=0)] = None) -> Any:
        """An item of a judge's order; without a position, the first without a vote."""
        order, own = review.for_judge(judge), votes.of(judge)
        ids = [review.id_of(judge, x) for x in order]
        done = sum(x in own for x in ids)
        if position is None:
            position = next((i for i, x in enumerate(ids) if x not in own), len(ids) - 1)
        if not 0 <= position < len(ids):
            raise HTTPException(404)
        pair, said = order[position], own.get(ids[position])
        left, right = (review.items[pair.item].answers[x] for x in review.sides(judge, pair))
        return {
            "id": ids[position],
            "position": position,
            "total": len(ids),
            "done": done,
            "rubrics": RUBRICS,
            "messages": review.items[pair.item].messages,
            "left": left,
            "right": right,
            "vote": None if said is None else {"verdict": said.verdict, "rubrics": said.rubrics, "comment": said.comment},
        }

    @router.post("/votes")
    def vote(body: VoteBody) -> Any:
        """Keep a vote; a later one of the same judge on the same item takes its place."""
        ids = review.by_id(body.judge)
        if body.id not in ids:
            raise HTTPException(404)
        votes.add(Vote(**body.model_dump()))
        return {"done": sum(x in ids for x in votes.of(body.judge)), "total": len(ids)}

    @router.get("/results")
    def results(judge: Judge) -> Any:
        """Who is who, for a judge who has judged everything."""
        if not votes.of(judge).keys() >= review.by_id(judge).keys():
            raise HTTPException(403)
        return review_results(review, votes.every).as_json()

    return router


def _add_file(router: APIRouter, path: str, content: bytes, kind: str) -> None:
    @router.get(path, include_in_schema=False)
    def page() -> Response:
        return Response(content, media_type=f"{kind}; charset=utf-8")
