"""Near-duplicates: recall and precision against every pair, processor time and memory, the worst case.

    python -m bench.data_cleaning duplicates                      100,000 rows exactly, 1,000,000 rows, templates
    python -m bench.data_cleaning duplicates --rows 10000000      in shards on disk

Truth: all pairs with a Jaccard similarity of at least 0.8 between sets of n-grams as strings, by prefix filtering, from a
second implementation of folding and n-grams in plain Python.
"""

import random
import re
import resource
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

from bench.data_cleaning.corpus import chinese, english, rows
from weitiao.core.example import plain
from weitiao.core.intervals import wilson
from weitiao.data.duplicates import folding
from weitiao.data.duplicates.clusters import SIMILARITY, Clusters, cluster, find_duplicates
from weitiao.data.duplicates.signatures import Signatures, sign
from weitiao.data.duplicates.similar_pairs import DistinctRows

EXACT_ROWS, SHARD = 100_000, 1_000_000
NO_SPACES = re.compile("[\u2e80-\u9fff\uac00-\ud7ff\uf900-\ufaff\U0001b000-\U0001b16f\U00020000-\U0003347f]")
TEMPLATES = {
    "zh": "您好，您的订单{}已于{}月{}日发货，快递单号{}，请注意查收，如有问题请联系客服{}。",
    "zh, long": "尊敬的客户，您好！感谢您一直以来对我们的支持与信任，您的订单编号{}已于{}月{}日"
    "由我们的仓库发出，快递单号为{}，"
    "预计三到五天送达，请您保持电话畅通并注意查收，如有任何问题请随时联系我们的在线客服{}。",
    "en": "Dear customer, your order {} was shipped on {}/{} with number {}; please call us at {}.",
}


def measure(count: int) -> dict[str, Any]:
    """All figures; `count` rows are only timed."""
    texts = chinese()
    results: dict[str, Any] = {"exact": {}, "timed": timed(rows(texts, count), count)}
    print(results["timed"], flush=True)
    if count <= SHARD:
        for language, some in (("zh", texts), ("en", english())):
            results["exact"][language] = compared_with_truth(list(rows(some, EXACT_ROWS)))
            print(language, results["exact"][language], flush=True)
        results["templates"] = {name: template(text) for name, text in TEMPLATES.items()}
        print(results["templates"], flush=True)
    return results


def timed(texts: Iterable[str], count: int) -> dict[str, Any]:
    """Processor seconds, with and without the reading of rows, and the peak of memory. Above SHARD rows: shards on disk."""
    source, reading = iter(texts), 0.0
    started, signing = time.process_time(), 0.0
    with tempfile.TemporaryDirectory() as folder:
        shards = []
        for number in range(0, count, SHARD):
            before = time.process_time()
            part = list(islice(source, SHARD))
            reading += time.process_time() - before
            before = time.process_time()
            shard = sign(part)
            del part
            if count > SHARD:
                shard.save(Path(folder) / str(number))
                shard = Signatures.load(Path(folder) / str(number))
            shards.append(shard)
            signing += time.process_time() - before
        before = time.process_time()
        clusters = cluster(shards)
        clustering = time.process_time() - before
    return {
        "rows": count,
        "signing_cpu_s": round(signing, 1),
        "clustering_cpu_s": round(clustering, 1),
        "total_cpu_s": round(time.process_time() - started - reading, 1),
        "peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024,
        **counts(clusters),
    }


def counts(clusters: Clusters) -> dict[str, int]:
    """How many rows are duplicates, and of which kind."""
    duplicates = clusters.duplicates
    return {
        "duplicates": len(duplicates),
        "equal_to_first": int(clusters.equals_first[duplicates].sum()),
        "capped": clusters.capped,
    }


def template(text: str, count: int = 200_000) -> dict[str, Any]:
    """The worst case: one template with other numbers."""
    chance = random.Random(1)
    numbers = (10**10, 12, 28, 10**12, 10**8)
    texts = [text.format(*(chance.randrange(x) for x in numbers)) for _ in range(count)]
    started = time.process_time()
    clusters = find_duplicates(texts)
    return {"rows": count, "cpu_s": round(time.process_time() - started, 1), **counts(clusters)}


def compared_with_truth(texts: Sequence[str]) -> dict[str, Any]:
    """Recall and precision of similar pairs among rows that are not equal."""
    started = time.process_time()
    truth = all_pairs(texts)
    truth_seconds = time.process_time() - started
    distinct, pairs = DistinctRows([sign(texts)]), set()
    for left, right in distinct.similar_pairs():
        pairs |= {(min(a, b), max(a, b)) for a, b in zip(distinct.first[left].tolist(), distinct.first[right].tolist())}
    common = len(truth & pairs)
    return {
        "rows": len(texts),
        "pairs": len(truth),
        "recall": [common / len(truth), *wilson(common / len(truth), len(truth))],
        "precision": [common / len(pairs), *wilson(common / len(pairs), len(pairs))],
        "truth_cpu_s": round(truth_seconds, 1),
    }


def all_pairs(texts: Sequence[str]) -> set[tuple[int, int]]:
    """Every similar pair of rows that are not equal, by the first row of each (Chaudhuri et al. 2006, sec. 4)."""
    pairs_of_characters = [
        x
        for x in Path(folding.__file__).with_name("traditional.txt").read_text(encoding="utf-8").split("\n")
        if x[:1] != "#"
    ]
    simplified = {ord(a): b for line in pairs_of_characters for a, b in zip(line[::2], line[1::2])}
    first: dict[str, int] = {}
    for i, text in enumerate(texts):
        first.setdefault(plain(text).translate(simplified), i)
    sets = {i: ngrams(text) for text, i in first.items()}
    frequency = Counter(x for grams in sets.values() for x in grams)
    rows_with: dict[str, list[int]] = defaultdict(list)
    pairs = set()
    for i, grams in sets.items():
        rarest = sorted(grams, key=lambda x: (frequency[x], x))[: len(grams) - int(-(-SIMILARITY * len(grams) // 1)) + 1]
        for j in {j for x in rarest for j in rows_with[x]}:
            common = len(grams & sets[j])
            if common >= SIMILARITY * (len(grams) + len(sets[j]) - common):
                pairs.add((min(i, j), max(i, j)))
        for x in rarest:
            rows_with[x].append(i)
    return pairs


def ngrams(text: str) -> set[str]:
    """Two characters where one of five has no spaces around it, five elsewhere; a shorter text whole."""
    grams = set()
    for i in range(len(text)):
        five = text[i : i + 5]
        if NO_SPACES.search(five):
            grams |= {five[:2]} if len(five) > 1 else set()
        elif len(five) == 5:
            grams.add(five)
    return grams or {text}
