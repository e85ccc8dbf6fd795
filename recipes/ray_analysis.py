"""An analysis on a Ray cluster: each actor holds the model, and measures one shard of the samples after the other.

    python -m recipes.ray_analysis MODEL PROMPTS OUT --actors 8 --gpus 1 --address auto

Ray decides where an actor runs, starts a shard again whose actor died, and adds actors up to `--max-actors` while machines come. The shards
lie in OUT-shards, which all machines must see, and each is merged into OUT when it is done. The same command continues a run that stopped.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from math import ceil
from pathlib import Path
from typing import Any

import layerlens as ll

os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # read when Ray is imported: nothing is reported to anybody


@dataclass(frozen=True)
class Job:
    """What is measured: the arguments of `ll.load`, `ll.read_prompts` and `ll.analyze` that all shards share."""

    model: str
    prompts: str
    out: str
    shards: int
    load: dict[str, Any]
    analyze: dict[str, Any]
    limit: int | None = None

    def folder(self, number: int) -> Path:
        """Where shard `number` lies, of 1 to `shards`."""
        return Path(f"{self.out}-shards") / f"{number:05d}"


class Analyst:
    """An actor: loads the model once, and measures the shards that it is given."""

    def __init__(self, job: Job):
        self.job, self.model = job, ll.load(job.model, **job.load)
        self.samples = ll.read_prompts(job.prompts, self.model, limit=job.limit)

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        for number in batch["shard"].tolist():
            out, shard = self.job.folder(number), (number, self.job.shards)
            ll.analyze(self.model, self.samples, out=out, shard=shard, progress=False, **self.job.analyze)
        return batch


def run(job: Job, actors: int, most: int | None = None, gpus: float = 0.0, cpus: float = 1.0) -> ll.Run:
    """Measures all shards with `actors` to `most` actors of the cluster that Ray is connected to, and merges each into `job.out`.

    Raises RunError as soon as a shard cannot be merged: the actors have to compute alike, with one backend.
    """
    import ray

    pool = ray.data.ActorPoolStrategy(min_size=actors, max_size=most or actors)
    shards = ray.data.from_items([{"shard": number} for number in range(1, job.shards + 1)], override_num_blocks=job.shards)
    measured = shards.map_batches(
        Analyst, fn_constructor_kwargs={"job": job}, compute=pool, batch_size=1, num_gpus=gpus or None, num_cpus=cpus
    )
    for row in measured.iter_rows():
        whole = ll.merge(job.out, [job.folder(row["shard"])])
        print(f"{whole.model}: {whole.n_samples} of {whole.manifest.samples.count} samples -> {job.out}", flush=True)
    return whole


@contextmanager
def connected(address: str, cpus: float) -> Iterator[None]:
    """A context with a connection to the cluster at `address`; "local" is a Ray of this process alone, which ends with it."""
    import ray

    own = {"num_cpus": ceil(cpus), "include_dashboard": False, "object_store_memory": 100 << 20, "_node_ip_address": "127.0.0.1"}
    ray.init(address, log_to_driver=False, **(own if address == "local" else {}))
    ray.data.DataContext.get_current().enable_progress_bars = sys.stderr.isatty()
    try:
        yield
    finally:
        ray.shutdown()


def main(words: list[str]) -> None:
    parser = argparse.ArgumentParser(prog="python -m recipes.ray_analysis", description="An analysis shared by actors of a Ray cluster.")
    parser.add_argument("model", help="a hub name, a folder that all machines see, or a bundled model")
    parser.add_argument("prompts", help="a file that all machines see, or a dataset on the hub")
    parser.add_argument("out", help="folder of the whole run; those of the shards lie in OUT-shards")
    parser.add_argument("--address", default="local", help="of the cluster: auto finds it; local starts Ray on this machine alone")
    parser.add_argument("--actors", type=int, default=2, help="actors, each of which holds the model")
    parser.add_argument("--max-actors", type=int, help="most actors, if the cluster grows; by default --actors")
    parser.add_argument("--gpus", type=float, default=0, help="cards of each actor")
    parser.add_argument("--cpus", type=float, default=1, help="CPU cores of each actor")
    parser.add_argument("--shards", type=int, help="parts of the samples, at most one for each; by default four for each of the actors")
    parser.add_argument("--limit", type=int, help="number of prompts, from the start; by default all")
    parser.add_argument("--dtype", default="auto", help="dtype of the weights")
    parser.add_argument("--norm", default="none", choices=["none", "final"], help="what stands in front of the unembedding")
    parser.add_argument("--max-new-tokens", type=int, help="longest response; without it prompts are measured as they stand")
    parser.add_argument("--keep", default="rows", choices=["rows", "means"], help="means keeps some kilobytes of each sample")
    parser.add_argument("--backend", default="auto", help="of the readout; name one if the machines differ: torch-mm runs on all")
    parser.add_argument("--sampling-batch", type=int, help="responses that are sampled at once; by default as many as fit the memory")
    parser.add_argument("--batch-tokens", type=int, default=8192, help="padded tokens in one forward pass that measures")
    given = parser.parse_args(words)

    generate = None if given.max_new_tokens is None else ll.Generation(given.max_new_tokens)
    names = ("norm", "keep", "backend", "sampling_batch", "batch_tokens")
    measured = {name: getattr(given, name) for name in names} | {"generate": generate}
    out = str(Path(given.out).absolute())
    job = Job(given.model, given.prompts, out, given.shards or 4 * given.actors, {"dtype": given.dtype}, measured, given.limit)
    with connected(given.address, given.actors * given.cpus):
        try:
            run(job, given.actors, given.max_actors, given.gpus, given.cpus)
        except Exception as error:  # Ray puts what an actor raised into errors of its own
            told = [line for line in str(error).splitlines() if line.startswith("layerlens.errors.")]
            if not told:
                raise
            sys.exit(told[-1].partition(": ")[2])


if __name__ == "__main__":
    main(sys.argv[1:])
