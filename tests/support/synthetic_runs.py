"""Runs with known contents, and tiny random models: what tests measure against."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from layerlens.prompts.sample import Sample
from layerlens.results import Run, SampleResult, join_samples, sample_dataset
from layerlens.storage.manifest import AnalysisConfig, ModelInfo, RunManifest, SampleSet
from layerlens.types import SITES

VOCABULARY = 1000


def make_run(
    ffn_change: Sequence[float],
    *,
    attn_change: Sequence[float] | None = None,
    samples: int = 12,
    tokens: int = 20,
    noise: float = 0.02,
    norm: str = "none",
    name: str = "synthetic",
    start: float = 3.0,
    usable_from: int = 1,
    seed: int = 0,
) -> Run:
    """A Run of len(ffn_change) layers whose mean ΔS of FFN (and attention) are known, with noise between samples and tokens.

    The residual entropy starts at `start` nats and moves by the sum of both changes; agreement, KL and log-probabilities
    follow depth. Layers below `usable_from` predict their text worse than guessing among the VOCABULARY tokens.
    """
    rng = np.random.default_rng(seed)
    ffn = np.asarray(ffn_change, float)
    attn = np.zeros_like(ffn) if attn_change is None else np.asarray(attn_change, float)
    n_layers = len(ffn)
    depth = np.arange(1, n_layers + 1) / n_layers
    after = start + np.cumsum(ffn + attn)
    floor = max(0.0, 0.05 - after.min())
    resid_post = after + floor
    resid_pre = np.concatenate([[start + floor], resid_post[:-1]])
    resid_mid = resid_pre + attn
    mean = np.stack([resid_pre, resid_pre, resid_pre + attn, resid_mid, resid_mid, resid_mid + ffn, resid_post], axis=-1)
    reached = np.stack([depth - 1 / n_layers if site == "resid_pre" else depth for site in SITES], axis=-1)  # resid_pre ends a layer before
    logp = np.where(np.arange(1, n_layers + 1) < usable_from, -math.log(VOCABULARY) - 2.0, -0.3 - 4.0 * (1 - depth))
    words = ["The", " sum", " is", "\n", " 12", "+", " then", " \\boxed{", "7", "}"]
    datasets = []
    attrs = {"norm": norm, "model": name, "rows": "all"}
    for index in range(samples):
        n = tokens + index % 3
        offset = noise * rng.standard_normal((1, n_layers, 1))
        wobble = noise * rng.standard_normal((n, n_layers, len(SITES))) * 3
        entropy = np.abs(mean[None] + offset * np.array([0, 0, 1, 0, 0, 1, 0]) + wobble)
        ids = rng.integers(0, len(words), n)
        sim = np.exp(-np.abs(depth[:, None] - depth[None]) * 2)
        cosine = np.stack([np.linspace(-0.1, 0.4, n_layers), np.linspace(0.3, -0.3, n_layers)], -1) + 0.1 * rng.standard_normal(
            (n, n_layers, 2)
        )
        lengths = np.where(np.arange(n) == 0, 1000.0, 10.0)
        values = {
            "entropy": entropy.astype(np.float32),
            "logp_next": (logp[None, :, None] + 0.3 * wobble).astype(np.float32),
            "final_logp_next": np.full(n, -0.3, np.float32),
            "kl_to_final": (4 * (1 - reached) * (1 + 0.3 * offset)).astype(np.float32).repeat(n, axis=0),
            "agrees": (rng.random(entropy.shape) < reached**2).astype(np.int8),
            "state_norm": (lengths[:, None, None] * np.exp(depth)[None, :, None] * (1 + wobble**2)).astype(np.float32),
            "similarity": sim[None].astype(np.float32),
            "cka": (sim[None] ** 0.5).astype(np.float32),
            "stream_cosine": cosine.astype(np.float32),
        }
        sample = Sample(ids.tolist(), n // 4, f"s{index}", "7")
        text = "".join(words[i] for i in ids)
        labels = range(1, n_layers + 1), SITES, ("attn", "ffn")
        result = SampleResult(index, sample, np.arange(n), [words[i] for i in ids], *labels, text, values)
        datasets.append(sample_dataset(result, attrs))
    manifest = RunManifest(
        model=ModelInfo(name, "0", "float32", architecture=name.split("-")[0], n_layers=n_layers, vocabulary=VOCABULARY),
        config=AnalysisConfig(norm),
        samples=SampleSet(samples, "0"),
    )
    return Run(join_samples(datasets), manifest)
