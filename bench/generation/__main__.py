"""`python -m bench.generation`."""

from bench.generation.run import main

main()
