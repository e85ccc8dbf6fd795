"""Reward against the entropy of the final policy over a training."""

from __future__ import annotations

import numpy as np
from matplotlib.axes import Axes

from layerlens.errors import SelectionError
from layerlens.metrics.entropy_fit import reward_entropy_fit
from layerlens.plots.kit.axes import open_frame, title_and_legend
from layerlens.plots.kit.caption import NO_INTERVAL, complete_axes, describe_logs
from layerlens.plots.kit.figure import figure_of, new_figure, run_layout
from layerlens.plots.kit.style import styled
from layerlens.results.training_log import TrainingLog


@styled
def reward_over_entropy(log: TrainingLog, *, ax: Axes | None = None) -> Axes:
    """Each entry of the trainer's log, reward over entropy, coloured by its optimizer step, with the fit R = b - a · e^H.

    Entries of an internal phase have no entropy of the final policy and are left out.

    Args:
        log: the training to draw.
        ax: axes to draw into; a new figure by default.

    Raises:
        SelectionError: the log has fewer than three entries with reward and entropy.
    """
    known = log.log.reindex(columns=["step", "entropy", "reward"]).dropna()
    if len(known) < 3:
        raise SelectionError(f"the log of {log.name} has {len(known)} entries with reward and entropy of the final policy; a fit needs 3")
    steps, entropy, reward = (known[name].to_numpy(np.float64) for name in ("step", "entropy", "reward"))
    a, b, share = reward_entropy_fit(entropy, reward)
    target = ax or new_figure(4.6, 3.4).subplots()
    points = target.scatter(entropy, reward, c=steps, cmap="viridis", s=16)
    figure_of(target).colorbar(points, ax=target, label="optimizer step")
    if np.isfinite(a):
        x = np.linspace(entropy.min(), entropy.max(), 100)
        target.plot(x, b - a * np.exp(x), color="0.25", linestyle=(0, (4, 2)), label=f"R = {b:.3g} − {a:.3g} · exp(H), R² = {share:.2f}")
    target.set_xlabel("mean entropy of the final policy, H [nats]")
    target.set_ylabel("mean reward, R")
    open_frame(target)
    run_layout(target)
    title_and_legend(target, log.name)
    complete_axes(target, describe_logs([log], "each point an entry of the trainer's log; fit by least squares", NO_INTERVAL), given=ax)
    return target
