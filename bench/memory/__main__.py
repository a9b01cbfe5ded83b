"""`python -m bench.memory`: see run.py."""

from bench.memory.run import main

main()
