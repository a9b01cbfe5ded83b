"""Likely wrong labels, by confident learning.

Northcutt, Jiang and Chuang 2021, "Confident Learning: Estimating Uncertainty in Dataset Labels", arXiv 1911.00068, sec. 3:

    t_j = mean of p(j | x) over the rows with label j              what a model gives to rows of that class
    a row x with label i is suspicious if, among the classes with p(j | x) >= t_j, the most probable one is not i

p comes from a plain model of n-grams that has not seen the row: logistic regression in FOLDS folds, duplicates in one fold.
It looks at words, not at sense: what it names is to be read, not to be trusted.
"""

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from weitiao.data.duplicates.folding import folded_texts
from weitiao.data.duplicates.ngrams import ngram_sets

FOLDS, FEATURES = 5, 1 << 18
LEAST_ROWS = 5  # of a class: rarer ones are left out
MAX_ROWS, MAX_CLASSES = 100_000, 200
STRENGTH = 10.0  # C of the logistic regression, on rows of length 1
ITERATIONS = 40
SHOWN = 200


def wrong_labels(texts: Sequence[str], labels: Sequence[str], groups: np.ndarray, seed: int = 1) -> dict[str, Any]:
    """Rows whose label the other rows speak against.

    Args:
        texts: of the rows.
        labels: one class for each.
        groups: (rows,) rows of one group (duplicates) are in one fold.

    Returns:
        {n, classes, left_out: rows of rarer classes, rows: those that are suspicious, noise: their share of n, accuracy:
        out-of-fold, worst: [{row, label, suggested, margin}], pairs: [[label, suggested, rows]]}; `reason` in their place
        where there is nothing to compare.
    """
    names, ids = np.unique(np.asarray(labels, object).astype(str), return_inverse=True)
    counts = np.bincount(ids, minlength=len(names))
    usable = np.flatnonzero(counts[ids] >= LEAST_ROWS)
    frequent = np.flatnonzero(counts >= LEAST_ROWS)
    if not 2 <= len(frequent) <= MAX_CLASSES:
        return {"n": 0, "reason": "classes", "classes": len(frequent)}
    remap = np.full(len(names), -1)
    remap[frequent] = np.arange(len(frequent))
    y = remap[ids[usable]]
    probabilities = out_of_fold(_features([str(texts[i]) for i in usable.tolist()]), y, groups[usable], len(frequent), seed)
    suggested, margins = suspicious(probabilities, y)
    rows = np.flatnonzero(suggested >= 0)
    order = rows[np.argsort(-margins[rows], kind="stable")]
    pairs, pair_counts = np.unique(np.stack([y[rows], suggested[rows]]), axis=1, return_counts=True)
    named = names[frequent]
    worst = [
        {
            "row": int(usable[i]),
            "label": str(named[y[i]]),
            "suggested": str(named[suggested[i]]),
            "margin": float(margins[i]),
        }
        for i in order[:SHOWN]
    ]
    return {
        "n": len(usable),
        "classes": len(frequent),
        "left_out": len(texts) - len(usable),
        "rows": len(rows),
        "accuracy": float((probabilities.argmax(1) == y).mean()),
        "worst": worst,
        "pairs": [
            [str(named[a]), str(named[b]), int(n)]
            for (a, b), n in sorted(zip(pairs.T, pair_counts), key=lambda x: -int(x[1]))
        ][:12],
    }


def suspicious(probabilities: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The off-diagonal of the confident joint (eq. 1).

    Args:
        probabilities: (n, classes), out of fold.
        labels: (n,) int.

    Returns:
        (n,) the class that a row more likely has, -1 where nothing speaks against its label; (n,) by how much.
    """
    n, classes = probabilities.shape
    totals = np.bincount(labels, minlength=classes)
    thresholds = np.bincount(labels, probabilities[np.arange(n), labels], classes) / np.maximum(totals, 1)
    confident = np.where(probabilities >= thresholds, probabilities, -1.0)
    best = confident.argmax(1)
    is_other = (confident.max(1) >= 0) & (best != labels)
    margins = probabilities[np.arange(n), best] - probabilities[np.arange(n), labels]
    is_other &= margins > 0
    return np.where(is_other, best, -1), np.where(is_other, margins, 0.0)


def out_of_fold(features: Any, labels: np.ndarray, groups: np.ndarray, classes: int, seed: int) -> np.ndarray:
    """(n, classes): each row's probabilities by a model that was trained on the other folds."""
    from sklearn.linear_model import LogisticRegression

    random = np.random.default_rng(seed)
    _, group_ids = np.unique(groups, return_inverse=True)
    folds = random.permutation(np.arange(int(group_ids.max()) + 1) % FOLDS)[group_ids]
    probabilities = np.full((len(labels), classes), 1.0 / classes)
    for number in range(FOLDS):
        train, test = np.flatnonzero(folds != number), np.flatnonzero(folds == number)
        present = np.unique(labels[train])
        if not len(test) or len(present) < 2:
            continue
        model = LogisticRegression(C=STRENGTH, max_iter=ITERATIONS, tol=1e-3)
        model.fit(features[train], labels[train])
        probabilities[np.ix_(test, present)] = model.predict_proba(features[test])
        missing = np.setdiff1d(np.arange(classes), present)
        probabilities[np.ix_(test, missing)] = 0.0
    return probabilities


def _features(texts: Iterable[str]) -> Any:
    """Sparse (n, FEATURES): which n-grams a text has (2 Chinese characters, 5 of other scripts), scaled to length 1."""
    from scipy.sparse import csr_matrix

    texts, columns, sizes = list(texts), [], []
    for first in range(0, len(texts), 4096):
        grams, starts, _ = ngram_sets(folded_texts(texts[first : first + 4096]))
        columns.append(grams % np.uint32(FEATURES))
        sizes.append(np.diff(starts))
    size = np.concatenate(sizes)
    values = np.repeat(1 / np.sqrt(np.maximum(size, 1)), size).astype(np.float64)
    pointers = np.concatenate([[0], np.cumsum(size)])
    matrix = csr_matrix((values, np.concatenate(columns).astype(np.int32), pointers), (len(texts), FEATURES))
    matrix.sum_duplicates()
    return matrix
