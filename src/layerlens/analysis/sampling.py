"""Responses before measurements: sampled in groups that fit the memory, kept as token ids, read back when a run continues."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from layerlens.analysis.forecast import sampling_forecast
from layerlens.errors import PromptError, RunError
from layerlens.models import Generation, LensModel, generate_responses
from layerlens.models.memory import LARGEST, SequenceCost, fitting_batch, free_bytes
from layerlens.progress import OnTokens, progress_bar
from layerlens.prompts.sample import Sample, digest_of
from layerlens.results import RunFolder, RunMemory
from layerlens.storage.launch import n_processes
from layerlens.storage.manifest import ModelInfo, SampleSet, SamplingSettings, TextConfig, TextManifest, TextSource
from layerlens.storage.reported_work import share_reported_work
from layerlens.storage.texts import TEXTS, TextFolder, TextMemory, TokenIds

Answer = Callable[[Sequence[Sample], Generation, Sequence[int], OnTokens | None], list[list[int]]]
"""Gives the token ids of a response to each prompt: an engine's `answer`. The numbers make the seeds."""


@dataclass(frozen=True)
class Sampling:
    """What is to be sampled: prompts by sample number, and how.

    Attributes:
        batch: the largest number of prompts that are answered at once; it decides which prompts form a group.
    """

    prompts: Mapping[int, Sample]
    generation: Generation
    info: ModelInfo
    engine: str
    batch: int

    @property
    def groups(self) -> list[list[int]]:
        """Sample numbers, in order."""
        numbers = sorted(self.prompts)
        return [numbers[start : start + self.batch] for start in range(0, len(numbers), self.batch)]

    def manifest(self) -> TextManifest:
        config = TextConfig(self.engine, SamplingSettings(**asdict(self.generation)), self.batch)
        return TextManifest(model=self.info, samples=SampleSet(len(self.prompts), digest_of(self.prompts.values())), config=config)

    def source(self) -> TextSource:
        """What the manifest of the run says of its texts."""
        config = self.manifest().config
        return TextSource(self.info.name, self.info.fingerprint, config.engine, config.generate, config.batch)

    def run(
        self, answer: Answer, store: TextFolder | TextMemory, known: Mapping[int, TokenIds], progress: bool | None
    ) -> dict[int, TokenIds]:
        """The texts of all prompts, sampled now by `answer` if they are neither known nor in the store."""
        groups = self.groups

        def lacking(group: int) -> int:
            return 0 if store.has(group) or all(number in known for number in groups[group]) else len(groups[group])

        def work(group: int) -> None:
            prompts = [self.prompts[number] for number in groups[group]]
            with report.parts(len(prompts)) as on_tokens:
                answers = answer(prompts, self.generation, groups[group], on_tokens)
                texts = zip(groups[group], prompts, answers, strict=True)
                store.write(group, {number: (*prompt.token_ids, *ids) for number, prompt, ids in texts})

        with progress_bar(f"sampling from {self.info.name}", len(self.prompts), "tokens", progress) as report:
            report.at_most()
            share_reported_work(
                range(len(groups)),
                report,
                claim=lambda group: store.claim(f"texts-{group:06d}"),
                size=lambda group: len(groups[group]),
                lacking=lacking,
                work=work,
            )
        texts = {number: ids for group in range(len(groups)) if store.has(group) for number, ids in store.read(group).items()}
        return {number: known.get(number) or self._checked(number, texts) for number in self.prompts}

    def _checked(self, number: int, texts: Mapping[int, TokenIds]) -> TokenIds:
        prompt = self.prompts[number].token_ids
        if tuple(prompt) != texts.get(number, ())[: len(prompt)]:
            raise RunError(f"the text of sample {self.prompts[number].name} does not begin with its prompt: remove the folder {TEXTS}")
        return texts[number]


def waiting_prompts(samples: Sequence[Sample]) -> dict[int, Sample]:
    """The samples that have no response yet, by number."""
    return {number: sample for number, sample in enumerate(samples) if not sample.has_response}


def begin_texts(sampling: Sampling, path: Path, batch: int | None) -> tuple[Sampling, TextFolder]:
    """The folder of the texts, and the sampling with the batch that it was begun with, unless the caller names one.

    Raises RunError if the folder was begun with other prompts, another model or other settings, or with another batch than the named one.
    """
    if batch is None and (begun := TextFolder(path).begun()) is not None:
        sampling = replace(sampling, batch=begun.config.batch)
    try:
        return sampling, TextFolder.create(path, sampling.manifest())
    except RunError:
        # another process may have begun the folder meanwhile, with the batch that fits its memory
        begun = TextFolder(path).begun()
        if batch is not None or begun is None or begun.config.batch == sampling.batch:
            raise
        sampling = replace(sampling, batch=begun.config.batch)
        return sampling, TextFolder.create(path, sampling.manifest())


def answer_with(model: LensModel) -> Answer:
    """The final policy of a loaded model, as what answers."""

    def answer(prompts: Sequence[Sample], generation: Generation, numbers: Sequence[int], on_tokens: OnTokens | None) -> list[list[int]]:
        answered = generate_responses(model, prompts, generation, numbers, on_tokens)
        return [list(sample.token_ids[sample.response_start :]) for sample in answered]

    return answer


def batch_that_fits(model: LensModel, prompts: Sequence[Sample], generation: Generation, processes: int) -> int:
    """The number of responses that the free memory of the model's devices lets each of the `processes` sample at once."""
    cost = SequenceCost.of(model.parts.config, model.parts.dtype.itemsize)
    longest = cost.bytes(max(len(prompt.token_ids) for prompt in prompts), generation.max_new_tokens)
    free = free_bytes(model.parts.model, model.parts.blocks)
    return fitting_batch(longest, free, len(prompts), LARGEST.get(model.device.type, LARGEST["cuda"]), processes)


def with_responses(
    model: LensModel,
    samples: Sequence[Sample],
    generation: Generation,
    store: RunFolder | RunMemory,
    batch: int | None,
    progress: bool | None,
    numbers: range,
) -> tuple[list[Sample], TextSource | None]:
    """The samples, those of the `numbers` each with a response, and where the responses come from; None if every one had one."""
    prompts = {number: prompt for number, prompt in waiting_prompts(samples).items() if number in numbers}
    if not prompts:
        return list(samples), None
    if batch is not None and batch < 1:
        raise PromptError(f"sampling_batch must be 1 or more, got {batch}")
    processes = 1 if store.path is None else n_processes()
    size = batch or batch_that_fits(model, list(prompts.values()), generation, processes)
    sampling = Sampling(prompts, generation, model.info(), "transformers", size)
    texts: TextFolder | TextMemory = TextMemory()
    if store.path is not None:
        sampling, texts = begin_texts(sampling, store.path / TEXTS, batch)
    known = _measured(store, sampling, texts)
    left = [number for place, group in enumerate(sampling.groups) if not texts.has(place) for number in group if number not in known]
    if left:
        longest = max(len(prompts[number].token_ids) for number in left)
        sampling_forecast(model, longest, generation.max_new_tokens, len(left), sampling.batch, processes).announce(progress)
    found = sampling.run(answer_with(model), texts, known, progress)
    answered = [replace(sample, token_ids=found.get(number, sample.token_ids)) for number, sample in enumerate(samples)]
    return answered, sampling.source()


def _measured(store: RunFolder | RunMemory, sampling: Sampling, texts: TextFolder | TextMemory) -> dict[int, TokenIds]:
    """The texts of samples that are measured already, of groups whose texts are not there: those of an earlier version's folder."""
    lacking = [number for place, group in enumerate(sampling.groups) if not texts.has(place) for number in group]
    return {number: tuple(store.read(number)["text_token_id"].values.tolist()) for number in lacking if store.has(number)}
