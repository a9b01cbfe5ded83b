"""`python -m bench.forgetting`: see run.py."""

from bench.forgetting.run import main

main()
