"""A review of made-up answers, and votes on it."""

import random
from collections.abc import Callable, Sequence

from weitiao.evaluate.review.review_set import Pair, ReviewItem, ReviewSet
from weitiao.evaluate.review.votes import Vote


def make_review(n: int = 40, names: Sequence[str] = ("old-model", "new-model"), secret: str = "0" * 32) -> ReviewSet:
    """Every answer is different, and none holds a model's name."""
    letters = {name: chr(ord("k") + i) for i, name in enumerate(names)}
    items = tuple(
        ReviewItem(({"role": "user", "content": f"prompt {i}"},), {name: f"answer {letters[name]}{i}" for name in names})
        for i in range(n)
    )
    return ReviewSet({name: f"runs/{name}" for name in names}, items, secret)


def votes_of(review: ReviewSet, judge: str, prefer: Callable[[Pair, random.Random], str], seed: int = 0) -> list[Vote]:
    """A judge's votes on all pairs.

    Args:
        prefer: the name of the better model, "tie" or "both_bad".
    """
    drawn, votes = random.Random(seed), []
    for pair in review.for_judge(judge):
        better = prefer(pair, drawn)
        left, right = review.sides(judge, pair)
        verdict = "left" if better == left else "right" if better == right else better
        votes.append(Vote(review.id_of(judge, pair), judge, verdict))  # pyright: ignore[reportArgumentType]
    return votes
