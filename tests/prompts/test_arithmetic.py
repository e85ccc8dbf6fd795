from __future__ import annotations

import itertools
import random
import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from layerlens.prompts.arithmetic import KINDS, SPLITS, problems, split_of
from layerlens.prompts.arithmetic.dataset import ProblemError
from layerlens.prompts.arithmetic.expressions import Expression, Operation, normal_form, signed_terms, steps, to_text, value
from layerlens.prompts.arithmetic.kinds import DIFFICULTIES
from layerlens.rewards.boxed import verify

seeds = st.integers(0, 2**32)


def _sums(depth: int = 3) -> st.SearchStrategy[Expression]:
    """Nested sums, differences and products of small numbers."""
    return st.recursive(
        st.integers(0, 30),
        lambda inner: st.builds(Operation, st.sampled_from("+-×"), inner, inner),
        max_leaves=2**depth,
    )


@given(_sums())
def test_to_text_means_the_expression(expression: Expression) -> None:
    assert eval(to_text(expression).replace("×", "*")) == value(expression)


@given(_sums(), seeds)
def test_steps_are_true_and_end_in_the_value(expression: Expression, seed: int) -> None:
    worked = steps(expression, random.Random(seed))
    assert all(eval(f"{s.left} {s.sign} {s.right}".replace("×", "*").replace("- -", "+ ")) == s.result for s in worked)
    assert not worked or worked[-1].result == value(expression)


@given(st.lists(st.tuples(st.sampled_from("+-"), st.integers(1, 30)), min_size=1, max_size=5), seeds)
def test_normal_form_is_one_for_reordered_and_regrouped_sums(terms: list[tuple[str, int]], seed: int) -> None:
    def build(order: list[tuple[str, int]]) -> Expression:
        total: Expression = 40
        for sign, term in order:
            total = Operation(sign, total, term)
        return total

    shuffled = random.Random(seed).sample(terms, len(terms))
    assert normal_form(build(shuffled)) == normal_form(build(terms))
    folded = Operation("+", build(terms[:0]), Operation("-", Operation("+", 5, 3), 3))
    assert normal_form(folded) == normal_form(Operation("-", Operation("+", Operation("+", 40, 5), 3), 3))


@given(st.permutations([3, 7, 11]), st.permutations([3, 7, 11]))
def test_normal_form_is_one_for_reordered_products(one: list[int], other: list[int]) -> None:
    def build(factors: list[int]) -> Expression:
        return Operation("×", factors[0], Operation("×", factors[1], factors[2]))

    assert normal_form(build(one)) == normal_form(build(other))


@given(_sums())
def test_normal_form_and_value_are_one_for_exchanged_sides(expression: Expression) -> None:
    twin = expression
    if isinstance(expression, Operation) and expression.sign in "+×":
        twin = Operation(expression.sign, expression.right, expression.left)
    assert normal_form(twin) == normal_form(expression)
    assert value(twin) == value(expression)
    assert sum((1 if s == "+" else -1) * value(t) for s, t in signed_terms(expression)) == value(expression)


@pytest.mark.parametrize(("kind", "difficulty"), list(itertools.product(KINDS, DIFFICULTIES)))
@given(seed=seeds, split=st.sampled_from(SPLITS))
@settings(max_examples=6, deadline=None)
def test_problems_have_solutions_that_verify_and_lie_in_their_split(kind: str, difficulty: int, seed: int, split: str) -> None:
    for problem in problems(split, 4, seed, [kind], [difficulty]):
        assert (problem.kind, problem.difficulty) == (kind, difficulty)
        assert verify(problem.solution, problem.answer)
        assert int(problem.answer) >= 0
        assert problem.solution.count(r"\boxed{") == 1
        assert [m["role"] for m in problem.prompt] == ["user"]
        assert split_of(problem.normal_form) == split


@given(seeds, seeds)
@settings(max_examples=4, deadline=None)
def test_problems_of_different_splits_are_never_the_same(one: int, other: int) -> None:
    keys = {split: {p.normal_form for p in problems(split, 64, seed)} for split, seed in zip(SPLITS, (one, other, one), strict=True)}
    assert not any(keys[a] & keys[b] for a, b in itertools.combinations(SPLITS, 2))


@pytest.mark.parametrize("kind", ["chain", "product", "remainder"])
def test_problems_for_training_never_have_the_numbers_of_a_held_out_one(kind: str) -> None:
    """A check that does not rely on the normal form: up to three numbers and the answer say which problem it is."""

    def numbers(split: str, n: int) -> set[tuple[str, ...]]:
        found = problems(split, n, 3, [kind], [1, 2, 3])
        return {(p.answer, *sorted(re.findall(r"\d+", p.prompt[0]["content"]))) for p in found}

    assert not numbers("train", 6_000) & numbers("test", 200)


def test_problems_depend_on_their_arguments_alone_and_grow_harder() -> None:
    assert problems("train", 40, 7) == problems("train", 40, 7) != problems("train", 40, 8)
    assert problems("train", 40, 7)[:8] == problems("train", 8, 7)
    lengths = [sum(len(p.solution) for p in problems("train", 200, 0, difficulties=[d])) for d in DIFFICULTIES]
    assert lengths == sorted(lengths)


def test_problems_are_spread_evenly_and_distinct_if_asked() -> None:
    found = problems("test", 256, 1, distinct=True)
    cells = [(p.kind, p.difficulty) for p in found]
    assert {cells.count(cell) for cell in itertools.product(KINDS, DIFFICULTIES)} == {8}
    assert len({p.normal_form for p in found}) == 256


@pytest.mark.parametrize(
    "request_",
    [{"split": "dev"}, {"kinds": ["algebra"]}, {"difficulties": [5]}, {"kinds": ["product"], "difficulties": [1], "distinct": True}],
)
def test_problems_refuses_impossible_requests(request_: dict, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("layerlens.prompts.arithmetic.dataset._MAX_DRAWS", 2_000)
    with pytest.raises(ProblemError):
        problems(**({"split": "test", "n": 500, "seed": 0} | request_))
