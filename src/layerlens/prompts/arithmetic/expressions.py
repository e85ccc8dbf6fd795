"""Integer expressions: their value, their text, a normal form, and the steps that work them out."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TypeAlias

_PRECEDENCE = {"+": 1, "-": 1, "×": 2, "÷": 2, "mod": 3}


@dataclass(frozen=True)
class Operation:
    """`left sign right`, with a sign among `+ - × ÷ mod`; `÷` must divide without remainder."""

    sign: str
    left: Expression
    right: Expression


Expression: TypeAlias = int | Operation


@dataclass(frozen=True)
class Step:
    """One step of a worked solution, `left sign right = result`, all integers."""

    sign: str
    left: int
    right: int
    result: int


def apply(sign: str, left: int, right: int) -> int:
    """The integer `left sign right`. Raises ValueError if a division leaves a remainder or the sign is unknown."""
    match sign:
        case "+":
            return left + right
        case "-":
            return left - right
        case "×":
            return left * right
        case "mod":
            return left % right
        case "÷":
            if left % right:
                raise ValueError(f"expected an exact division, got {left} ÷ {right}")
            return left // right
    raise ValueError(f"expected a sign among {', '.join(_PRECEDENCE)}, got {sign!r}")


def value(expression: Expression) -> int:
    """The value of the expression."""
    if isinstance(expression, int):
        return expression
    return apply(expression.sign, value(expression.left), value(expression.right))


def to_text(expression: Expression) -> str:
    """The expression as text, with no brackets but those it needs."""
    if isinstance(expression, int):
        return str(expression)
    own = _PRECEDENCE[expression.sign]
    left, right = to_text(expression.left), to_text(expression.right)
    if isinstance(expression.left, Operation) and _PRECEDENCE[expression.left.sign] < own:
        left = f"({left})"
    if isinstance(expression.right, Operation) and _PRECEDENCE[expression.right.sign] <= own:
        right = f"({right})"
    return f"{left} {expression.sign} {right}"


def normal_form(expression: Expression) -> str:
    """A text that is the same for expressions that differ only in the order or nesting of terms or factors.

    Sums and differences become a sorted list of signed terms, products a sorted list of factors, however they were nested: `3 + 4 - 1`,
    `4 - 1 + 3` and `4 + (3 - 1)` have one normal form.
    """
    if isinstance(expression, int):
        return str(expression)
    if expression.sign in "+-":
        terms = sorted(sign + normal_form(term) for sign, term in signed_terms(expression))
        return f"sum({','.join(terms)})"
    if expression.sign == "×":
        return f"product({','.join(sorted(normal_form(f) for f in _factors(expression)))})"
    name = {"÷": "quotient", "mod": "remainder"}[expression.sign]
    return f"{name}({normal_form(expression.left)},{normal_form(expression.right)})"


def steps(expression: Expression, rng: random.Random) -> list[Step]:
    """The steps that compute the expression, each on two integers, in one of the valid orders, drawn with `rng`.

    A chain of sums and differences is sometimes computed from left to right, sometimes with its additions first.
    """
    done: list[Step] = []
    _reduce(expression, rng, done)
    return done


def signed_terms(expression: Expression, sign: str = "+") -> Iterator[tuple[str, Expression]]:
    """The terms of nested sums and differences, each with `+` or `-` in front, from left to right."""
    if isinstance(expression, Operation) and expression.sign in "+-":
        flipped = "-" if sign == "+" else "+"
        yield from signed_terms(expression.left, sign)
        yield from signed_terms(expression.right, sign if expression.sign == "+" else flipped)
    else:
        yield sign, expression


def _factors(expression: Expression) -> Iterator[Expression]:
    if isinstance(expression, Operation) and expression.sign == "×":
        yield from _factors(expression.left)
        yield from _factors(expression.right)
    else:
        yield expression


def _reduce(expression: Expression, rng: random.Random, done: list[Step]) -> int:
    """Computes the expression and appends its steps to `done`."""
    if isinstance(expression, int):
        return expression
    if _is_chain(expression) and rng.random() < 0.35:
        expression = _additions_first(expression)
    if isinstance(expression, int):
        return expression
    if isinstance(expression.right, Operation) and rng.random() < 0.3:
        right = _reduce(expression.right, rng, done)
        left = _reduce(expression.left, rng, done)
    else:
        left = _reduce(expression.left, rng, done)
        right = _reduce(expression.right, rng, done)
    done.append(Step(expression.sign, left, right, apply(expression.sign, left, right)))
    return done[-1].result


def _is_chain(expression: Operation) -> bool:
    return expression.sign in "+-" and all(isinstance(term, int) for _, term in signed_terms(expression))


def _additions_first(expression: Operation) -> Expression:
    terms = sorted(signed_terms(expression), key=lambda pair: pair[0])  # "+" sorts before "-", order kept
    total: Expression = terms[0][1]
    for sign, term in terms[1:]:
        total = Operation(sign, total, term)
    return total
