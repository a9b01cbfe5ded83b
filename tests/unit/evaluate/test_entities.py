"""Entity F1, precision and recall are seqeval's, to the last digit, and so are their intervals' parts."""

import random
import time

import pytest
from seqeval.metrics import f1_score, precision_score, recall_score

from weitiao.core.bio_tags import Scheme, all_tags, entities_to_tags, tags_to_entities
from weitiao.core.metric import Metric
from weitiao.core.registry import create
from weitiao.core.score import PERCENT
from weitiao.evaluate.entities import count

JUDGES = {"entity_f1": f1_score, "entity_precision": precision_score, "entity_recall": recall_score}


def pairs(scheme: Scheme, rows: int, seed: int) -> list[tuple[list[str], list[str]]]:
    """Random valid tags, and such as are partly the same."""
    rng_key, tags = random.Random(seed), all_tags(("a", "b", "c"), scheme)
    found = []
    for _ in range(rows):
        n = rng_key.randrange(1, 25)
        right = tags_to_entities([rng_key.choice((*tags, "O", "O")) for _ in range(n)], repair=True)
        said = (
            [x for x in right if rng_key.random() < 0.7]
            if rng_key.random() < 0.7
            else tags_to_entities(["O", "B-a"] * n)[: n // 2]
        )
        found.append((entities_to_tags([x for x in said if x[1] <= n], n, scheme), entities_to_tags(right, n, scheme)))
    return found


@pytest.mark.parametrize("name", JUDGES)
@pytest.mark.parametrize("scheme", ["bio", "bioes"])
def test_entity_scores_equal_seqeval(name: str, scheme: Scheme) -> None:
    for seed in range(5):
        some = pairs(scheme, 40, seed)
        score = create(Metric, name).score(some)
        said, right = [x for x, _ in some], [x for _, x in some]
        assert score.value == pytest.approx(JUDGES[name](right, said), abs=1e-15)
        assert score.n == 40 and score.low <= score.value <= score.high and score.higher_is_better
        assert 0.05 < score.high - score.low < 0.5 and name in PERCENT


def test_entity_scores_follow_scheme() -> None:
    for scheme in ("bio", "bioes"):
        for said, right in pairs(scheme, 200, 9):
            mine = [set(tags_to_entities(x)) for x in (said, right)]
            assert count(said, right) == (len(mine[0] & mine[1]), len(mine[0]), len(mine[1]))


def test_entity_scores_without_entities() -> None:
    nothing = [(["O", "O"], ["B-a", "O"])]
    assert create(Metric, "entity_f1").score(nothing).value == 0.0
    assert create(Metric, "entity_precision").score(nothing).n == 0, "no share of none"
    assert str(create(Metric, "entity_f1").score([(["O"], ["O"])])).startswith("not measured")


def test_entity_scores_fast() -> None:
    some = pairs("bio", 2000, 1)
    begun = time.process_time()
    create(Metric, "entity_f1").score(some)
    assert time.process_time() - begun < 5
