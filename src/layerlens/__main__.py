"""`python -m layerlens` is the command line."""

from layerlens.cli import main

main()
