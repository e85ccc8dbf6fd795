"""The command and a folder with a model, prompts and a run, as the tests of the command line have them."""

from __future__ import annotations

from tests.cli.conftest import folder, layerlens

__all__ = ["folder", "layerlens"]
