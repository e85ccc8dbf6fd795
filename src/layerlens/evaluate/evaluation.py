"""Problems to an Evaluation: sample answers in batches, check them, keep every one, go on where a killed run stopped."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

from layerlens.errors import PromptError, RunError, SelectionError
from layerlens.evaluate.engines import Engine, LensEngine
from layerlens.evaluate.folder import AnswerFolder, MemoryStore
from layerlens.evaluate.result import Answer, Evaluation, Problem, Reward, name_of, score_texts
from layerlens.models import Generation, LensModel
from layerlens.progress import progress_bar
from layerlens.prompts.sample import Sample
from layerlens.storage.manifest import make_manifest
from layerlens.types import Norm, Site

STREAMS = 1 << 20
"""Random streams that each problem has: the most samples it can get. Sample j of problem i always draws from stream i * STREAMS + j."""

WAIT_SECONDS = 0.2
"""How often to look again for problems that another process is working on."""


def evaluate(
    model: LensModel | Engine,
    samples: Iterable[Sample],
    k: int = 16,
    *,
    reward: Reward,
    generation: Generation | None = None,
    out: str | Path | None = None,
    name: str = "problems",
    layer: int | None = None,
    site: Site = "resid_post",
    norm: Norm = "none",
    batch_size: int | None = None,
    progress: bool | None = None,
) -> Evaluation:
    """Samples `k` answers to each problem and checks them.

    Args:
        model: from `load` or `LensModel.wrap`, or an engine from `open_engine` (vLLM, say).
        samples: prompts with ground truths, from `read_prompts`. A response that they hold is left out.
        reward: TRL's signature, `f(completions, ground_truth) -> scores`; an answer is right where its score is above 0.5.
        generation: how answers are sampled; by default T = 1, top_p = 1 and 1024 tokens at most.
        out: folder to keep every answer in. A run that was stopped goes on where it was and ends with the same answers; asking
            for more samples later adds to those that are there; another configuration is refused. None keeps them in memory.
        name: what the problems are called in tables and figures.
        layer: answer from the internal policy of this layer (1...L), at `site` and with `norm`, instead of the whole model.
        batch_size: answers sampled at once; it changes memory and speed, and results by no more than rounding.
        progress: whether to show a progress bar; by default where there is a terminal.

    Returns:
        The Evaluation, with the first `k` answers to every problem.

    Raises:
        PromptError: no problems, one without a ground truth, or one that does not fit the model's context.
        SelectionError: an unknown layer, site or norm, or a `k` or `batch_size` below 1.
        RunError: `out` can not be used.
    """
    engine: Engine = LensEngine(model, layer, site, norm) if isinstance(model, LensModel) else model
    if not isinstance(model, LensModel) and layer is not None:
        raise SelectionError("layer= goes with a LensModel; an engine is opened with its layer: open_engine(name, layer=...)")
    if not 1 <= k <= STREAMS:
        raise SelectionError(f"samples per problem must be in 1..{STREAMS}, got {k}")
    if batch_size is not None and batch_size < 1:
        raise SelectionError(f"batch_size must be at least 1, got {batch_size}")
    if engine.tokenizer is None:
        raise PromptError("checking answers needs a tokenizer: wrap the model with one")
    job = _Job(engine, _prompts(samples), reward, generation or Generation(), name)
    engine.check(job.prompts, job.generation)
    store: MemoryStore | AnswerFolder = MemoryStore()
    manifest = job.manifest()
    if out is not None:
        store = AnswerFolder.create(out, manifest, job.problems())
        manifest = store.manifest()
    with progress_bar(f"{name}: {job.model_name}", k * len(job.prompts), "tokens", progress) as advance:
        _fill(store, job, k, batch_size or engine.batch_size, advance)
    return _collect(store, job.problems(), k, {**manifest, "task": name})


def open_evaluation(folder: str | Path, k: int | None = None) -> Evaluation:
    """Reads an evaluation back, its first `k` answers to each problem (by default as many as were asked for last).

    Raises RunError where the folder holds no evaluation or answers are still missing.
    """
    store = AnswerFolder(folder)
    manifest, problems, rounds = store.manifest(), store.problems(), store.rounds()
    if not rounds:
        raise RunError(f"{store.path} holds no answers yet; run the same `layerlens eval` again to finish it")
    return _collect(store, problems, k or rounds[-1], manifest)


@dataclass(frozen=True)
class _Job:
    """One evaluation: which prompts, who answers, how answers are checked."""

    engine: Engine
    prompts: Sequence[Sample]
    reward: Reward
    generation: Generation
    name: str

    @property
    def model_name(self) -> str:
        return str(self.engine.describe()["name"])

    def run(self, wanted: Sequence[tuple[int, int]]) -> list[Answer]:
        """Answers to (problem, sample) pairs, drawn in one batch and checked."""
        prompts = [self.prompts[problem] for problem, _ in wanted]
        ids = self.engine.answer(prompts, self.generation, [problem * STREAMS + sample for problem, sample in wanted])
        texts = [self.engine.tokenizer.decode(answer, skip_special_tokens=True) for answer in ids]
        scores = score_texts(self.reward, texts, [str(prompt.ground_truth) for prompt in prompts])
        ends = self.engine.end_tokens
        return [
            Answer(text, len(answer), bool(answer) and answer[-1] in ends, score)
            for text, answer, score in zip(texts, ids, scores, strict=True)
        ]

    def problems(self) -> list[dict[str, Any]]:
        decode = self.engine.tokenizer.decode
        return [{"id": prompt.id, "ground_truth": prompt.ground_truth, "prompt": decode(list(prompt.token_ids))} for prompt in self.prompts]

    def manifest(self) -> dict[str, Any]:
        digest = hashlib.sha256()
        for prompt in self.prompts:
            digest.update(f"{prompt.token_ids} {prompt.id} {prompt.ground_truth}\n".encode())
        return make_manifest(
            model=self.engine.describe(),
            config={**self.engine.policy(), "generate": asdict(self.generation), "reward": name_of(self.reward)},
            samples={"count": len(self.prompts), "digest": digest.hexdigest()[:16]},
            task=self.name,
        )


def _prompts(samples: Iterable[Sample]) -> list[Sample]:
    """The prompts alone, each with an id and a ground truth."""
    prompts = []
    for index, sample in enumerate(samples):
        where = str(index) if sample.id is None else sample.id
        if sample.ground_truth is None:
            raise PromptError(f"prompt {where} has no ground truth to check answers against (field ground_truth, answer or reward_model)")
        if sample.response_start == 0:
            raise PromptError(f"prompt {where} is all response; give it response_start=len(token_ids)")
        prompts.append(replace(sample, token_ids=sample.token_ids[: sample.response_start], id=where))
    if not prompts:
        raise PromptError("there are no problems to evaluate on")
    return prompts


def _groups(problems: int, rounds: Sequence[int], batch_size: int) -> Iterator[list[tuple[str, list[int], list[range]]]]:
    """The work of each round: groups of problems that one process takes, each with blocks of samples; group × block is a batch."""
    for start, stop in pairwise([0, *rounds]):
        width = min(stop - start, batch_size)
        size = batch_size // width
        blocks = [range(first, min(first + width, stop)) for first in range(start, stop, width)]
        yield [
            (f"group-{start}-{stop}-{first:06d}", list(range(first, min(first + size, problems))), blocks)
            for first in range(0, problems, size)
        ]


def _fill(store: MemoryStore | AnswerFolder, job: _Job, k: int, batch_size: int, advance: Any) -> None:
    """Works through what nobody has done and nobody else is doing, until every problem has `k` answers."""
    problems = range(len(job.prompts))
    rounds = store.plan(k, len(problems))
    advance(sum(len([sample for sample in store.read(problem) if sample < k]) for problem in problems), 0)
    for groups in _groups(len(problems), rounds, batch_size):
        waiting = groups
        while waiting:
            left = []
            for name, group, blocks in waiting:
                with store.claim(name) as mine:
                    if not mine:
                        left.append((name, group, blocks))
                        continue
                    for block in blocks:
                        _do_batch(store, job, group, block, advance)
            if left and len(left) == len(waiting):
                time.sleep(WAIT_SECONDS)
            waiting = left


def _do_batch(store: MemoryStore | AnswerFolder, job: _Job, group: Sequence[int], block: range, advance: Any) -> None:
    """Samples `block` of each problem in `group`, unless all of it is there."""
    missing = {problem: [sample for sample in block if sample not in there] for problem in group for there in [store.read(problem)]}
    if not any(missing.values()):
        return
    # always the whole batch: its composition is part of what makes a resumed run bit-for-bit the same
    wanted = [(problem, sample) for problem in group for sample in block]
    answers = dict(zip(wanted, job.run(wanted), strict=True))
    for problem in group:
        if missing[problem]:
            store.write(problem, {sample: answers[problem, sample] for sample in missing[problem]})
    fresh = [(problem, sample) for problem in group for sample in missing[problem]]
    advance(len(fresh), sum(answers[pair].tokens for pair in fresh))


def _collect(store: MemoryStore | AnswerFolder, rows: Sequence[dict[str, Any]], k: int, manifest: dict[str, Any]) -> Evaluation:
    problems = []
    for index, row in enumerate(rows):
        answers = store.read(index)
        if not set(range(k)) <= answers.keys():
            raise RunError(
                f"{store.path}: problem {row['id']} has {len(answers)} of {k} answers; run the same `layerlens eval` again to finish it"
            )
        problems.append(Problem(row["id"], row["ground_truth"], tuple(answers[sample] for sample in range(k))))
    return Evaluation(tuple(problems), manifest, store.path)
