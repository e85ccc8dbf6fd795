"""Every metric of docs/definitions.md computed a second time: float64, all logits at once, the model's modules called one by one."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

from layerlens.types import MODULE_SITES


@torch.no_grad()
def plain_states(model: nn.Module, ids: list[int]) -> dict[tuple[int, str], Tensor]:
    """The states at every (layer, site), each [seq, d] in float64, computed by calling the modules of the blocks in turn."""
    net = copy.deepcopy(model).double()
    net.config._attn_implementation = "eager"
    decoder, tokens = net.model, torch.tensor([ids])
    h = decoder.embed_tokens(tokens)
    position = torch.arange(len(ids))[None]
    rope = decoder.rotary_emb(h, position)
    mask = torch.full((len(ids), len(ids)), float("-inf"), dtype=torch.float64).triu(1)[None, None]
    states = {}
    for layer, block in enumerate(decoder.layers, 1):
        attn_in = block.input_layernorm(h)
        attn_out = block.self_attn(hidden_states=attn_in, position_embeddings=rope, attention_mask=mask, position_ids=position)[0]
        mid = h + attn_out
        ffn_in = block.post_attention_layernorm(mid)
        ffn_out = block.mlp(ffn_in)
        sites = {
            "resid_pre": h,
            "attn_in": attn_in,
            "attn_out": attn_out,
            "resid_mid": mid,
            "ffn_in": ffn_in,
            "ffn_out": ffn_out,
            "resid_post": mid + ffn_out,
        }
        states |= {(layer, site): value[0] for site, value in sites.items()}
        h = mid + ffn_out
    return states


def plain_metrics(
    model: nn.Module, ids: list[int], norm: str, reference: int, response_start: int = 0, spread: float | None = None
) -> dict[str, Tensor]:
    """`metrics_of` a Llama-like model; `spread` goes with norm "matched"."""
    net = copy.deepcopy(model).double()

    def logits(h: Tensor, how: str) -> Tensor:
        raw = net.lm_head(net.model.norm(h) if how == "final" else h)
        return raw * (spread / raw.std(-1, unbiased=False, keepdim=True)) if how == "matched" else raw

    def log_policy(h: Tensor, how: str) -> Tensor:
        return logits(h, how).log_softmax(-1)

    return metrics_of(plain_states(model, ids), log_policy, ids, norm, reference, response_start, logits)


@torch.no_grad()
def plain_spread(model: nn.Module, texts: list[list[int]]) -> float:
    """The mean over all rows of all texts of the standard deviation of the final policy's logits."""
    net = copy.deepcopy(model).double()
    return float(torch.cat([net(torch.tensor([ids])).logits[0].std(-1, unbiased=False) for ids in texts]).mean())


@torch.no_grad()
def metrics_of(
    states: dict[tuple[int, str], Tensor],
    log_policy: Callable[[Tensor, str], Tensor],
    ids: list[int],
    norm: str,
    reference: int,
    response_start: int = 0,
    logits: Callable[[Tensor, str], Tensor] | None = None,
) -> dict[str, Tensor]:
    """Every metric of docs/definitions.md, float64; those of the readout have the shape [seq, layer, site].

    Args:
        states: the states [seq, d] at every layer and every site that the model has.
        log_policy: from states and a norm to log-probabilities [seq, vocabulary].
        reference: the layer of `kl_from_layer`.
        response_start: index of the first response token. Similarity and CKA are over the rows that predict one, without position 0.
        logits: from states and a norm to logits without bias and soft cap, for `logit_sd`.
    """
    n_layers = max(layer for layer, _ in states)
    sites = list(dict.fromkeys(site for _, site in states))
    final = log_policy(states[n_layers, "resid_post"], "final")
    anchor = log_policy(states[reference, "resid_post"], norm)
    out: dict[str, list[Tensor]] = {}
    for layer in range(1, n_layers + 1):
        for site in sites:
            logp = log_policy(states[layer, site], norm)
            p = logp.exp()
            following = torch.full((len(ids),), float("nan"), dtype=torch.float64)
            following[:-1] = logp[:-1].gather(1, torch.tensor(ids[1:])[:, None])[:, 0]
            place = (logp[:-1] > logp[:-1].gather(1, torch.tensor(ids[1:])[:, None])).sum(-1) + 1
            middle = (p + final.exp()) / 2
            values = {
                "js_to_final": (_entropy(middle) - (_entropy(p) + _entropy(final.exp())) / 2) / math.log(2),
                "kl_from_final": (final.exp() * (final - logp)).sum(-1),
                "rank_next": torch.cat([place.double(), torch.tensor([math.nan], dtype=torch.float64)]),
                "renyi_2": -p.square().sum(-1).log(),
                "entropy": -(p * logp).sum(-1),
                "logp_next": following,
                "kl_to_final": (p * (logp - final)).sum(-1),
                "kl_from_layer": (anchor.exp() * (anchor - logp)).sum(-1),
                "agrees": (logp.argmax(-1) == final.argmax(-1)).double(),
                "top_probs": p.sort(-1, descending=True).values[:, :5],
                "state_norm": states[layer, site].square().sum(-1).sqrt(),
            }
            if logits is not None:
                values["logit_sd"] = logits(states[layer, site], norm).std(-1, unbiased=False)
            for name, value in values.items():
                out.setdefault(name, []).append(value)
    metrics = {name: torch.stack(v, 1).reshape(len(ids), n_layers, len(sites), *v[0].shape[1:]) for name, v in out.items()}
    metrics["final_logp_next"] = torch.full((len(ids),), float("nan"), dtype=torch.float64)
    metrics["final_logp_next"][:-1] = final[:-1].gather(1, torch.tensor(ids[1:])[:, None])[:, 0]
    entropy = metrics["entropy"]
    modules = [(a, b) for a, b in MODULE_SITES.values() if {a, b} <= {*sites}]
    metrics["entropy_change"] = torch.stack([entropy[:, :, sites.index(b)] - entropy[:, :, sites.index(a)] for a, b in modules], -1)
    cosine = torch.nn.functional.cosine_similarity
    metrics["stream_cosine"] = torch.stack(
        [
            torch.stack(
                [
                    cosine(states[layer, f"{m}_out"], states[layer, s], dim=-1)
                    for m, s in (("attn", "resid_pre"), ("ffn", "resid_mid"))
                    if s in sites
                ],
                -1,
            )
            for layer in range(1, n_layers + 1)
        ],
        1,
    )
    at_end = sites.index("resid_post")
    close, same = metrics["js_to_final"][:, :, at_end] <= 0.5, metrics["agrees"][:, :, at_end] == 1
    metrics["settling_depth"] = torch.tensor([_first(row.tolist()) for row in close])
    metrics["agreement_depth"] = torch.tensor([_first([all(row[layer:]) for layer in range(n_layers)]) for row in same.tolist()])
    deep = [depth >= math.ceil(0.85 * n_layers) for depth in metrics["settling_depth"].tolist()]
    metrics["deep_thinking_ratio"] = torch.tensor(deep, dtype=torch.float64)
    compared = slice(max(1, response_start - 1), len(ids) - 1)
    streams = [states[layer, "resid_post"][compared] for layer in range(1, n_layers + 1)]
    metrics["similarity"] = torch.stack([torch.stack([cosine(a, b, dim=-1).mean() for b in streams]) for a in streams])
    metrics["cka"] = torch.stack([torch.stack([_cka(a, b) for b in streams]) for a in streams])
    return metrics


def _first(reached: list[bool]) -> float:
    """The first layer, from 1."""
    return reached.index(True) + 1.0 if True in reached else math.nan


def _entropy(p: Tensor) -> Tensor:
    return torch.special.entr(p).sum(-1)


def _cka(x: Tensor, y: Tensor) -> Tensor:
    return _hsic(x, y) / (_hsic(x, x) * _hsic(y, y)).sqrt()


def _hsic(x: Tensor, y: Tensor) -> Tensor:
    """The unbiased estimator as Song et al. 2012 print it."""
    n = len(x)
    k, m = x @ x.T, y @ y.T
    k, m = k - k.diag().diag(), m - m.diag().diag()
    ones = torch.ones(n, 1, dtype=x.dtype)
    inner = ones.T @ k @ m @ ones
    outer = (ones.T @ k @ ones) * (ones.T @ m @ ones)
    return ((k @ m).trace() + outer / ((n - 1) * (n - 2)) - 2 / (n - 2) * inner).squeeze() / (n * (n - 3))
