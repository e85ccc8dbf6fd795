"""The places in a model whose states a plan needs, and what each is needed for."""

from __future__ import annotations

from dataclasses import dataclass

from layerlens.analysis.plan import Plan
from layerlens.decode.request import NEEDS
from layerlens.models import LayerSite, LensModel
from layerlens.types import SITES, STREAM_SITES


@dataclass(frozen=True)
class WantedStates:
    """The places whose states a plan needs.

    Attributes:
        decoded: places that go through the vocabulary, in the order the data flows.
        lengths: places whose states are measured as they stand.
        twins: places with the states of another one, which is read: H^(l-1) leaves one block and enters the next.
        streams: places that stream cosines compare.
        anchors: the places of the policies that all others are compared with, by what `readout` calls them.
        residual: the places that similarity compares, a layer each.
    """

    decoded: tuple[LayerSite, ...]
    lengths: frozenset[LayerSite]
    twins: dict[LayerSite, LayerSite]
    streams: frozenset[LayerSite]
    anchors: dict[str, LayerSite]
    residual: tuple[LayerSite, ...]

    @classmethod
    def of(cls, model: LensModel, plan: Plan) -> WantedStates:
        asked: set[LayerSite] = {(layer, site) for layer in plan.layers for site in plan.sites} if plan.reads_states else set()
        twins: dict[LayerSite, LayerSite] = {
            (layer, "resid_pre"): (layer - 1, "resid_post")
            for layer, site in asked
            if site == "resid_pre" and (layer - 1, "resid_post") in asked
        }
        read = in_flow_order(asked - twins.keys())
        anchors: dict[str, LayerSite] = {}
        if "final" in {NEEDS.get(field) for field in plan.readout_fields}:
            anchors["final"] = (model.n_layers, "resid_post")
        if plan.kl_from_layer is not None:
            anchors["reference"] = (plan.kl_from_layer, "resid_post")
        return cls(
            decoded=tuple(read) if plan.unembeds else (),
            lengths=frozenset(read) if "state_norm" in plan.metrics else frozenset(),
            twins=twins,
            streams=frozenset((layer, site) for layer in plan.layers for module in plan.modules for site in STREAM_SITES[module]),
            anchors=anchors,
            residual=tuple((layer, "resid_post") for layer in plan.layers) if "similarity" in plan.metrics else (),
        )


def in_flow_order(places: set[LayerSite]) -> list[LayerSite]:
    """Places in the order in which their states pass, so that a module's stream is there before its output is."""
    return sorted(places, key=lambda place: (place[0], SITES.index(place[1])))
