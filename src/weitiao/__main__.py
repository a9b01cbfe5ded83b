"""`python -m weitiao` is `weitiao`."""

from weitiao.cli.app import main

main()
