"""`python -m bench.growth`: OpenMP reads its environment when torch loads it, so that comes first."""

import sys

from bench.shared.machine import OPENMP_CHOICES, set_openmp

set_openmp(next((choice for choice in OPENMP_CHOICES if f"--openmp={choice}" in sys.argv), "weitiao"))

from bench.growth.run import main  # noqa: E402

main()
