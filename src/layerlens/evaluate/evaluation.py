"""Problems to an Evaluation: sample answers in batches, check them, keep every one, continue where a killed run stopped."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

from layerlens.analysis.forecast import sampling_forecast
from layerlens.errors import PromptError, RunError, SelectionError
from layerlens.evaluate.engines import Engine, LensEngine
from layerlens.evaluate.folder import AnswerFolder, AnswerMemory
from layerlens.evaluate.result import Answer, Evaluation, Problem, RewardFunction, checked, reward_name
from layerlens.models import FittedLens, Generation, LensModel
from layerlens.progress import OnTokens, Progress, progress_bar
from layerlens.prompts.sample import Sample
from layerlens.storage.launch import n_processes
from layerlens.storage.manifest import EvaluationConfig, EvaluationManifest, SampleSet, SamplingSettings
from layerlens.storage.reported_work import share_reported_work
from layerlens.types import ForwardNorm, Site

SEEDS_PER_PROBLEM = 1 << 20
"""The most answers to one problem. Answer j (from 0) to problem i has the number i * SEEDS_PER_PROBLEM + j, from which its seed is made."""


def evaluate(
    model: LensModel | Engine,
    problems: Iterable[Sample],
    k: int = 16,
    *,
    reward: RewardFunction,
    generation: Generation | None = None,
    out: str | Path | None = None,
    name: str = "problems",
    layer: int | str | None = None,
    site: Site = "resid_post",
    norm: ForwardNorm = "none",
    lens: str | FittedLens = "logit",
    batch_size: int | None = None,
    progress: bool | None = None,
) -> Evaluation:
    """Samples `k` answers to each problem and checks them.

    Args:
        model: from `load` or `LensModel.wrap`, or an engine from `open_engine` (vLLM, say).
        problems: prompts with ground truths, from `read_prompts`. Their responses, if any, are left out.
        reward: TRL's signature, `f(completions, ground_truth) -> scores`; an answer is right if its score is above 0.5. An answer that
            gets no number (None or NaN, or a check in a process of its own that hung or raised) counts as wrong and says why
            (`Answer.unchecked`); the next call checks it again.
        generation: how answers are sampled; by default T = 1, top_p = 1 and 1024 tokens at most.
        out: folder to keep every answer in. A run that was stopped continues there and ends with the same answers; asking for
            more answers later adds to those that are there; another configuration is refused. None keeps answers in memory.
        name: what the problems are called in tables and figures.
        layer: answer from the internal policy of this layer (1...L), at `site`, with `norm` and `lens`, instead of the final policy; or
            from that of layers together, "mix:4,8,12", "mix:4=0.2,12=0.8" or "contrast:12,4".
        batch_size: answers sampled at once; it changes memory and speed, and results by no more than rounding.
        progress: whether to show a progress bar; by default only on a terminal.

    Returns:
        The Evaluation, with the first `k` answers to every problem.

    Raises:
        PromptError: no problems, one without a ground truth, or one that does not fit the model's context.
        SelectionError: an unknown layer, site or norm, or a `k` or `batch_size` below 1.
        RunError: `out` cannot be used.
    """
    engine: Engine = LensEngine(model, layer, site, norm, lens) if isinstance(model, LensModel) else model
    if not isinstance(model, LensModel) and (layer, site, norm, lens) != (None, "resid_post", "none", "logit"):
        raise SelectionError(
            "layer=, site=, norm= and lens= go with a LensModel; an engine is opened with them: open_engine(name, layer=...)"
        )
    if not 1 <= k <= SEEDS_PER_PROBLEM:
        raise SelectionError(f"answers per problem must be in 1..{SEEDS_PER_PROBLEM}, got {k}")
    if batch_size is not None and batch_size < 1:
        raise SelectionError(f"batch_size must be at least 1, got {batch_size}")
    if engine.tokenizer is None:
        raise PromptError("checking answers needs a tokenizer: wrap the model with one")
    evaluation = EvaluationRun(engine, _prompts(problems), reward, generation or Generation(), name)
    engine.check(evaluation.prompts, evaluation.generation)
    store: AnswerMemory | AnswerFolder = AnswerMemory()
    manifest = evaluation.manifest()
    if out is not None:
        store = AnswerFolder.begin(out, manifest, evaluation.problems())
        manifest = store.manifest()
    _check_again(store, evaluation)
    rounds, size = store.plan(k, len(evaluation.prompts)), batch_size or engine.batch_size
    if isinstance(engine, LensEngine) and engine.in_batches:
        evaluation.announce(
            engine.model, sum(len(set(range(k)) - store.read(number).keys()) for number in range(len(evaluation.prompts))), size, progress
        )
    with progress_bar(f"{name}: sampling from {evaluation.model_name}", rounds[-1] * len(evaluation.prompts), "tokens", progress) as report:
        report.at_most()
        _fill(store, evaluation, rounds, size, report)
    return _collect(store, evaluation.problems(), k, replace(manifest, task=name))


def open_evaluation(folder: str | Path, k: int | None = None) -> Evaluation:
    """Reads an evaluation back, its first `k` answers to each problem (by default the largest number that was asked for).

    Raises RunError if the folder holds no evaluation, or if answers are still missing.
    """
    store = AnswerFolder(folder)
    manifest, problems, rounds = store.manifest(), store.problems(), store.rounds()
    if not rounds:
        raise RunError(f"{store.path} holds no answers yet; run the same `layerlens eval` again to finish it")
    return _collect(store, problems, k or rounds[-1], manifest)


@dataclass(frozen=True)
class EvaluationRun:
    """One evaluation: which prompts, who answers, how answers are checked."""

    engine: Engine
    prompts: Sequence[Sample]
    reward: RewardFunction
    generation: Generation
    name: str

    @property
    def model_name(self) -> str:
        return self.engine.model_info().name

    def run(self, wanted: Sequence[tuple[int, int]], on_tokens: OnTokens | None = None) -> list[Answer]:
        """The answers of (problem, answer number) pairs, drawn in one batch and checked."""
        prompts = [self.prompts[problem] for problem, _ in wanted]
        numbers = [problem * SEEDS_PER_PROBLEM + number for problem, number in wanted]
        ids = self.engine.answer(prompts, self.generation, numbers, on_tokens)
        texts = [self.engine.tokenizer.decode(answer, skip_special_tokens=True) for answer in ids]
        ends = self.engine.end_tokens
        answers = [Answer(text, len(answer), bool(answer) and answer[-1] in ends, 0.0) for text, answer in zip(texts, ids, strict=True)]
        return self.checked(answers, [problem for problem, _ in wanted])

    def checked(self, answers: Sequence[Answer], problems: Sequence[int]) -> list[Answer]:
        """The answers, each to the problem of that number, with their scores."""
        return checked(self.reward, answers, [str(self.prompts[problem].ground_truth) for problem in problems])

    def announce(self, model: LensModel, left: int, batch: int, progress: bool | None) -> None:
        """Says what sampling the answers that are left takes, if that is long or may not fit."""
        if left:
            longest = max(len(prompt.token_ids) for prompt in self.prompts)
            size = min(batch, left)
            sampling_forecast(model, longest, self.generation.max_new_tokens, left, size, n_processes()).announce(progress)

    def problems(self) -> list[dict[str, Any]]:
        decode = self.engine.tokenizer.decode
        return [{"id": prompt.id, "ground_truth": prompt.ground_truth, "prompt": decode(list(prompt.token_ids))} for prompt in self.prompts]

    def manifest(self) -> EvaluationManifest:
        """Who answers what; a folder holds one manifest."""
        digest = hashlib.sha256()
        for prompt in self.prompts:
            digest.update(f"{prompt.token_ids} {prompt.id} {prompt.ground_truth}\n".encode())
        return EvaluationManifest(
            model=self.engine.model_info(),
            config=EvaluationConfig(
                **self.engine.policy(), generate=SamplingSettings(**asdict(self.generation)), reward=reward_name(self.reward)
            ),
            problems=SampleSet(len(self.prompts), digest.hexdigest()[:16]),
            task=self.name,
        )


def _prompts(problems: Iterable[Sample]) -> list[Sample]:
    """The prompts alone, each with an id and a ground truth."""
    prompts = []
    for index, problem in enumerate(problems):
        where = str(index) if problem.id is None else problem.id
        if problem.ground_truth is None:
            raise PromptError(f"prompt {where} has no ground truth to check answers against (field ground_truth, answer or reward_model)")
        if problem.response_start == 0:
            raise PromptError(f"prompt {where} is all response; give it response_start=len(token_ids)")
        prompts.append(replace(problem, token_ids=problem.token_ids[: problem.response_start], id=where))
    if not prompts:
        raise PromptError("there are no problems to evaluate on")
    return prompts


@dataclass(frozen=True)
class Piece:
    """Work that one process claims: a group of problems, and blocks of answer numbers; group × block is a batch."""

    name: str
    problems: Sequence[int]
    blocks: Sequence[range]

    @property
    def answers(self) -> range:
        """The answer numbers of all blocks together."""
        return range(self.blocks[0].start, self.blocks[-1].stop)


def _pieces(problems: int, rounds: Sequence[int], batch_size: int) -> Iterator[list[Piece]]:
    """The work of each round; a batch holds at most `batch_size` answers."""
    for start, stop in pairwise([0, *rounds]):
        width = min(stop - start, batch_size)
        size = batch_size // width
        blocks = [range(first, min(first + width, stop)) for first in range(start, stop, width)]
        yield [
            Piece(f"group-{start}-{stop}-{first:06d}", range(first, min(first + size, problems)), blocks)
            for first in range(0, problems, size)
        ]


def _check_again(store: AnswerMemory | AnswerFolder, evaluation: EvaluationRun) -> None:
    """Checks the answers that an earlier call could not check, in one of the processes that fill the folder."""
    with store.claim("unchecked") as ours:
        if not ours:
            return
        unchecked = [
            (problem, number, answer)
            for problem in range(len(evaluation.prompts))
            for number, answer in store.read(problem).items()
            if answer.unchecked is not None
        ]
        if not unchecked:
            return
        again = evaluation.checked([answer for _, _, answer in unchecked], [problem for problem, _, _ in unchecked])
        found: dict[int, dict[int, Answer]] = {}
        for (problem, number, _), answer in zip(unchecked, again, strict=True):
            found.setdefault(problem, {})[number] = answer
        for problem, answers in found.items():
            store.write(problem, answers)


def _fill(store: AnswerMemory | AnswerFolder, evaluation: EvaluationRun, rounds: Sequence[int], batch_size: int, report: Progress) -> None:
    """Works through the pieces of all rounds, shared with all processes that fill the folder."""

    def lacking(piece: Piece) -> int:
        return sum(len(set(piece.answers) - store.read(problem).keys()) for problem in piece.problems)

    def work(piece: Piece) -> None:
        for block in piece.blocks:
            _sample_batch(store, evaluation, piece.problems, block, report)

    for pieces in _pieces(len(evaluation.prompts), rounds, batch_size):
        share_reported_work(
            pieces,
            report,
            claim=lambda piece: store.claim(piece.name),
            size=lambda piece: len(piece.answers) * len(piece.problems),
            lacking=lacking,
            work=work,
        )


def _sample_batch(
    store: AnswerMemory | AnswerFolder, evaluation: EvaluationRun, problems: Sequence[int], block: range, report: Progress
) -> None:
    """Samples the answers numbered `block` to each of the problems, unless all are there.

    The whole batch always runs: its composition is part of what makes a resumed run the same to the last bit.
    """
    missing = {problem: [number for number in block if number not in there] for problem in problems for there in [store.read(problem)]}
    fresh = sum(map(len, missing.values()))
    if not fresh:
        return
    wanted = [(problem, number) for problem in problems for number in block]
    with report.parts(fresh) as on_tokens:
        answers = dict(zip(wanted, evaluation.run(wanted, on_tokens), strict=True))
        for problem in problems:
            if missing[problem]:
                store.write(problem, {number: answers[problem, number] for number in missing[problem]})


def _collect(store: AnswerMemory | AnswerFolder, rows: Sequence[dict[str, Any]], k: int, manifest: EvaluationManifest) -> Evaluation:
    problems = []
    for index, row in enumerate(rows):
        answers = store.read(index)
        if not set(range(k)) <= answers.keys():
            raise RunError(
                f"{store.path}: problem {row['id']} has {len(answers)} of {k} answers; run the same `layerlens eval` again to finish it"
            )
        problems.append(
            Problem(row["id"], row["ground_truth"], tuple(answers[number] for number in range(k)), str(row.get("prompt") or ""))
        )
    return Evaluation(tuple(problems), manifest, store.path)
