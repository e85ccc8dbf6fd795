"""The errors a user can mend. Each message says what was expected, what came and what to do next, on one line."""

from __future__ import annotations


class LayerLensError(Exception):
    """Base of every expected error; at the command line it is one line and exit code 2."""


class ModelLayoutError(LayerLensError):
    """The architecture is not described, or what was read from the model breaks an identity it must obey."""


class ModelLoadError(LayerLensError):
    """The model or its weights can not be read."""


class PromptError(LayerLensError):
    """A prompt source is missing, empty, malformed, or holds a text that the model can not read."""


class ReadoutError(LayerLensError, ValueError):
    """A readout met NaN, an infinite logit or an empty vocabulary.

    `stack` and `row` name the offending row of the states that were read, counted from 0; where it is a row of the policy that
    these are compared with, `anchor` is "final" or "reference".
    """

    def __init__(self, message: str, stack: int = 0, row: int = 0, anchor: str | None = None):
        super().__init__(message)
        self.stack, self.row, self.anchor = stack, row, anchor


class RunError(LayerLensError):
    """A run folder is missing, incomplete, damaged, or belongs to another configuration."""


class SelectionError(LayerLensError):
    """A request names a site, layer, metric or rule that the data do not hold."""


class TrainingError(LayerLensError):
    """A training configuration contradicts itself, or asks for what the model, the data or the engine can not give."""
