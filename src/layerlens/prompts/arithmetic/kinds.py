"""The kinds of problem: each draws one problem at a difficulty from 1 (easy) to 4 (hard)."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise

from layerlens.prompts.arithmetic import phrases
from layerlens.prompts.arithmetic.expressions import Expression, Operation, Step, normal_form, steps, to_text, value
from layerlens.prompts.arithmetic.working import sentence, solution, working

DIFFICULTIES = (1, 2, 3, 4)


@dataclass(frozen=True)
class Draft:
    """A problem before it has a split. `normal_form` is the same for problems that differ only in order or wording."""

    normal_form: str
    answer: int
    prompt: str
    solution: str


def chain(difficulty: int, rng: random.Random) -> Draft:
    """Sums and differences of two to four numbers, never below zero on the way."""
    length, low, high = {1: (2, 1, 20), 2: (2, 5, 60), 3: (3, 5, 60), 4: (4, 5, 99)}[difficulty]
    expression = _chain(length, low, high, rng)
    return _draft(expression, phrases.ASK_VALUE, rng)


def product(difficulty: int, rng: random.Random) -> Draft:
    """Products of two numbers, from the times tables to two digits by two."""
    ranges = {1: ((2, 9), (2, 40)), 2: ((3, 9), (12, 69)), 3: ((3, 9), (41, 99)), 4: ((11, 19), (11, 49))}
    (low, high), (other_low, other_high) = ranges[difficulty]
    factors = [rng.randint(low, high), rng.randint(other_low, other_high)]
    rng.shuffle(factors)
    left, right = factors
    return _draft(Operation("×", left, right), phrases.ASK_PRODUCT, rng, a=left, b=right)


def brackets(difficulty: int, rng: random.Random) -> Draft:
    """Products and sums mixed, with brackets to respect."""
    small, medium = rng.randint(2, 5), rng.randint(2, 5)
    if difficulty == 1:
        expression = Operation("×", rng.randint(2, 9), Operation("+", rng.randint(1, 9), rng.randint(1, 9)))
    elif difficulty == 2:
        inner = _chain(2, 1, 20, rng)
        expression = Operation(rng.choice("+-"), Operation("×", inner, small), rng.randint(1, 9))
    elif difficulty == 3:
        inner = _chain(2, 1, 20, rng)
        expression = Operation(rng.choice("+-"), Operation("×", small, inner), Operation("×", medium, rng.randint(2, 9)))
    else:
        first, second = _chain(2, 1, 20, rng), _chain(2, 5, 30, rng)
        expression = Operation(rng.choice("+-"), Operation("×", first, small), Operation("×", second, medium))
    if value(expression) < 0:
        return brackets(difficulty, rng)
    if rng.random() < 0.5:
        expression = _swapped(expression)
    return _draft(expression, phrases.ASK_VALUE, rng)


def remainder(difficulty: int, rng: random.Random) -> Draft:
    """The remainder of a division."""
    high, divisor_high = {1: (60, 9), 2: (99, 9), 3: (150, 12), 4: (250, 15)}[difficulty]
    divisor = rng.randint(3, divisor_high)
    number = rng.randint(divisor + 1, high)
    return _draft(Operation("mod", number, divisor), phrases.ASK_REMAINDER, rng, a=number, b=divisor)


def story(difficulty: int, rng: random.Random) -> Draft:
    """A number of things that one to four events change, told in words."""
    events, high = {1: (1, 15), 2: (2, 25), 3: (3, 40), 4: (4, 60)}[difficulty]
    words = {"item": rng.choice(phrases.ITEMS), "holder": rng.choice(phrases.HOLDERS)}
    words["name"], words["friend"] = rng.sample(phrases.NAMES, 2)
    grouped = rng.random() < 0.4
    total: Expression
    if grouped:
        groups, each = rng.randint(2, 9), rng.randint(2, 5 + 2 * difficulty)
        total = Operation("×", groups, each)
        text = [rng.choice(phrases.STORY_GROUPS).format(a=groups, b=each, place=rng.choice(phrases.PLACES), **words)]
    else:
        total = rng.randint(5, high)
        text = [rng.choice(phrases.STORY_START).format(a=total, place=rng.choice(phrases.PLACES), **words)]
    for _ in range(events):
        sign, number = _event(value(total), high, rng)
        total = Operation(sign, total, number)
        text.append(rng.choice(phrases.STORY_EVENTS[sign]).format(b=number, place=rng.choice(phrases.PLACES), **words))
    text.append(rng.choice(phrases.STORY_QUESTIONS).format(**words))
    openers = [opener.format(**words) for opener in phrases.STORY_OPENERS]
    worked = solution(working(steps(total, rng), rng), value(total), rng, openers)
    return Draft(normal_form(total), value(total), " ".join(text) + rng.choice(phrases.SUFFIXES), worked)


def sequence(difficulty: int, rng: random.Random) -> Draft:
    """The next term of a sequence: equal steps, growing steps, multiplied terms, or multiplied and shifted."""
    first, factor, shift = rng.randint(1, 30), 1, rng.randint(2, 12)
    growth = 0
    if difficulty == 2:
        first, growth = rng.randint(1, 30), rng.randint(1, 5)
    elif difficulty == 3:
        first, factor, shift = rng.randint(2, 25), 2, rng.randint(0, 9)
    elif difficulty == 4:
        first, factor, shift = rng.randint(2, 12), rng.randint(2, 3), rng.randint(-5, 9)
    terms = [first]
    for index in range(4):
        terms.append(terms[-1] * factor + shift + index * growth)
    *shown, answer = terms
    if min(terms) < 0 or len(set(terms)) < len(terms):
        return sequence(difficulty, rng)
    lines = [rng.choice(["look at how the terms change", "compare each term with the one before", "find the rule"])]
    if factor == 1:
        gaps = [right - left for left, right in pairwise(shown)]
        listed = ", ".join(map(str, gaps))
        lines = [rng.choice(["the steps are {g}", "the differences are {g}", "from term to term it grows by {g}"]).format(g=listed)]
        last = Step("+", gaps[-1], growth, gaps[-1] + growth)
        worked = working([*([last] if growth else []), Step("+", shown[-1], last.result, answer)], rng)
    else:
        rule = rng.choice(["each term is {f} times the one before", "every term is multiplied by {f}", "the rule is times {f}"])
        also = {True: " plus {s}", False: " minus {s}"}[shift > 0] if shift else ""
        lines.append((rule + also).format(f=factor, s=abs(shift)))
        grown = Step("×", shown[-1], factor, shown[-1] * factor)
        moved = Step("+" if shift > 0 else "-", grown.result, abs(shift), answer)
        worked = working([grown, *([moved] if shift else [])], rng)
    prompt = rng.choice(phrases.ASK_NEXT).format(t=", ".join(map(str, shown))) + rng.choice(phrases.SUFFIXES)
    worked_solution = solution([*map(sentence, lines), *worked], answer, rng)
    return Draft(f"next({first},×{factor},{shift:+d},{growth:+d})", answer, prompt, worked_solution)


def compare(difficulty: int, rng: random.Random) -> Draft:
    """The larger or the smaller of two expressions."""
    sides: list[Expression]
    if difficulty == 1:
        sides = [_chain(2, 1, 20, rng), rng.randint(3, 40)]
    elif difficulty == 2:
        sides = [_chain(2, 2, 40, rng), _chain(2, 2, 40, rng)]
    elif difficulty == 3:
        sides = [Operation("×", rng.randint(2, 9), rng.randint(5, 25)), _chain(2, 10, 99, rng)]
    else:
        sides = [Operation("×", rng.randint(3, 9), rng.randint(11, 49)), _chain(3, 10, 99, rng)]
    rng.shuffle(sides)
    left, right = map(value, sides)
    if left == right:
        return compare(difficulty, rng)
    larger = rng.random() < 0.5
    answer = max(left, right) if larger else min(left, right)
    ask = rng.choice(phrases.ASK_LARGER if larger else phrases.ASK_SMALLER)
    found = [step for side in sides for step in steps(side, rng)]
    high, low = max(left, right), min(left, right)
    verdict = rng.choice(["{h} is larger than {l}", "{l} is smaller than {h}", "{h} > {l}", "{l} < {h}", "{h} beats {l}"])
    lines = [*working(found, rng, continues=True), sentence(verdict.format(h=high, l=low))]
    prompt = ask.format(x=to_text(sides[0]), y=to_text(sides[1])) + rng.choice(phrases.SUFFIXES)
    return Draft(f"compare({','.join(sorted(map(normal_form, sides)))})", answer, prompt, solution(lines, answer, rng))


def equation(difficulty: int, rng: random.Random) -> Draft:
    """A linear equation in one unknown, all of it in non-negative integers."""
    high, most = {1: (15, 1), 2: (9, 5), 3: (12, 9), 4: (25, 9)}[difficulty]
    unknown, factor, shift = rng.randint(2, high), rng.randint(1, most), rng.randint(1, 2 * high)
    if difficulty > 1 and factor == 1:
        factor = rng.randint(2, most)
    minus = factor * unknown > shift and rng.random() < 0.4
    letter = rng.choice("xyznkm")
    term = letter if factor == 1 else f"{factor}{letter}" if rng.random() < 0.5 else f"{factor} × {letter}"
    total = factor * unknown - shift if minus else factor * unknown + shift
    side = f"{term} - {shift}" if minus else rng.choice([f"{term} + {shift}", f"{shift} + {term}"])
    text = f"{side} = {total}" if rng.random() < 0.8 else f"{total} = {side}"
    undo = Step("+" if minus else "-", total, shift, factor * unknown)
    moves = (
        "add {s} on both sides" if minus else "subtract {s} on both sides",
        "move the {s} to the other side",
        "get rid of the {s} first",
        "isolate the part with {v}",
    )
    found = [undo] if factor == 1 else [undo, Step("÷", factor * unknown, factor, unknown)]
    lines = [sentence(rng.choice(moves).format(s=shift, v=letter)), *working(found, rng)]
    prompt = rng.choice(phrases.ASK_SOLVE).format(q=text, v=letter) + rng.choice(phrases.SUFFIXES)
    return Draft(f"solve({factor},{'-' if minus else '+'}{shift},{total})", unknown, prompt, solution(lines, unknown, rng))


GENERATORS: dict[str, Callable[[int, random.Random], Draft]] = {
    "chain": chain,
    "product": product,
    "brackets": brackets,
    "remainder": remainder,
    "story": story,
    "sequence": sequence,
    "compare": compare,
    "equation": equation,
}
"""For each kind of problem, the function that draws one at a difficulty."""


def _draft(expression: Expression, asks: tuple[str, ...], rng: random.Random, **numbers: int) -> Draft:
    """The problem to work out an expression, in one of the wordings `asks`, filled in with the expression and `numbers`."""
    answer = value(expression)
    prompt = rng.choice(asks).format(e=to_text(expression), **numbers) + rng.choice(phrases.SUFFIXES)
    return Draft(normal_form(expression), answer, prompt, solution(working(steps(expression, rng), rng), answer, rng))


def _chain(length: int, low: int, high: int, rng: random.Random) -> Expression:
    """A sum or difference of `length` numbers from `low` to `high`, never below zero on the way."""
    total: Expression = rng.randint(low, high)
    for _ in range(length - 1):
        number = rng.randint(low, high)
        sign = "-" if value(total) > number and rng.random() < 0.5 else "+"
        total = Operation(sign, total, number)
    return total


def _swapped(expression: Operation) -> Operation:
    """The same sum or product with its two sides exchanged; a difference stays as it is."""
    if expression.sign in "+×":
        return Operation(expression.sign, expression.right, expression.left)
    return expression


def _event(total: int, high: int, rng: random.Random) -> tuple[str, int]:
    """What happens next to a pile of `total` things: a sign and a number that keep it a whole number of things."""
    draw = rng.random()
    divisors = [d for d in range(2, 10) if total % d == 0 and total // d > 1]
    if draw < 0.12 and divisors:
        return "÷", rng.choice(divisors)
    if draw < 0.24 and total <= 60:
        return "×", rng.randint(2, 5)
    if draw < 0.6 and total > 3:
        return "-", rng.randint(2, min(total - 1, high))
    return "+", rng.randint(2, high)
