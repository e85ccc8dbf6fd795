"""Errors that a user can act on. Each message says on one line what was expected, what came and what to do next."""

from __future__ import annotations


class LayerLensError(Exception):
    """Base of every expected error; at the command line it is one line and exit code 2."""


class ModelLayoutError(LayerLensError):
    """The architecture is not described, or states of the model break an identity that they must obey."""


class ModelLoadError(LayerLensError):
    """The model or its weights cannot be read."""


class PromptError(LayerLensError):
    """A prompt source is missing, empty, malformed, or holds a text that the model cannot read."""


class ReadoutError(LayerLensError, ValueError):
    """A readout met NaN, an infinite logit or an empty vocabulary.

    `stack` and `row` number the offending row of the states, from 0. `anchor` is "final" or "reference" if the row belongs to
    the policy that all others are compared with, else None.
    """

    def __init__(self, message: str, stack: int = 0, row: int = 0, anchor: str | None = None):
        super().__init__(message)
        self.stack, self.row, self.anchor = stack, row, anchor


class RunError(LayerLensError):
    """A run folder is missing, incomplete, damaged, or belongs to another configuration."""


class SelectionError(LayerLensError):
    """A request names a site, layer, metric or rule that the data do not hold."""


class TrainingError(LayerLensError):
    """A training configuration contradicts itself, or asks for something that the model, the data or the engine cannot give."""


def one_line(error: Exception) -> str:
    """The error's class and the beginning of its message, on one line."""
    return f"{type(error).__name__}: {message_of(error, 300)}"


def message_of(error: Exception, most: int | None = 200) -> str:
    """The error's message on one line, its first `most` characters."""
    return " ".join(str(error).split())[:most]
