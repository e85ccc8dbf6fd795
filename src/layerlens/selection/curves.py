"""What rules and comparison read of a run: mean curves over depth with their resamples, made in one place."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Bool, Float

from layerlens.errors import SelectionError
from layerlens.metrics.intervals import LEVEL, RESAMPLES, interval
from layerlens.metrics.skill import is_usable, skill
from layerlens.results import Run
from layerlens.types import UNBOUNDED, Norm

Array = np.ndarray


@dataclass(frozen=True)
class Curves:
    """Mean curves of a run: the mean over all samples in row 0, its bootstrap resamples below. None if the run does not hold one.

    All curves are resampled with the same draws, so a row is one data set that might have come. `layers` are 1...L, `depths` 0...L:
    depth 0 is the embedding, read as resid_pre of layer 1, and depth l is resid_post of layer l.

    Attributes:
        norm, n_layers: of the run; samples: how many of its samples have a row to average; problems: how many problems they answer,
            which are what is resampled; resamples: rows below the first.
        ffn_change: ΔS of the FFN, nats.
        entropy: of the residual stream, nats.
        agreement: share of tokens on which the argmax is the final policy's, at resid_post.
        skill: at resid_post, nats; final_skill: that of the final policy, nats.
        kl: KL of the residual stream's policies to the final policy, nats; disagreement: one minus their agreement.
        settling: mean settling depth of the tokens, in layers.
    """

    norm: Norm
    n_layers: int
    samples: int
    problems: int
    resamples: int
    ffn_change: Float[Array, "curves layers"] | None
    entropy: Float[Array, "curves depths"] | None
    agreement: Float[Array, "curves layers"] | None
    skill: Float[Array, "curves layers"] | None
    final_skill: Float[Array, " curves"] | None
    kl: Float[Array, "curves depths"] | None
    disagreement: Float[Array, "curves depths"] | None
    settling: Float[Array, " curves"] | None

    @property
    def usable(self) -> Bool[Array, " layers"] | None:
        """Which layers are usable, at resid_post; by the mean alone if one problem gives no interval. None if skill is not known."""
        if self.skill is None:
            return None
        return is_usable(self.skill[0] if self.problems < 2 else self.interval(self.skill)[0])

    def interval(
        self, values: Float[Array, "curves *rest"], level: float = LEVEL, *, layers: bool = False, bounds: tuple[float, float] = UNBOUNDED
    ) -> tuple[Float[Array, "*rest"], Float[Array, "*rest"]]:
        """The interval of a quantity that was computed from every curve (`metrics.intervals.interval`); NaN ends with one problem."""
        return interval(values[1:], np.asarray(values[0]), self.problems, level, layers=layers, bounds=bounds)


def read_curves(run: Run, **options: Any) -> Curves:
    """The curves of a run, whose `bootstrap` takes the options. Raises SelectionError unless all layers were analysed."""
    if run.layers != list(range(1, run.n_layers + 1)):
        raise SelectionError(f"choosing a layer needs all {run.n_layers} layers; the run of {run.model} has {len(run.layers)}")
    samples = problems = 0

    def mean(name: str, **where: str) -> Float[Array, "curves *rest"]:
        nonlocal samples, problems
        point, means = run.bootstrap(name, **options)
        # only samples with a row to average
        samples, problems = max(samples, point.attrs["samples"]), max(problems, point.attrs["problems"])
        return np.concatenate([point.sel(where).values[None], means.sel(where).values])

    def has(name: str, *sites: str) -> bool:
        return name in run.variables and set(sites) <= set(run.sites)

    def stream(name: str) -> Float[Array, "curves depths"] | None:
        if not has(name, "resid_pre", "resid_post"):
            return None
        return np.concatenate([mean(name, site="resid_pre")[:, :1], mean(name, site="resid_post")], axis=-1)

    vocabulary = run.manifest.model.vocabulary
    skilled = mean("skill", site="resid_post") if vocabulary and has("logp_next", "resid_post") else None
    final = None
    if vocabulary and has("final_logp_next"):
        final = skill(mean("final_logp_next"), vocabulary)
    elif skilled is not None and run.norm == "final":
        final = skilled[:, -1]  # the final policy itself
    agrees = stream("agrees")
    return Curves(
        ffn_change=mean("entropy_change", module="ffn") if has("entropy", "ffn_in", "ffn_out") else None,
        entropy=stream("entropy"),
        agreement=mean("agrees", site="resid_post") if has("agrees", "resid_post") else None,
        skill=skilled,
        final_skill=final,
        kl=stream("kl_to_final"),
        disagreement=None if agrees is None else 1 - agrees,
        settling=mean("settling_depth") if has("js_to_final", "resid_post") else None,
        norm=run.norm,
        n_layers=run.n_layers,
        samples=samples,
        problems=problems,
        resamples=options.get("resamples", RESAMPLES),
    )
