"""`layerlens` with the words of the command line, as one of several processes among which FSDP2 shards the model on the CPU."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parents[2]))

from layerlens.cli import main
from tests.support.distributed_worker import shard_on_cpu

if __name__ == "__main__":
    torch.set_num_threads(1)
    shard_on_cpu()
    try:
        main()
    except SystemExit as end:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(int(end.code or 0))  # a thread of gloo may still hold a tensor, which aborts an interpreter that closes (pytorch#190489)
