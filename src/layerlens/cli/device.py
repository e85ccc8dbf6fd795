"""Which device a command runs on: the one that is named, or this process's own card."""

from __future__ import annotations

import os

from layerlens.errors import SelectionError
from layerlens.progress import say
from layerlens.storage.launch import LOCAL_RANK, local_rank, n_processes, rank


def pick_device(device: str | None, device_map: str | None) -> str | None:
    """The device asked for; else the card of this process's local rank under a launcher, the GPU if there is one, or None.

    If a launcher shows each process one card of its own, that card is taken. Raises SelectionError if there are fewer cards than
    processes on this machine.
    """
    if device or device_map:
        return device
    import torch

    if not torch.cuda.is_available():
        return None
    place = local_rank()
    if place is None:
        return "cuda"
    cards = torch.cuda.device_count()
    if place >= cards and not (cards == 1 and os.environ.get("CUDA_VISIBLE_DEVICES")):
        named = next(name for name in LOCAL_RANK if name in os.environ)
        raise SelectionError(
            f"{named} says that this is process {place} of its machine (from 0), of which {cards} card{'s are' if cards != 1 else ' is'} "
            "visible: start as many processes as there are cards, or name a --device"
        )
    card = f"cuda:{place % cards}"
    number = rank()
    say(f"process {place if number is None else number} of {n_processes()}: {card}")
    return card
