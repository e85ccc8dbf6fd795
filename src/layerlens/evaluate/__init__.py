"""Sampled answers to problems, checked: Avg@K and unbiased Pass@k with intervals over problems.

`evaluate` samples answers and stores every one, `open_evaluation` reads a stored evaluation, `open_engine` loads the model that answers,
`find_task` finds a set of problems by name.
"""

from __future__ import annotations

from layerlens.evaluate.contribution import layer_contribution
from layerlens.evaluate.deep_thinking import DeepThinkingVote, vote_by_deep_thinking
from layerlens.evaluate.engines import Engine, LensEngine, open_engine
from layerlens.evaluate.evaluation import evaluate, open_evaluation
from layerlens.evaluate.result import Answer, Evaluation, Problem
from layerlens.evaluate.scores import Estimate, pass_table
from layerlens.evaluate.tasks import TASKS, Task, find_task
from layerlens.evaluate.texts import sample_with_vllm
from layerlens.evaluate.vllm import VLLMEngine
from layerlens.metrics.pass_at_k import avg_at_k, pass_at_k

__all__ = [
    "TASKS", "Answer", "DeepThinkingVote", "Engine", "Estimate", "Evaluation", "LensEngine", "Problem", "Task", "VLLMEngine",
    "avg_at_k", "evaluate", "find_task", "layer_contribution", "open_engine", "open_evaluation", "pass_at_k", "pass_table",
    "sample_with_vllm", "vote_by_deep_thinking",
]  # fmt: skip
