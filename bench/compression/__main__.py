"""Every technique of `weitiao compress` on one Run: size, speed, agreement, KL and accuracy, as one table.

    python -m bench.compression RUN FOLDER [--precision fp32] [--only int8,int4]

The compressed models are written below FOLDER and kept; a second call measures them again. All forms take turns in one
process for speed, so their ratios hold; nothing else should run meanwhile.
"""

import argparse
import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from rich.console import Console

from weitiao.core.reporter import Reporter
from weitiao.deploy.compression.report import FIGURES, Measurement
from weitiao.deploy.compression.rewrite import read_subject, sizes_of
from weitiao.model.profiling.inference_speed import InferenceSpeed, measure_speed
from weitiao.pipeline.compression import (
    ENOUGH,
    CompressionOptions,
    compressor_of,
    measured,
    open_form,
    read_merged,
    write_compressed,
)
from weitiao.pipeline.compression_rows import answer_rows
from weitiao.pipeline.inference import Model, open_model
from weitiao.pipeline.merging import merge_run

FORMS: Mapping[str, tuple[str, dict[str, Any], int]] = {
    "int8": ("int8", {}, 0),
    "int4 g32": ("int4", {}, 0),
    "int4 g32 zero points": ("int4", {"symmetric": False}, 0),
    "nf4": ("nf4", {}, 0),
    "magnitude 50 %": ("magnitude", {}, 0),
    "magnitude 50 % healed": ("magnitude", {}, 50),
    "wanda 50 %": ("wanda", {}, 0),
    "wanda 50 % healed": ("wanda", {}, 50),
    "wanda 2:4": ("wanda", {"pattern": "2:4"}, 0),
    "drop_layers 6 of 30": ("drop_layers", {}, 0),
    "drop_layers 6 of 30 healed": ("drop_layers", {}, 50),
}
REPORTER = Reporter(Console(quiet=True))


def write(run: str, tuned: Model, merged: Path, folder: Path, name: str) -> None:
    """One form, where it is not there yet."""
    method, settings, heal = FORMS[name]
    if folder.exists():
        return
    options, compressor = CompressionOptions(heal=heal), compressor_of(method, settings)
    subject = read_merged(merged, tuned, compressor, options, REPORTER)
    write_compressed(run, subject, folder, compressor, options, REPORTER)  # pyright: ignore[reportArgumentType]


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("run")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--precision", default="bf16")
    parser.add_argument("--only", default="")
    parser.add_argument("--skip", default="", help="speed or quality")
    arguments = parser.parse_args()
    folder, names = arguments.folder, [x for x in FORMS if not arguments.only or x in arguments.only.split(",")]
    merged = folder / "merged"
    if not merged.exists():
        merge_run(arguments.run, str(merged))
    tuned = open_model(arguments.run, "fp32")
    for name in names:
        write(arguments.run, tuned, merged, folder / name, name)
        print("written", name, flush=True)
    options = CompressionOptions(precision=arguments.precision)
    forms = {name: open_form(folder / name, tuned, arguments.precision) for name in ("merged", *names)}
    speeds = [InferenceSpeed(0, None, None)] * len(forms)
    if arguments.skip != "speed":
        speeds = measure_speed([x.model for x in forms.values()], generates=True)
    reference = open_form(merged, tuned, "fp32")
    rows = answer_rows(reference, None, ENOUGH, REPORTER) if arguments.skip != "quality" else []
    linears = read_subject(merged, tuned.assets.architecture).linears
    for (name, form), speed in zip(forms.items(), speeds):
        shown = form if rows else replace(form, recipe=None)
        figures = measured(shown, sizes_of(folder / name, linears), speed, reference, rows, options, REPORTER)
        print(json.dumps({"form": name, "precision": arguments.precision, **as_text(figures)}), flush=True)


def as_text(figures: Measurement) -> dict[str, str]:
    """The figures as the command's table has them."""
    shown = {str(label): form(figures) for label, form in FIGURES}
    return shown | {name: str(score) for name, score in figures.scores.items()}


if __name__ == "__main__":
    main()
