"""`python -m bench.data_pipeline`."""

from bench.data_pipeline.run import main

main()
