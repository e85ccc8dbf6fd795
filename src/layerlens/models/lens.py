"""A model to read: a Hugging Face decoder or a TransformerBridge, with its parts found and its identities checked."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, overload

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from layerlens.decode.spread import LogitSpread
from layerlens.decode.unembedding import Unembedding
from layerlens.errors import ModelLoadError, PromptError, SelectionError
from layerlens.models.capture import LayerSite, OnState, StopForward, capture
from layerlens.models.convention import Convention, require_spread
from layerlens.models.fingerprint import fingerprint
from layerlens.models.gguf import find_gguf
from layerlens.models.identities import check_identities, evaluation_mode
from layerlens.models.lenses import FittedLens, resolve_lens
from layerlens.models.load import load_pretrained
from layerlens.models.mixed_policy import MixedPolicy, contrasted, mixture
from layerlens.models.parts import DecoderParts, find_decoder_parts
from layerlens.models.policies import make_policy
from layerlens.models.policy import InternalPolicy
from layerlens.models.quantised import describe_quantisation
from layerlens.models.sampling import checked_end_tokens
from layerlens.models.transformer_lens import build_bridge, is_bridge, library_version, unwrap_bridge
from layerlens.storage.bundled import bundled_model
from layerlens.storage.manifest import ModelInfo
from layerlens.storage.training_folder import TrainedAs, trained_as
from layerlens.types import LIBRARIES, Norm, Site, resolve_layers, resolve_norm, resolve_sites


@dataclass(frozen=True)
class LensModel:
    """A causal language model whose residual stream, attention and FFN outputs can be read at every layer.

    Make one with `load` or `LensModel.wrap`. The wrapped model is never changed: it keeps its mode, device and dtype, and
    every hook is removed before a call returns.
    """

    parts: DecoderParts
    tokenizer: Any
    name: str
    revision: str | None = None
    quantisation: str | None = None
    """How the weights are or were stored if not as numbers of the model's dtype: "GGUF Q4_K_M, dequantised"."""
    bridge: Any = None
    """TransformerLens' `TransformerBridge` that the model runs in, if it does: hooks on the bridge act on everything that is read."""
    trained: TrainedAs | None = None
    """How `layerlens train` made the model, if it was loaded from what that left."""

    @classmethod
    def wrap(cls, model: nn.Module | Any, tokenizer: Any = None, *, name: str | None = None, check: bool = True) -> LensModel:
        """Wraps a model in memory: a Hugging Face causal language model, or TransformerLens' `TransformerBridge`.

        Args:
            model: the model; nothing in it is changed or copied.
            tokenizer: its tokenizer; without one, tokens are shown by their ids and prompts cannot be read. A bridge brings its own,
                which TransformerLens made to put a BOS token in front of plain text, whether or not the model was trained so.
            name: what runs and figures call the model; by default the name it was loaded under, or its class.
            check: whether to refuse a model that breaks the readout identity or additivity.

        Raises:
            ModelLayoutError: the architecture is not supported, or an identity does not hold (with the figures).
        """
        bridge = model if is_bridge(model) else None
        if bridge is not None:
            tokenizer = tokenizer if tokenizer is not None else bridge.tokenizer
            model = unwrap_bridge(bridge)
        quantisation = describe_quantisation(model.config)
        digest = fingerprint(model) if quantisation else None  # bitsandbytes may rewrite weights when they are used
        parts = find_decoder_parts(model)
        name = name or _display_name(getattr(model.config, "name_or_path", None) or type(model).__name__)
        if check:
            check_identities(parts).require(name)
        lens = cls(parts, tokenizer, name, getattr(model.config, "_commit_hash", None), quantisation, bridge)
        if digest is not None:
            vars(lens)["fingerprint"] = digest
        return lens

    @property
    def n_layers(self) -> int:
        return len(self.parts.blocks)

    @property
    def discovered(self) -> bool:
        """Whether the architecture has no row in `LAYOUTS`, so that the model's layout was found by discovery."""
        return self.parts.discovered

    @property
    def sites(self) -> tuple[Site, ...]:
        """The sites that the model has, in the order the data flows; parallel blocks have no resid_mid."""
        return self.parts.sites

    def resolve_sites(self, sites: str | Iterable[str]) -> tuple[Site, ...]:
        """`"all"` that the model has, one site or several, in the order the data flows.

        Raises SelectionError for an unknown site, and for one that the model does not have.
        """
        if sites == "all":
            return self.sites
        wanted = resolve_sites(sites)
        for site in wanted:
            self.parts.require_site(site)
        return wanted

    @property
    def device(self) -> torch.device:
        return self.parts.device

    @cached_property
    def fingerprint(self) -> str:
        """A digest of the weights, taken at the first access and kept."""
        return self.parts.fingerprint()

    def info(self) -> ModelInfo:
        """What a manifest says of the model."""
        return ModelInfo(
            name=self.name,
            fingerprint=self.fingerprint,
            dtype=str(self.parts.dtype).removeprefix("torch."),
            revision=self.revision,
            architecture=self.parts.config.model_type,
            n_layers=self.n_layers,
            d_model=self.parts.unembedding_weight.shape[1],
            vocabulary=self.parts.unembedding_weight.shape[0],
            discovered=self.discovered,
            quantisation=self.quantisation,
            library=None if self.bridge is None else library_version(),
            trained=self.trained,
        )

    @property
    def end_tokens(self) -> tuple[int, ...]:
        """The tokens that end a response: those of the model's generation settings, or the tokenizer's if the model names none.

        Raises ModelLoadError if one of them is not an id of the vocabulary.
        """
        ends = getattr(getattr(self.parts.model, "generation_config", None), "eos_token_id", None)
        if ends is None and self.tokenizer is not None:
            ends = self.tokenizer.eos_token_id
        return checked_end_tokens(ends, self.parts.unembedding_weight.shape[0], self.name)

    def unembedding(self, temperature: float = 1.0) -> Unembedding:
        """How this model turns a vector, normalised as the policy's `norm` says, into logits divided by `temperature`."""
        return self.parts.unembedding(temperature)

    @cached_property
    def logit_spread(self) -> LogitSpread:
        """How the spread of a state's logits over the vocabulary is measured; made at the first access and kept."""
        return LogitSpread.of(self.unembedding())

    def convention(self, norm: Norm = "none", spread: float | None = None, lens: str | FittedLens = "logit") -> Convention:
        """How states become the vectors that are unembedded.

        Args:
            spread: goes with norm "matched" alone, in logits.
            lens: "logit", or a fitted lens, which goes with norm "final" alone: "jacobian:FILE" or "tuned:FOLDER", of which shape, model
                and revision must be this model's; or one from `read_lens`, of which only the shape must.

        Raises SelectionError for an unknown norm or lens, for arguments that do not go together, and for a lens of another model.
        """
        require_spread(resolve_norm(norm), spread)
        fitted = resolve_lens(
            lens, self.parts.unembedding_weight.shape[1], self.n_layers, self.name, self.revision, lambda: self.fingerprint
        )
        if fitted is not None and norm != "final":
            raise SelectionError(f"a {fitted.name} lens carries states to the final norm: pass norm='final' with it, got {norm!r}")
        return Convention(self.parts, norm, spread, self.logit_spread if norm == "matched" else None, fitted)

    def forward(self, ids: Int[Tensor, "batch seq"], places: Sequence[LayerSite], on_state: OnState, cache: Any = None) -> None:
        """Runs the blocks on token ids, calling `on_state(layer, site, states)` at each place, in the order the data flows.

        The forward pass stops after the last place: later blocks and the unembedding do not run. Attention is causal and
        gets no padding mask, so pad on the right. With a `cache` (a `transformers` Cache) the ids continue its sequences.
        """
        waiting = set(places)

        def seen(layer: int, site: Site, states: Float[Tensor, "batch seq d"]) -> None:
            on_state(layer, site, states)
            waiting.discard((layer, site))
            if not waiting:
                raise StopForward

        with self.evaluation_mode(), capture(self.parts, places, seen), suppress(StopForward):
            self.parts.decoder(input_ids=ids.to(self.device), past_key_values=cache, use_cache=cache is not None)

    def require_fits_context(self, token_ids: Sequence[int], new_tokens: int = 0, what: str = "the text") -> None:
        """Raises PromptError if token ids, with `new_tokens` more, exceed the model's context or lie outside its vocabulary.

        `what` names the text in the error.
        """
        context, vocabulary = self.parts.context, self.parts.model.get_input_embeddings().weight.shape[0]
        if context is not None and len(token_ids) + new_tokens > context:
            more = f" and {new_tokens} new tokens" if new_tokens else ""
            raise PromptError(
                f"{what}: {len(token_ids)} tokens{more} exceed the context of {self.name} ({context}); shorten it"
                f"{' or ask for fewer new tokens' if new_tokens else ''}"
            )
        if max(token_ids) >= vocabulary or min(token_ids) < 0:
            raise PromptError(f"{what}: a token id lies outside the vocabulary of {self.name} ({vocabulary} tokens); wrong tokenizer?")

    @overload
    def policy(
        self, layer: int, site: Site = ..., norm: Norm = ..., temperature: float = ..., *, spread: float | None = ...,
        lens: str | FittedLens = ...,
    ) -> InternalPolicy: ...  # fmt: skip
    @overload
    def policy(
        self, layer: None = ..., site: Site = ..., norm: Norm = ..., temperature: float = ..., *, spread: float | None = ...,
        lens: str | FittedLens = ..., layers: Sequence[int] | None = ..., weights: Sequence[float] | None = ...,
        contrast: tuple[int, int] | None = ...,
    ) -> MixedPolicy: ...  # fmt: skip
    def policy(
        self, layer: int | None = None, site: Site = "resid_post", norm: Norm = "none", temperature: float = 1.0, *,
        spread: float | None = None, lens: str | FittedLens = "logit", layers: Sequence[int] | None = None,
        weights: Sequence[float] | None = None, contrast: tuple[int, int] | None = None,
    ) -> InternalPolicy | MixedPolicy:  # fmt: skip
        """The internal policy at a layer (1...L) and site. At `resid_post` of layer L with `norm="final"` it is the final policy.

        Args:
            spread: what norm "matched" scales the logits' spread to, in logits; that of a run is `run.spread`.
            lens: as in `convention`.
            layers, weights: the mixture Σ w_i π_i of these layers' policies instead; equal weights by default.
            contrast: the contrast of a mature and a premature layer's policies instead, as DoLa decodes (`LayerMix.combined`).

        Raises SelectionError for a layer, site or norm that the model lacks, for norm "matched" without a spread, for a lens that does
        not carry this layer and site, and unless exactly one of `layer`, `layers` and `contrast` is given.
        """
        if sum(given is not None for given in (layer, layers, contrast)) != 1 or (weights is not None and layers is None):
            raise SelectionError(
                "a policy is of a layer, of layers= (with weights=, or equal ones), or of contrast=(a, b): give one of them"
            )
        mix = contrasted(contrast) if contrast is not None else mixture([layer] if layers is None else layers, weights)  # type: ignore[list-item]
        for each in mix.layers:
            resolve_layers(each, self.n_layers)
        return make_policy(self, mix, self.resolve_sites(site)[0], norm, temperature, spread, lens, several=layer is None)

    def evaluation_mode(self) -> AbstractContextManager[None]:
        """Inside, the model is in evaluation mode, and torch's attention is not cuDNN's; afterwards all is as before."""
        return evaluation_mode(self.parts.model)


def load(
    name: str | Path,
    *,
    revision: str | None = None,
    dtype: str | torch.dtype = "auto",
    device: str | torch.device | None = None,
    device_map: Any = None,
    quantize: str | None = None,
    trust_remote_code: bool = False,
    backend: str = "transformers",
    check: bool = True,
) -> LensModel:
    """Loads a model and its tokenizer from a hub name, a local folder, a GGUF file or the name of a bundled model.

    A quantised checkpoint is read if the library of its kind is there (docs/models.md). It stays quantised, or is dequantised while
    it is read if its kind can be (FP8, MXFP4, compressed-tensors, GGUF); `LensModel.quantisation` says which.

    Args:
        name: for example "Qwen/Qwen3-4B", "./my-model", "./model.gguf", "tiny-qwen3". A folder with a single GGUF file counts as that
            file; its weights are dequantised, and tokenizer and chat template come from the file (`pip install 'layerlens-policy[gguf]'`).
        revision: branch, tag or commit on the hub.
        dtype: "auto" (as stored; float32 for a GGUF file), "bfloat16", "float16", "float32", "float64", or a torch dtype.
        device: the device for the whole model; or give `device_map` as in transformers ("auto", ...), not both. What `device_map`
            puts on the CPU beside a GPU, or on disk, moves to the device while it runs; the unembedding then stays there.
        quantize: quantises the weights while they are read: "bnb-4bit" (NF4) or "bnb-8bit" (bitsandbytes), "torchao-int8".
        trust_remote_code: whether code that comes with the model may run.
        backend: the library that runs the model, "transformers" or "transformer_lens". The latter puts it into a `TransformerBridge`,
            without folding, which is the `bridge` of the answer (`pip install 'layerlens-policy[tl]'`); its numbers are those of
            the former up to rounding.
        check: whether to refuse a model that breaks the readout identity or additivity.

    Raises:
        ModelLoadError: files missing, damaged or incomplete, no such model, or none that TransformerLens can wrap.
        ModelLayoutError: architecture not supported, or an identity does not hold.
    """
    if backend not in LIBRARIES:
        raise ModelLoadError(f"unknown backend {backend!r}: choose from {', '.join(LIBRARIES)}")
    source = bundled_model(str(name)) or name
    model, tokenizer, quantisation = load_pretrained(
        source,
        revision=revision,
        dtype=dtype,
        device=device,
        device_map=device_map,
        quantize=quantize,
        trust_remote_code=trust_remote_code,
    )
    file = find_gguf(name)
    shown = file.stem if file else _display_name(name)
    if backend == "transformer_lens":
        model = build_bridge(model, shown)
    lens = LensModel.wrap(model, tokenizer, name=shown, check=check)
    vars(lens).update(quantisation=quantisation, trained=trained_as(source))  # in place: a digest that was taken stays
    return lens


def _display_name(name: str | Path) -> str:
    """A hub name unchanged; for a folder, the last part of its path."""
    folder = Path(name).expanduser()
    return folder.resolve().name if folder.is_dir() else str(name)
