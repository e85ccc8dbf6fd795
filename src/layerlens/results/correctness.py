"""Which responses of a run are right."""

from __future__ import annotations

import numpy as np
import xarray as xr

from layerlens.errors import SelectionError
from layerlens.rewards.rewards import load_reward

RIGHT = 0.5
"""A response is right if its score is above this."""

RECORDED = "recorded"
"""In place of a reward: what the source of the texts said of each response."""


def require_reward(reward: str) -> None:
    """Raises RewardError unless `correct_responses` knows the reward."""
    if reward != RECORDED:
        load_reward(reward)


def correct_responses(data: xr.Dataset, reward: str) -> np.ndarray:
    """Whether each sample's response is right, along `sample`: the reward scores it against its ground truth above 0.5.

    Args:
        data: of a run.
        reward: "math", "boxed", "arithmetic" or "module:function", as in `layerlens eval --reward`; or "recorded", what the source of
            the texts said (`Sample.correct`).

    Raises:
        SelectionError: a sample has no ground truth, or nothing recorded, or the run was written before the texts of responses were kept.
        RewardError: there is no such reward.
    """
    if reward == RECORDED:
        recorded = data["correct"].values if "correct" in data.coords else np.full(data.sizes["sample"], -1)
        if (recorded < 0).any():
            unsaid = data["sample_id"].values[recorded < 0][0]
            raise SelectionError(f"the source of sample {unsaid} did not say whether its response is right; name a reward")
        return np.asarray(recorded, bool)
    if "response_text" not in data.coords:
        raise SelectionError(f"the run of {data.attrs['model']} was made by an earlier layerlens, which kept no responses: analyse again")
    truths = [str(truth) for truth in data["ground_truth"].values]
    lacking = [str(name) for name, truth in zip(data["sample_id"].values, truths, strict=True) if not truth]
    if lacking:
        raise SelectionError(f"sample {lacking[0]} has no ground truth (reward_model.ground_truth, ground_truth or answer)")
    scores = load_reward(reward)([str(text) for text in data["response_text"].values], ground_truth=truths)
    return np.asarray(scores, np.float64) > RIGHT
