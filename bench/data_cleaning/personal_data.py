"""Personal data: recall by kind on planted values, precision on 100,000 look-alikes, what is found in real texts, speed."""

import time
from collections import Counter
from collections.abc import Sequence
from statistics import median
from typing import Any

from bench.data_cleaning.corpus import chinese, english
from bench.data_cleaning.planted import PLANTED, look_alikes, planted
from weitiao.core.intervals import wilson
from weitiao.data.personal_data.search import find_personal

PLANTED_ROWS, LOOK_ALIKE_ROWS, TURNS = 100_000, 100_000, 5


def measure() -> dict[str, Any]:
    """All figures."""
    found, total = 0, 0
    results: dict[str, Any] = {"recall": {}}
    for kind in PLANTED:
        rows = list(planted(kind, PLANTED_ROWS // len(PLANTED)))
        exact = sum(
            any((x.kind, x.start, x.end, x.certain) == (kind, a, b, True) for x in find_personal(text))
            for text, a, b in rows
        )
        results["recall"][kind] = proportion(exact, len(rows))
        found, total = found + exact, total + len(rows)
        print(kind, results["recall"][kind], flush=True)
    results["recall_of_all"] = proportion(found, total)
    results |= on_look_alikes(found)
    reviews, glosses = chinese()[:35_000], english()
    results["real"] = {"zh reviews": real(reviews), "en glosses": real(glosses)}
    every = [text for kind in PLANTED for text, _, _ in planted(kind, 1000)]
    chats = ["\n".join(reviews[i : i + 4]) for i in range(0, len(reviews), 4)]
    sets = {"zh reviews": reviews, "zh, four reviews a row": chats, "en glosses": glosses, "one value in each row": every}
    results["mb_per_cpu_s"] = {name: speed(texts) for name, texts in sets.items()}
    print(results["mb_per_cpu_s"], flush=True)
    return results


def on_look_alikes(true: int) -> dict[str, Any]:
    """Look-alikes with a certain hit, by family, and the precision together with as many planted values."""
    rows, hits = Counter(), Counter()
    examples: dict[str, str] = {}
    for family, text in look_alikes(LOOK_ALIKE_ROWS):
        rows[family] += 1
        spans = [x for x in find_personal(text) if x.certain]
        hits[family] += bool(spans)
        if spans:
            examples.setdefault(family, f"{spans[0].kind}: {text}")
    false = hits.total()
    result = {
        "false_hits": proportion(false, rows.total()),
        "precision": proportion(true, true + false),
        "false_hits_by_family": {x: [hits[x], rows[x], examples[x]] for x in rows if hits[x]},
    }
    print(result, flush=True)
    return result


def proportion(part: int, whole: int) -> list[float]:
    """[share, lower, upper, n]"""
    share = part / whole
    return [round(share, 5), *(round(x, 5) for x in wilson(share, whole)), whole]


def real(texts: Sequence[str]) -> dict[str, Any]:
    """How often each kind is found in texts as they are, and the different certain values."""
    kinds, values = Counter(), set()
    for text in texts:
        for span in find_personal(text):
            kinds[f"{span.kind}{'' if span.certain else ', hint'}"] += 1
            values |= {(span.kind, text[span.start : span.end])} if span.certain else set()
    return {"rows": len(texts), "spans": dict(kinds), "different_certain_values": len(values)}


def speed(texts: Sequence[str]) -> float:
    """Megabytes (UTF-8) a processor second, all kinds: the median of some turns."""
    megabytes, seconds = sum(len(x.encode("utf-8")) for x in texts) / 1e6, []
    for _ in range(TURNS):
        started = time.process_time()
        for text in texts:
            find_personal(text)
        seconds.append(time.process_time() - started)
    return round(megabytes / median(seconds), 1)
