"""`python -m bench.trainer`."""

from bench.trainer.run import main

main()
