"""The command line: one file per verb."""

from layerlens.cli.app import main

__all__ = ["main"]
