"""A lens that was fitted to a model: one affine map per place of the residual stream, to where the last block leaves the stream."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from layerlens.errors import SelectionError
from layerlens.types import FittedLensName, Site

Stream = Literal["resid_mid", "resid_post"]
Place = tuple[int, Stream]
"""A place of the residual stream: a layer, counted from 1, and a site. (0, "resid_post") is the embedding's output."""


@dataclass(frozen=True)
class FittedLens:
    """Carries a state h of the residual stream to T h + b, an estimate of the final layer's state before the final norm.

    Make one with `read_lens`, or fit one with `layerlens fit-lens`. T belongs to a place of the stream (docs/definitions.md, "Lenses"):
    `resid_post` of layer l is read with T_l, and so is `resid_pre` of layer l + 1, which is the same state. What a module adds to the
    stream is read with the linear part alone of the place that it is added at. At layer L the lens is the identity.

    Attributes:
        name: which lens it is.
        matrices: T by place, [d, d].
        biases: b by place, [d]; a place without one has b = 0.
        n_layers: L of the model that the lens was fitted to; None if the file does not say.
        model, revision, weights: name, hub commit and weight fingerprint of that model; None if the file does not say.
        n_prompts: texts that it was fitted on, 0 if the file does not say.
        file: file or folder that it was read from; None for one in memory.
    """

    name: FittedLensName
    matrices: Mapping[Place, Float[Tensor, "d d"]]
    biases: Mapping[Place, Float[Tensor, " d"]] = field(default_factory=dict)
    n_layers: int | None = None
    model: str | None = None
    revision: str | None = None
    weights: str | None = None
    n_prompts: int = 0
    file: str | None = None
    _moved: dict[tuple[str, Place, torch.device, torch.dtype], Tensor] = field(default_factory=dict, init=False, repr=False, compare=False)

    @property
    def d_model(self) -> int:
        return next(iter(self.matrices.values())).shape[0]

    @cached_property
    def fingerprint(self) -> str:
        """A digest of the matrices and biases, 16 hexadecimal digits; taken at the first access and kept."""
        digest = hashlib.sha256(self.name.encode())
        for kind in (self.matrices, self.biases):
            for place, values in sorted(kind.items()):
                digest.update(f"{place} {tuple(values.shape)}".encode())
                digest.update(values.float().contiguous().numpy(force=True).tobytes())
        return digest.hexdigest()[:16]

    def place(self, layer: int, site: Site, n_layers: int, sequential: bool = True) -> tuple[Place, bool] | None:
        """Where the map for a layer (1...L) and site is kept, and whether its bias belongs to it; None for the identity.

        Args:
            n_layers: L.
            sequential: whether the FFN reads what attention added, so that the stream between them is a site. In parallel blocks
                attention's output is added at the end of the block, and read as the FFN's is.

        Raises SelectionError if no lens reads the site, or this lens holds no map for it.
        """
        places: dict[str, tuple[Place, bool]] = {
            "resid_pre": ((layer - 1, "resid_post"), True),
            "attn_out": ((layer, "resid_mid" if sequential else "resid_post"), False),
            "resid_mid": ((layer, "resid_mid"), True),
            "ffn_out": ((layer, "resid_post"), False),
            "resid_post": ((layer, "resid_post"), True),
        }
        if site not in places:
            raise SelectionError(f"a lens carries states of the residual stream; {site} is what a module reads, and no lens carries it")
        found = places[site]
        if found[0] == (n_layers, "resid_post"):
            return None
        if found[0] not in self.matrices:
            where = "the embedding" if found[0][0] == 0 else f"{found[0][1]} of layer {found[0][0]}"
            raise SelectionError(
                f"lens {self.name} holds no map fitted at {where}, which {site} of layer {layer} needs: "
                "leave that site or layer out, or fit a lens with `layerlens fit-lens`"
            )
        return found

    def carry(
        self, states: Float[Tensor, "*rows d"], layer: int, site: Site, n_layers: int, sequential: bool = True
    ) -> Float[Tensor, "*rows d"]:
        """T h + b of each state, float32 or better, under autocast too; T h of what a module adds. Arguments and errors as in `place`."""
        found = self.place(layer, site, n_layers, sequential)
        if found is None:
            return states
        place, with_bias = found
        dtype = torch.promote_types(states.dtype, torch.float32)
        bias = self._on("bias", place, states.device, dtype) if with_bias and place in self.biases else None
        with torch.autocast(states.device.type, enabled=False):
            return torch.nn.functional.linear(states.to(dtype), self._on("matrix", place, states.device, dtype), bias)

    def require_shape(self, d_model: int, n_layers: int) -> None:
        """Raises SelectionError unless the lens was fitted to a model of this width and depth."""
        wrong = next((place for place, matrix in self.matrices.items() if tuple(matrix.shape) != (d_model, d_model)), None)
        if wrong is not None:
            shape = " × ".join(map(str, self.matrices[wrong].shape))
            raise SelectionError(f"the matrices of lens {self.name} are {shape}, and the model's states have {d_model} dimensions")
        deepest = max(layer for layer, _ in self.matrices)
        if deepest > n_layers or self.n_layers not in (None, n_layers):
            fitted = self.n_layers or deepest
            raise SelectionError(f"lens {self.name} was fitted to a model of {fitted} layers, and this one has {n_layers}")

    def require_model(self, name: str, revision: str | None, weights: Callable[[], str]) -> None:
        """Raises SelectionError if the file names another model than this one.

        Args:
            name: the model's name; of two names the last parts are compared, without regard to case.
            revision: hub commit of the model, None if it is not known.
            weights: gives the fingerprint of the model's weights. If the file holds one, it decides, whatever the names are.
        """
        if self.weights is not None:
            if (found := weights()) != self.weights:
                raise SelectionError(
                    f"lens {self.name} ({self.file}) was fitted to {self.model} with weights {self.weights}, and {name} has other weights, "
                    f"or another dtype ({found}): fit one to this model with `layerlens fit-lens`"
                )
            return
        if self.model is not None and _last_part(self.model) != _last_part(name):
            raise SelectionError(
                f"lens {self.name} ({self.file}) was fitted to {self.model}, not to {name}; if that is the same model, load it from a "
                f"folder named {_last_part(self.model)}, or pass the lens that read_lens gives, of which only the shape is checked"
            )
        if None not in (self.revision, revision) and self.revision != revision:
            raise SelectionError(
                f"lens {self.name} ({self.file}) was fitted to revision {self.revision} of {self.model}, and this is revision {revision}"
            )

    def _on(self, what: str, place: Place, device: torch.device, dtype: torch.dtype) -> Tensor:
        """A map's matrix or bias on a device, copied there once."""
        key = (what, place, device, dtype)
        if key not in self._moved:
            self._moved[key] = (self.matrices if what == "matrix" else self.biases)[place].detach().to(device, dtype)
        return self._moved[key]


def _last_part(name: str) -> str:
    return name.rstrip("/").split("/")[-1].lower()
