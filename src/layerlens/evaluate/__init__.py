"""Many sampled answers per problem, checked: Avg@K and unbiased Pass@k with intervals over problems.

`evaluate` samples and keeps every answer, `open_evaluation` reads them back, `pass_at_k` is the estimator.
"""

from __future__ import annotations

from layerlens.evaluate.engines import Engine, LensEngine, open_engine
from layerlens.evaluate.evaluation import evaluate, open_evaluation
from layerlens.evaluate.result import Answer, Evaluation, Problem
from layerlens.evaluate.scores import avg_at_k, pass_table
from layerlens.evaluate.tasks import TASKS, Task, find_task
from layerlens.evaluate.vllm import VLLMEngine
from layerlens.metrics.pass_at_k import pass_at_k

__all__ = [
    "TASKS", "Answer", "Engine", "Evaluation", "LensEngine", "Problem", "Task", "VLLMEngine",
    "avg_at_k", "evaluate", "find_task", "open_engine", "open_evaluation", "pass_at_k", "pass_table",
]  # fmt: skip
