"""`python -m bench.sft`."""

from bench.sft.run import main

main()
