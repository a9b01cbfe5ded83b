"""`python -m bench.data_cleaning duplicates | personal_data`: writes bench/results/data_<name>.json."""

import argparse
import platform

from bench.data_cleaning import duplicates, personal_data
from bench.shared.machine import processor
from bench.shared.results_file import RESULTS, commit, save

PARSER = argparse.ArgumentParser(prog="python -m bench.data_cleaning", description=__doc__)
PARSER.add_argument("which", choices=["duplicates", "personal_data"])
PARSER.add_argument("--rows", type=int, default=1_000_000, help="rows that are timed (duplicates)")
ARGUMENTS = PARSER.parse_args()

if ARGUMENTS.which == "duplicates":
    figures = duplicates.measure(ARGUMENTS.rows)
    name = "duplicates" + (f"_{ARGUMENTS.rows}" if ARGUMENTS.rows != 1_000_000 else "")
else:
    figures, name = personal_data.measure(), "personal_data"
setup = {"machine": processor(), "python": platform.python_version(), "commit": commit()}
save(RESULTS / f"data_{name}.json", {"setup": setup, **figures})
