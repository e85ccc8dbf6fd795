"""The card of each process under a launcher."""

from __future__ import annotations

import os

import pytest
import torch

from layerlens.cli.device import pick_device
from layerlens.errors import SelectionError
from layerlens.storage.launch import LOCAL_RANK, RANK, WORLD_SIZE


@pytest.fixture
def cards(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """Four cards, and no launcher."""
    for name in (*LOCAL_RANK, *RANK, *WORLD_SIZE, "CUDA_VISIBLE_DEVICES"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    return monkeypatch


@pytest.mark.parametrize("name", LOCAL_RANK)
def test_each_process_gets_the_card_of_its_local_rank(name: str, cards: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    cards.setenv(name, "3")
    assert pick_device(None, None) == "cuda:3"
    assert capsys.readouterr().err == "process 3 of 1: cuda:3\n"
    cards.setenv("RANK", "11")
    cards.setenv("WORLD_SIZE", "16")
    pick_device(None, None)
    assert capsys.readouterr().err == "process 11 of 16: cuda:3\n"


def test_without_a_launcher_or_with_a_named_device_nothing_is_chosen(cards: pytest.MonkeyPatch) -> None:
    assert pick_device(None, None) == "cuda"
    cards.setenv("LOCAL_RANK", "2")
    assert (pick_device("cpu", None), pick_device(None, "auto")) == ("cpu", None)
    cards.setattr(torch.cuda, "is_available", lambda: False)
    assert pick_device(None, None) is None


def test_more_processes_than_cards(cards: pytest.MonkeyPatch) -> None:
    cards.setenv("LOCAL_RANK", "4")
    with pytest.raises(SelectionError, match=r"LOCAL_RANK says that this is process 4 of its machine .* 4 cards are visible"):
        pick_device(None, None)
    cards.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(SelectionError, match="1 card is visible"):
        pick_device(None, None)
    cards.setenv("CUDA_VISIBLE_DEVICES", "6")
    assert pick_device(None, None) == "cuda:0", "the launcher shows each process a card of its own"
    assert os.environ["CUDA_VISIBLE_DEVICES"] == "6"
