"""How many bytes of states may wait to be decoded, and where they wait.

States wait in the model's own dtype until the final policy's rows are known: then one pass over the vocabulary serves all states of a
row, and each anchor's rows are decoded once. A text whose states do not fit runs twice: first for the anchors and for similarity, then
for all states, which are decoded in several groups.
"""

from __future__ import annotations

import torch

from layerlens.models.free_memory import free_on

PORTION_BYTES = {"cpu": 256 << 20, "cuda": 4 << 30}
"""Bytes of states of several texts that run together, by device type. A text of more bytes runs alone."""

DEVICE_SHARE, HOST_SHARE = 0.5, 0.25
"""Shares of the free memory of a GPU, and of the host's, that the states of one text may take."""


def resolve_state_bytes(device: torch.device) -> int:
    """Bytes of the states of one text that may wait together, where `device` decodes.

    It is decided once for a run and kept in its manifest: which states are decoded together can change the last bits of results.
    """
    host = int(HOST_SHARE * free_on(torch.device("cpu")))
    return max(host, int(DEVICE_SHARE * free_on(device))) if device.type == "cuda" else host


def waiting_device(device: torch.device, size: int) -> torch.device:
    """Where states of `size` bytes wait until `device` decodes them: there if it has room, else on the host. No number depends on it."""
    return torch.device("cpu") if device.type == "cuda" and size > DEVICE_SHARE * free_on(device) else device


def held_bytes(device: torch.device, state_bytes: int, longest: int, every: int) -> int:
    """Bytes of states that wait at most, if those of the longest text take `longest` and those of all texts `every`."""
    portion = PORTION_BYTES.get(device.type, PORTION_BYTES["cpu"])
    return min(state_bytes, max(longest, min(portion, every)))
