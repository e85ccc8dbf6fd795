"""The first file of every folder: what was run on what. Typed here, and read and written here alone.

A manifest says enough to repeat a computation, and its identity (`require_same`) keeps two configurations from filling one
folder. `run.json` is a RunManifest, `texts/texts.json` in its folder a TextManifest, `eval.json` an EvaluationManifest.
"""

from __future__ import annotations

import hashlib
import json
import platform
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeVar

from layerlens.errors import RunError
from layerlens.storage.files import write_text
from layerlens.storage.plain import from_plain
from layerlens.storage.training_folder import TrainedAs
from layerlens.storage.versions import now, versions
from layerlens.types import Keep, LensName, Norm, Rows, SimilarityRows

FORMAT = 2
"""The format that is written. Format 1 (token ids as text, the stopping verdict under "readout") is still read."""
READABLE = (1, FORMAT)


@dataclass(frozen=True)
class ModelInfo:
    """Which model, down to its weights.

    Attributes:
        fingerprint: digest of the weights (`DecoderParts.fingerprint`); empty when they could not be read.
        dtype: of the weights, as in "bfloat16".
        revision: of a hub model, when it is known.
        architecture: `model_type` of its configuration.
        n_layers, d_model, vocabulary: L, d and V.
        discovered: whether its layout was found in its own structure, rather than in the table of architectures.
        quantisation: how the weights were stored if not as they were read, in words.
        library: what ran the model if not transformers alone, with its version.
        trained: how `layerlens train` made the model, if it did and its folder says so.
    """

    name: str
    fingerprint: str
    dtype: str
    revision: str | None = None
    architecture: str | None = None
    n_layers: int | None = None
    d_model: int | None = None
    vocabulary: int | None = None
    discovered: bool = False
    quantisation: str | None = None
    library: str | None = None
    trained: TrainedAs | None = None


@dataclass(frozen=True)
class SampleSet:
    """Which samples, or which problems: how many, and a digest of their token ids, ids and ground truths."""

    count: int
    digest: str


@dataclass(frozen=True)
class SamplingSettings:
    """How responses were sampled; the fields of `layerlens.Generation`."""

    max_new_tokens: int
    temperature: float
    top_p: float
    seed: int


@dataclass(frozen=True)
class AnalysisConfig:
    """The configuration of an analysis as it was resolved; fields as `layerlens.analyze` documents its arguments.

    `generate` is None when responses were given, `backend` when the folder was written before manifests named a backend.
    `absent_sites` are those that the architecture does not have, such as resid_mid in parallel blocks. `similarity_rows` is None in
    folders of before that argument: their similarity is over the rows that were analysed. `spread` is None unless norm "matched" was
    given one. `lens_fingerprint` is a digest of a fitted lens. The default
    `thinking_marks` are those of folders of before runs had segments.
    """

    norm: Norm
    sites: tuple[str, ...] = ()
    layers: tuple[int, ...] = ()
    metrics: tuple[str, ...] = ()
    rows: Rows = "all"
    temperature: float = 1.0
    kl_from_layer: int | None = None
    top_k: int = 0
    tokens_per_sample: int | Literal["auto"] | None = None
    precision: float | None = None
    generate: SamplingSettings | None = None
    backend: str | None = None
    thinking_marks: tuple[str, ...] = ("<think>", "</think>")
    absent_sites: tuple[str, ...] = ()
    similarity_rows: SimilarityRows | None = None
    spread: float | None = None
    lens: LensName = "logit"
    lens_fingerprint: str | None = None


@dataclass(frozen=True)
class TextConfig:
    """How texts were sampled: `engine` ran the model, and `batch` is the largest number of responses that it sampled at once."""

    engine: str
    generate: SamplingSettings
    batch: int


@dataclass(frozen=True)
class TextSource:
    """Where the responses of a run come from, if not from its prompts.

    Attributes:
        model, fingerprint: the model that gave them.
        engine, generate, batch: as in TextConfig; None if the texts were read from a run that does not say.
        run: the folder of the run that they were read from; None if this run sampled them.
    """

    model: str
    fingerprint: str
    engine: str | None = None
    generate: SamplingSettings | None = None
    batch: int | None = None
    run: str | None = None


@dataclass(frozen=True)
class EvaluationConfig:
    """Who answered and how answers were checked; `layer`, `site` and `norm` are None when the final policy answered.

    `lens` names the fitted lens that carried the layer's states to the final one, `lens_fingerprint` is its digest; None without one.
    """

    engine: str
    generate: SamplingSettings
    reward: str
    layer: int | str | None = None
    site: str | None = None
    norm: Norm | None = None
    lens: LensName | None = None
    lens_fingerprint: str | None = None


@dataclass(frozen=True)
class Stopping:
    """Why an analysis with `tokens_per_sample="auto"` stopped where it did.

    Attributes:
        goal: "layer" (the chosen layer is stable) or "precision" (intervals are narrow enough).
        precision: half-width asked for, nats; None for the goal "layer".
        stable_share: share of resamples that must give the chosen layer.
        small_gain: decoding all other rows counts as no help below this share of the widest interval.
        first: response tokens of each sample in the first round.
        ending: which rule ended it: "layer", "precision", "all" (every row is decoded) or "samples" (more rows cannot
            help); None while another round would help.
        tokens_per_sample: response tokens of each sample that were decoded at most.
        rows_decoded, rows: of all samples together: rows that were decoded, and rows that they stand for.
        half_width: of the widest 95% interval among the curves that matter to the goal, nats; None with one sample.
        half_width_of_all: an estimate of that half-width if every row were decoded; None with one sample.
        layer, frequency: the chosen layer and its bootstrap frequency, for the goal "layer".
        reason: the verdict in a sentence.
    """

    goal: str
    precision: float | None
    stable_share: float
    small_gain: float
    first: int
    ending: str | None
    tokens_per_sample: int
    rows_decoded: int
    rows: int
    half_width: float | None
    half_width_of_all: float | None
    layer: int | None
    frequency: float | None
    reason: str


@dataclass(frozen=True, kw_only=True)
class ManifestBase:
    """What every manifest says: the model, and when and with which versions the manifest was made."""

    model: ModelInfo
    format: int = FORMAT
    created: str = field(default_factory=now)
    versions: Mapping[str, str] = field(default_factory=versions)
    python: str = field(default_factory=platform.python_version)


@dataclass(frozen=True, kw_only=True)
class RunManifest(ManifestBase):
    """What an analysis measured, on which model and samples.

    `device` is the card or processor that decoded, `spread` the spread in logits that norm "matched" measured on the run's rows,
    `lens_file` the file or folder that a fitted lens was read from, `texts` where responses come from that did not come with the prompts.
    `identity` is what every sample's file repeats: a digest of configuration, samples and weights, made when the folder is begun
    (`identify`), empty in folders of before there was one. `keep` says whether the folder keeps every row of a sample, or its means alone.
    `processes` names the device and machine of each process that a launcher started, by its number.
    `state_bytes` is the bytes of states of one text that were held to be decoded together, None in folders of before states were held.
    """

    samples: SampleSet
    config: AnalysisConfig
    batch_tokens: int | None = None
    device: str | None = None
    stopping: Stopping | None = None
    spread: float | None = None
    lens_file: str | None = None
    identity: str = ""
    keep: Keep = "rows"
    processes: Mapping[str, str] = field(default_factory=dict)
    texts: TextSource | None = None
    state_bytes: int | None = None


@dataclass(frozen=True, kw_only=True)
class TextManifest(ManifestBase):
    """Which prompts were given responses, by which model and how: `texts.json` in the folder `texts` of a run."""

    samples: SampleSet
    config: TextConfig


@dataclass(frozen=True, kw_only=True)
class EvaluationManifest(ManifestBase):
    """Which problems were answered by which policy; `task` names the problem set."""

    problems: SampleSet
    config: EvaluationConfig
    task: str


AnyManifest = RunManifest | TextManifest | EvaluationManifest
Manifest = TypeVar("Manifest", RunManifest, TextManifest, EvaluationManifest)


def write_manifest(file: Path, manifest: AnyManifest) -> None:
    """Writes a manifest in one step. Raises RunError if the file cannot be written."""
    write_text(file, json.dumps(asdict(manifest), indent=2, ensure_ascii=False, default=lambda number: number.item()) + "\n")


def read_manifest(file: Path, kind: type[Manifest]) -> Manifest:
    """A manifest of any readable format. Raises RunError if the file cannot be read, lacks something or is of another format."""
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise RunError(f"{file} cannot be read ({error})") from error
    if not isinstance(found, dict) or found.get("format") not in READABLE:
        raise RunError(f"{file} is not of format {' or '.join(map(str, READABLE))}, which this version of layerlens reads")
    try:
        if kind is EvaluationManifest and "samples" in found:  # as manifests were before their problems were called so
            found["problems"] = found.pop("samples")
        if found["format"] == 1 and (verdict := found.pop("readout", None)) is not None:
            found["stopping"] = {("stable_share" if name == "sure" else name): value for name, value in verdict.items()}
        manifest: Manifest = from_plain(kind, found)
    except (AttributeError, TypeError, ValueError, KeyError) as error:
        raise RunError(f"{file} is damaged: {error}; restore it, or run the same command into another folder") from error
    return manifest


def require_same(ours: AnyManifest, theirs: AnyManifest, folder: Path) -> None:
    """Raises RunError naming what differs, and how, unless both manifests describe one computation.

    Compared are configuration, samples, weights and dtype, but not the place that the model was loaded from, unless its weights
    have no fingerprint.
    """
    if isinstance(theirs, RunManifest) and theirs.format != FORMAT:  # evaluations are as they were
        raise RunError(f"{folder} was made by an earlier layerlens: it can be read, but not continued; choose another folder")
    a, b = _identity(ours), _identity(theirs)
    different = [key for key in sorted(a.keys() | b.keys()) if a.get(key) != b.get(key)]
    if different:
        shown = "; ".join(f"{key} is {b.get(key)!r} there and {a.get(key)!r} now" for key in different[:3])
        more = f"; and {len(different) - 3} more" if len(different) > 3 else ""
        raise RunError(f"{folder} was begun with another configuration ({shown}{more}); choose another folder, or remove that one")


def identify(manifest: RunManifest) -> str:
    """A digest of all that `require_same` compares, 16 hexadecimal digits: the same for everybody who begins the same computation."""
    compared = json.dumps(_identity(manifest), sort_keys=True, default=lambda number: number.item())
    return hashlib.blake2b(compared.encode(), digest_size=8).hexdigest()


def _identity(manifest: AnyManifest) -> dict[str, Any]:
    model = {"fingerprint": manifest.model.fingerprint, "dtype": manifest.model.dtype, "library": manifest.model.library or ""}
    if not manifest.model.fingerprint:  # weights that nobody could read are told apart by name
        model |= {"name": manifest.model.name, "revision": manifest.model.revision or ""}
    what = {"problems": manifest.problems} if isinstance(manifest, EvaluationManifest) else {"samples": manifest.samples}
    return _flat({"config": asdict(manifest.config), "model": model} | {name: asdict(texts) for name, texts in what.items()})


def _flat(value: Any, prefix: str = "") -> dict[str, Any]:
    if isinstance(value, Mapping):
        return {k: v for key, item in value.items() for k, v in _flat(item, f"{prefix}{key}.").items()}
    return {prefix.removesuffix("."): value}
