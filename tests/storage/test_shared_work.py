"""The loop by which processes share work: every piece once, whoever holds what, and nothing while somebody else holds it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from layerlens.storage import shared_work
from layerlens.storage.folder import SharedFolder
from layerlens.storage.shared_work import share_work


@given(st.lists(st.integers(0, 3), max_size=12), st.sets(st.integers(0, 11)))
def test_every_piece_is_done_once_however_long_others_hold_it(refusals: list[int], done_before: set[int]) -> None:
    """Piece i is refused `refusals[i]` times before it can be claimed."""
    left, done, worked = list(refusals), set(done_before), []
    waits = []

    @contextmanager
    def claim(piece: int) -> Iterator[bool]:
        left[piece] -= 1
        yield left[piece] < 0

    def work(piece: int) -> None:
        worked.append(piece)
        done.add(piece)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(shared_work.time, "sleep", waits.append)
        share_work(range(len(refusals)), claim=claim, is_done=done.__contains__, work=work)
    assert sorted(worked) == sorted(set(range(len(refusals))) - done_before)
    assert len(waits) <= max(refusals, default=0), "it waits only if a whole round found nothing to do"


def test_a_piece_that_another_process_finishes_before_the_claim_is_not_done_again() -> None:
    done: set[str] = set()

    @contextmanager
    def claim(piece: str) -> Iterator[bool]:
        done.add(piece)  # finished between the question and the claim
        yield True

    share_work(["a", "b"], claim=claim, is_done=done.__contains__, work=lambda piece: pytest.fail(f"{piece} was done twice"))


def test_a_claim_in_a_folder_is_exclusive_and_ends_with_its_context(tmp_path: Path) -> None:
    folder = SharedFolder[object](tmp_path)
    (tmp_path / ".locks").mkdir()
    with folder.claim("piece") as first, SharedFolder[object](tmp_path).claim("piece") as second, folder.claim("other") as other:
        assert (first, second, other) == (True, False, True)
    with folder.claim("piece") as again:
        assert again


def test_waits_double_up_to_a_limit_and_begin_anew_after_work() -> None:
    waits: list[float] = []
    refusals = {"a": 12, "b": 14}

    @contextmanager
    def claim(piece: str) -> Iterator[bool]:
        refusals[piece] -= 1
        yield refusals[piece] < 0

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(shared_work.time, "sleep", waits.append)
        patch.setattr(shared_work.random, "uniform", lambda low, high: 1.0)
        share_work("ab", claim=claim, is_done=lambda piece: refusals[piece] < 0, work=lambda piece: None)
    assert waits[:3] == [0.05, 0.1, 0.2]
    assert max(waits) == shared_work.LONGEST_WAIT
    assert waits[-1] == 0.05, "work was done just before"


@pytest.mark.parametrize(("rank", "begins"), [("0", 0), ("1", 2), ("3", 7), ("4", 0), ("x", 0)])
def test_a_numbered_process_begins_at_its_share(rank: str, begins: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLURM_PROCID", rank)
    monkeypatch.setenv("SLURM_STEP_NUM_TASKS", "4")
    worked: list[int] = []

    @contextmanager
    def claim(piece: int) -> Iterator[bool]:
        yield True

    share_work(range(10), claim=claim, is_done=lambda piece: False, work=worked.append)
    assert worked == [*range(begins, 10), *range(begins)]


def test_one_piece_goes_on_in_the_background_and_is_claimed_until_it_ends() -> None:
    told: list[str] = []

    @contextmanager
    def claim(piece: str) -> Iterator[bool]:
        told.append(f"claim {piece}")
        yield True
        told.append(f"free {piece}")

    def work(piece: str) -> Callable[[], None] | None:
        told.append(f"work {piece}")
        return None if piece == "c" else lambda: told.append(f"end {piece}")

    share_work("abc", claim=claim, is_done=lambda piece: False, work=work)
    first = ["claim a", "work a", "claim b", "work b", "end a", "free a"]
    assert told == [*first, "claim c", "work c", "end b", "free b", "free c"]


def test_an_end_that_fails_is_raised_after_the_piece_that_was_begun_meanwhile_has_ended() -> None:
    ended, freed = [], []

    @contextmanager
    def claim(piece: int) -> Iterator[bool]:
        try:
            yield True
        finally:
            freed.append(piece)

    def work(piece: int) -> Callable[[], None]:
        def end() -> None:
            ended.append(piece)
            if piece == 0:
                raise OSError("the disk is full")

        return end

    with pytest.raises(OSError, match="the disk is full"):
        share_work(range(3), claim=claim, is_done=lambda piece: False, work=work)
    assert (ended, freed) == ([0, 1], [0, 1])
