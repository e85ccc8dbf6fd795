from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from layerlens.rewards.boxed import last_boxed, verify


@given(st.text(), st.one_of(st.text(), st.integers()))
def test_verify_never_raises_on_any_text(text: str, truth: str | int) -> None:
    assert verify(text, truth) in (True, False)


@given(st.text(alphabet="\\boxed{}0123456789,-+$ ٣²"), st.integers())
def test_verify_never_raises_on_what_looks_like_an_answer(text: str, truth: int) -> None:
    assert verify(text, truth) in (True, False)


@given(st.integers(), st.integers(), st.text(alphabet=st.characters(exclude_characters="\\")))
def test_verify_accepts_exactly_the_integer_in_the_last_box(first: int, last: int, between: str) -> None:
    text = rf"{between}\boxed{{{first}}}{between}\boxed{{{last}}}{between}"
    assert verify(text, str(last))
    assert verify(text, last)
    assert verify(text, first) == (first == last)


@given(st.integers())
def test_verify_accepts_every_way_to_write_an_integer(number: int) -> None:
    sign, digits = ("-" if number < 0 else "+"), str(abs(number))
    for written in (f" {number} ", f"${number}$", f"{number:,}", f"{sign}{digits}", f"{'-' if number < 0 else ''}00{digits}"):
        assert verify(rf"so \boxed{{{written}}}.", number)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "7",
        r"\boxed{}",
        r"\boxed{7",
        r"\boxed{7.0}",
        r"\boxed{7 apples}",
        r"\boxed{14/2}",
        r"\boxed{7} or \boxed{",
        r"\boxed{٧}",
        r"\boxed 7",
    ],
)
def test_verify_refuses_all_but_the_integer_in_a_closed_last_box(text: str) -> None:
    assert not verify(text, "7")


def test_last_boxed_balances_braces() -> None:
    assert last_boxed(r"\boxed{\frac{1}{2}}") == r"\frac{1}{2}"
    assert last_boxed(r"\boxed{a \boxed{3}}") == "3"


def test_verify_takes_linear_time_on_long_texts() -> None:
    assert not verify(r"\boxed{" + "0" * 200_000 + "x}", 0)
    assert verify(r"\boxed{" + "0" * 200_000 + "7}", 7)
    assert not verify(r"\boxed{" * 50_000, 7)
