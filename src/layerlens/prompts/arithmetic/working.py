"""Worked solutions as text: one sentence per step, each in one of several wordings."""

from __future__ import annotations

import random
from collections.abc import Sequence

from layerlens.prompts.arithmetic import phrases
from layerlens.prompts.arithmetic.expressions import Step

DECOMPOSE_PROBABILITY = 0.6
"""Probability that a step on large numbers is written as smaller steps rather than at once."""


def solution(sentences: Sequence[str], answer: int, rng: random.Random, openers: Sequence[str] = phrases.OPENERS) -> str:
    """The text of a worked solution: an opening line, the sentences, and the answer in its box."""
    closing = rng.choice(phrases.CLOSERS).format(n=answer)
    return " ".join(part for part in (rng.choice(openers), *sentences, closing) if part)


def working(steps: Sequence[Step], rng: random.Random, continues: bool = False) -> list[str]:
    """One sentence per step, with a linking word in front. `continues` says that other sentences follow the last step."""
    sentences = []
    for number, step in enumerate(steps):
        last = number == len(steps) - 1 and not continues
        links = phrases.LINKS_FIRST if number == 0 else phrases.LINKS_LAST if last else phrases.LINKS_LATER
        sentences.append(sentence(rng.choice(links) + _clause(step, rng)))
    return sentences


def sentence(text: str) -> str:
    """The text with its first letter in upper case and a full stop."""
    return text[:1].upper() + text[1:] + "."


def _clause(step: Step, rng: random.Random) -> str:
    """The step in words: at once, or as smaller steps with tens apart from ones."""
    parts = _decompose(step)
    if parts and rng.random() < DECOMPOSE_PROBABILITY:
        *before, total = (f"{p.left} {p.sign} {p.right} = {p.result}" for p in parts)
        whole = f"{step.left} {step.sign} {step.right}"
        return rng.choice(phrases.DECOMPOSED_STEPS).format(e=whole, parts=" and ".join(before), total=total)
    quotient = step.left // step.right if step.sign == "mod" else 0
    return rng.choice(phrases.STEPS[step.sign]).format(a=step.left, b=step.right, c=step.result, q=quotient, p=quotient * step.right)


def _decompose(step: Step) -> list[Step]:
    """Smaller steps with the same result, tens apart from ones; none if the step is small already."""
    if step.sign in "+-" and step.right >= 10 and step.right % 10 and step.left >= 10:
        ones = step.right % 10
        middle = step.left + step.right - ones if step.sign == "+" else step.left - step.right + ones
        return [Step(step.sign, step.left, step.right - ones, middle), Step(step.sign, middle, ones, step.result)]
    if step.sign == "×":
        small, large = sorted((step.left, step.right))
        if large >= 10 and large % 10 and small > 1:
            ones = large % 10
            tens = large - ones
            return [
                Step("×", tens, small, tens * small),
                Step("×", ones, small, ones * small),
                Step("+", tens * small, ones * small, step.result),
            ]
    return []
