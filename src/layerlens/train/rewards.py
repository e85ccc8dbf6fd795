"""Rewards in TRL's signature, under the name that training scripts import them by; they live in `layerlens.rewards`."""

from layerlens.rewards.boxed import last_boxed
from layerlens.rewards.isolation import RewardError
from layerlens.rewards.rewards import REWARDS, Reward, arithmetic_reward, boxed_reward, load_reward, math_reward

__all__ = ["REWARDS", "Reward", "RewardError", "arithmetic_reward", "boxed_reward", "last_boxed", "load_reward", "math_reward"]
