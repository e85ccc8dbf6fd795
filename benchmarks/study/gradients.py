"""Gradients of the policy of each layer before training: `python -m benchmarks.study.gradients MODEL EVALUATION --out gradients.json`.

EVALUATION holds several answers to each training problem, sampled from the final policy. Each layer's policy gets the loss that GRPO has
in its first step, the mean over tokens of -A log π_l(token) with the advantage A of the answer in its group (score less the group's mean,
by its standard deviation). By norm, the file has the cosine of that gradient to the final policy's on the weights that both train, those
of blocks 1 to l; and, once, the share of each block in the squared length of the final policy's gradient.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
import torch

import layerlens as ll
from layerlens.evaluate import open_evaluation
from layerlens.storage.files import write_text
from layerlens.types import Norm

BATCH = 64
"""Answers in a forward pass."""


def advantages(scores: np.ndarray) -> np.ndarray:
    """Of each answer in its problem's group (problems × answers); 0 in a group whose answers are all alike, as in TRL."""
    centred = scores - scores.mean(1, keepdims=True)
    return centred / (scores.std(1, ddof=1, keepdims=True) + 1e-4)


def tokens_of(model: ll.LensModel, problems: Path, evaluation: Path) -> tuple[list[tuple[list[int], int, float]], int]:
    """Each answer that has an advantage with its prompt (token ids, length of the prompt, advantage); and the tokens of all answers."""
    asked = {str(row["id"]): row["prompt"] for row in map(json.loads, problems.read_text().splitlines())}
    found = open_evaluation(evaluation)
    weights = advantages(np.array([[answer.score for answer in problem.answers] for problem in found.problems]))
    end = model.end_tokens[0]
    texts, total = [], 0
    for problem, row in zip(found.problems, weights, strict=True):
        prompt = model.tokenizer.apply_chat_template(asked[problem.id], add_generation_prompt=True, tokenize=True, return_dict=False)
        for answer, advantage in zip(problem.answers, row, strict=True):
            response = model.tokenizer.encode(answer.text, add_special_tokens=False) + [end] * answer.finished
            total += len(response)
            if advantage:
                texts.append(([*prompt, *response], len(prompt), float(advantage)))
    return texts, total


def gradients(model: ll.LensModel, texts: list[tuple[list[int], int, float]], total: int, norm: Norm) -> list[list[torch.Tensor]]:
    """By layer, the gradient of its policy's loss on each weight of the blocks; zeros above the layer."""
    weights = [weight for block in model.parts.blocks for weight in block.parameters()]
    layers = range(1, model.n_layers + 1)
    sums = [[torch.zeros_like(weight) for weight in weights] for _ in layers]
    states: dict[int, torch.Tensor] = {}
    ordered = sorted(texts, key=lambda text: len(text[0]))
    for start in range(0, len(ordered), BATCH):
        batch = ordered[start : start + BATCH]
        length = max(len(ids) for ids, _, _ in batch)
        ids = torch.tensor([ids + [0] * (length - len(ids)) for ids, _, _ in batch])
        weight = torch.tensor([[0.0] * (prompt - 1) + [a] * (len(ids) - prompt) + [0.0] * (length - len(ids)) for ids, prompt, a in batch])
        model.forward(ids, [(layer, "resid_post") for layer in layers], lambda layer, _, state: states.update({layer: state}))
        for layer in layers:
            read = model.convention("final" if layer == model.n_layers else norm).vectors(layer, "resid_post", states[layer])
            logits = read[:, :-1] @ model.parts.unembedding_weight.T
            chosen = torch.log_softmax(logits, -1).gather(-1, ids[:, 1:, None])[..., 0]
            loss = -(weight * chosen).sum() / total
            for each, part in zip(sums[layer - 1], torch.autograd.grad(loss, weights, retain_graph=True, allow_unused=True), strict=True):
                if part is not None:
                    each += part
    return sums


def summary(model: ll.LensModel, by_layer: list[list[torch.Tensor]]) -> tuple[list[float], list[float]]:
    """By layer, the cosine to the final policy's gradient on blocks 1 to the layer, and its block's share of that gradient's square."""
    of_block = [len(list(block.parameters())) for block in model.parts.blocks]
    ends = np.cumsum(of_block)
    final = by_layer[-1]
    cosines, squares = [], []
    for layer, end in enumerate(ends):
        mine, whole = (torch.cat([part.flatten() for part in each[:end]]).double() for each in (by_layer[layer], final))
        cosines.append(float(mine @ whole / (mine.norm() * whole.norm())))
        squares.append(float(sum((part.double() ** 2).sum() for part in final[end - of_block[layer] : end])))
    return cosines, [square / sum(squares) for square in squares]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("evaluation", type=Path, help="folder of an evaluation of the problems")
    parser.add_argument("--problems", type=Path, required=True, help="the file of the problems that it answers")
    parser.add_argument("--out", type=Path, required=True)
    given = parser.parse_args()
    model = ll.load(given.model, dtype="float32")
    texts, total = tokens_of(model, given.problems, given.evaluation)
    found: dict[str, object] = {"answers": len(texts)}
    norms: tuple[Norm, ...] = ("none", "final")
    for norm in norms:
        found[f"cosine, norm {norm}"], found["share of the gradient"] = summary(model, gradients(model, texts, total, norm))
    write_text(given.out, json.dumps(found, indent=1) + "\n")
    print(f"{len(texts)} answers -> {given.out}")


if __name__ == "__main__":
    main()
