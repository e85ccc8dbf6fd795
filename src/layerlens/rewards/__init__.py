"""Rewards in TRL's signature, usable without TRL, and the checks of an answer that they are made of."""

from layerlens.rewards.boxed import last_boxed, verify
from layerlens.rewards.isolation import RewardError
from layerlens.rewards.rewards import REWARDS, Reward, arithmetic_reward, boxed_reward, completion_text, load_reward, math_reward

__all__ = [
    "REWARDS", "Reward", "RewardError", "arithmetic_reward", "boxed_reward", "completion_text", "last_boxed", "load_reward",
    "math_reward", "verify",
]  # fmt: skip
