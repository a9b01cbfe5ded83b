"""`weitiao data hard-negatives`: rows of a file with negatives, found by a Run's own vectors or by n-grams."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from weitiao.core.errors import DataError, ModelError
from weitiao.core.example import Pair, SourcedExample, Text
from weitiao.core.files import write_text
from weitiao.core.objective import Objective
from weitiao.core.recipe_sections import Source
from weitiao.core.registry import create
from weitiao.data.hard_negatives import Candidates, MiningSettings, Scores, mine_negatives, ngram_scores, vector_scores
from weitiao.data.read import read_sources, refuse_to_overwrite
from weitiao.pipeline.inference import open_model


@dataclass(frozen=True)
class HardNegativeRequest:
    """What is mined from what."""

    sources: tuple[Source, ...]
    """Rows of queries and documents."""
    run: str
    """A finished Run with objective embedding; "": by n-grams."""
    corpus: tuple[Source, ...]
    """Further documents, one text a row."""
    settings: MiningSettings


def write_hard_negatives(request: HardNegativeRequest, out: Path) -> dict[str, Any]:
    """Write the rows with their negatives, as objectives embedding and rerank read them; and what was done.

    Returns:
        Counts: rows, documents, negatives (of them drawn at random), documents that were too similar.

    Raises:
        DataError: no row has a query and a document, or rows have scores.
        ModelError: the run has no vectors.
    """
    refuse_to_overwrite([out], (*request.sources, *request.corpus))
    objective = create(Objective, "embedding")
    rows = read_sources(request.sources, objective, 0.0).examples
    pairs = _pairs(rows)
    corpus = _corpus(request.corpus, objective)
    candidates = Candidates(pairs, corpus)
    if len(candidates.texts) < 2:
        raise DataError("data: all rows have the same document, so there is no negative.")
    settings = request.settings if request.run else replace(request.settings, relative_margin=None)
    mined = mine_negatives(candidates, _scores(request.run, candidates), settings)
    lines = [_row(x, negatives) for x, negatives in zip(pairs, mined.negatives, strict=True)]
    write_text(out, "".join(json.dumps(x, ensure_ascii=False) + "\n" for x in lines))
    return {
        "rows": len(pairs),
        "queries": len(candidates.queries),
        "documents": len(candidates.texts),
        "negatives": sum(map(len, mined.negatives)),
        "random": mined.random,
        "missing": mined.missing,
        "too_similar": mined.too_similar,
        "by": request.run or "n-grams",
        **asdict(settings),
    }


def _pairs(rows: Sequence[SourcedExample]) -> list[Pair]:
    pairs = [x.example for x in rows if isinstance(x.example, Pair)]
    if any(x.similarity is not None and x.similarity != 1 for x in pairs):
        where = next(x.where for x in rows if isinstance(x.example, Pair) and x.example.similarity not in (None, 1))
        raise DataError(
            "{where}: the pair has a score or a label, so it may not belong together. Keep only pairs that do, without it.",
            where=where,
        )
    if not all(x.other for x in pairs):
        raise DataError("data: a row has no document.")
    return pairs


def _corpus(sources: Sequence[Source], objective: Objective) -> list[str]:
    if not sources:
        return []
    return [x.example.full_text for x in read_sources(sources, objective, 0.0, example_type=Text).examples]


def _scores(run: str, candidates: Candidates) -> Scores:
    if not run:
        return ngram_scores(candidates.queries, candidates.texts)
    model = open_model(run)
    if model.recipe is None:
        raise ModelError("{run} is no finished run with objective embedding. Leave --run out to mine by n-grams.", run=run)
    return vector_scores(model.encode(candidates.queries), model.encode(candidates.texts))


def _row(pair: Pair, negatives: Sequence[str]) -> dict[str, Any]:
    """As the mapping `pair` reads it; negatives that the row had already come first."""
    seen = {"seen": list(pair.history)} if pair.history else {}
    own = list(dict.fromkeys([*pair.negatives, *negatives]))
    return {"query": pair.text, "document": pair.other, "negatives": own, **seen}
