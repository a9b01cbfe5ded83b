"""`python -m bench.adapters`."""

from bench.adapters.run import main

main()
