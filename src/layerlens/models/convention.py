"""The convention by which a state is read: what is done to a hidden vector before it meets the unembedding."""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

from layerlens.decode.spread import LogitSpread
from layerlens.errors import SelectionError
from layerlens.models.lenses.fitted_lens import FittedLens
from layerlens.models.parts import DecoderParts
from layerlens.types import LensName, Norm, Site


@dataclass(frozen=True)
class Convention:
    """How a state is read (docs/definitions.md, "Internal policy" and "Lenses"): make one with `LensModel.convention`.

    Attributes:
        norm: "none" leaves a state as it is, "final" applies the model's final norm, "matched" scales the state so that its
            logits have the spread `spread`.
        spread: of norm "matched", in logits.
        logit_spread: how the spread of a state's logits is measured, for norm "matched".
        lens: carries a state to the final layer before it is normalised; None for the logit lens, which leaves it where it is.
    """

    parts: DecoderParts
    norm: Norm
    spread: float | None = None
    logit_spread: LogitSpread | None = None
    lens: FittedLens | None = None

    @property
    def lens_name(self) -> LensName:
        return "logit" if self.lens is None else self.lens.name

    def vectors(self, layer: int, site: Site, states: Float[Tensor, "*rows d"]) -> Float[Tensor, "*rows d"]:
        """The vectors to unembed, from the states at a layer (1...L) and site."""
        if self.lens is not None:
            states = self.lens.carry(states, layer, site, len(self.parts.blocks), "resid_mid" in self.parts.sites)
        if self.norm == "final":
            return self.parts.apply_final_norm(states)
        if self.norm == "matched":
            assert self.logit_spread is not None
            assert self.spread is not None
            return self.logit_spread.matched(states, self.spread)
        return states

    def require_readable(self, layers: Sequence[int], sites: Sequence[Site]) -> None:
        """Raises SelectionError if the lens cannot carry states of one of the sites at one of the layers."""
        if self.lens is not None:
            for site in sites:
                for layer in layers:
                    self.lens.place(layer, site, len(self.parts.blocks), "resid_mid" in self.parts.sites)

    def readable_sites(self, layers: Sequence[int]) -> tuple[Site, ...]:
        """The model's sites that can be read at every one of the layers."""
        readable = []
        for site in self.parts.sites:
            with suppress(SelectionError):
                self.require_readable(layers, (site,))
                readable.append(site)
        return tuple(readable)


def require_spread(norm: Norm, spread: float | None) -> None:
    """Raises SelectionError if a spread is given without norm "matched", or is not above 0."""
    if spread is None:
        return
    if norm != "matched":
        raise SelectionError(f"spread= is what norm='matched' scales logits to; got it with norm={norm!r}")
    if not 0 < spread < math.inf:
        raise SelectionError(f"spread must be above 0 (logits), got {spread}")
