"""The steps of smoke_gpu.py. Each is given the device, "cuda" or "cpu", and returns figures and the bounds that they must keep.

On a CPU the shapes are small, and a step that only a card can take says so.
"""

from __future__ import annotations

import shutil
import signal
import subprocess
import sys
import tempfile
import time
import warnings
from dataclasses import dataclass
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

import layerlens as ll
from layerlens.decode import readout as decode
from layerlens.decode.gpu.launch import kernels_run
from layerlens.evaluate import open_evaluation
from layerlens.storage.bundled import MODELS, bundled_prompts

ROOT = Path(__file__).resolve().parents[1]
SAME = 1e-4
"""Largest difference between a float32 analysis on a card and on a CPU, in nats."""

QWEN3_4B = {
    "vocab_size": 151936, "hidden_size": 2560, "intermediate_size": 9728, "num_hidden_layers": 36, "num_attention_heads": 32,
    "num_key_value_heads": 8, "head_dim": 128, "max_position_embeddings": 40960, "tie_word_embeddings": True,
}  # fmt: skip
LLAMA_8B = {
    "vocab_size": 128256, "hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32, "num_attention_heads": 32,
    "num_key_value_heads": 8, "head_dim": 128, "max_position_embeddings": 131072, "tie_word_embeddings": False,
}  # fmt: skip
SMALL = {
    "vocab_size": 2048, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 4, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 16, "max_position_embeddings": 4096,
}  # fmt: skip
"""Keys of Qwen3Config and LlamaConfig."""


@dataclass
class Outcome:
    """What a step found: whether it held (None: it does not apply here), its figures and their bounds."""

    ok: bool | None
    figure: Any = None
    bound: Any = None
    skipped: str | None = None

    def given(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if name != "ok" and value is not None}


def toolchain(device: str) -> Outcome:
    """What is installed, and whether Triton's kernels run: they need Triton, a C compiler and a card of compute capability 8 or more."""
    figure = {
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "card": torch.cuda.get_device_name() if device == "cuda" else None,
        "card_gib": round(torch.cuda.mem_get_info()[1] / 2**30, 1) if device == "cuda" else None,
        "triton": version("triton") if find_spec("triton") else None,
        "compiler": next((name for name in ("cc", "gcc", "clang") if shutil.which(name)), None),
        "kernels": kernels_run(torch.device(device)),
        "transformers": version("transformers"),
        "layerlens": version("layerlens-policy"),
    }
    recent = tuple(int(part) for part in torch.__version__.split("+")[0].split(".")[:2]) >= (2, 8)
    return Outcome(recent and (device == "cpu" or figure["kernels"]), figure, {"torch": ">=2.8", "kernels": device == "cuda" or None})


def kernels(device: str) -> Outcome:
    """The laws of both GPU backends: pytest's exit code, its last line, and which tests fail; on a CPU of the backend without kernels."""
    chosen = ["-m", "not slow", "-n", "4", "tests/decode/gpu"] if device == "cuda" else ["-n", "0", "tests/decode/gpu/test_workspace.py"]
    command = [sys.executable, "-m", "pytest", "-rf", "-p", "no:cacheprovider", *chosen]
    done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    lines = done.stdout.strip().splitlines() or [""]
    failed = [line.removeprefix("FAILED ").partition(" - ")[0] for line in lines if line.startswith("FAILED ")]
    return Outcome(done.returncode == 0, {"pytest": done.returncode, "tests": lines[-1].strip("= "), "failed": failed}, {"pytest": 0})


def cpu_and_gpu(device: str) -> Outcome:
    """Both bundled models in float32: the largest difference of any number from the CPU's, and whether a second run has the same bits.

    The difference of a number above 1 is a share of it: KL divergences reach a hundred nats here.
    """
    figure: dict[str, Any] = {}
    for name in MODELS:
        lens = ll.load(name, device="cpu", dtype="float32")
        prompts = ll.read_prompts(bundled_prompts(), lens, limit=4)
        texts = ll.analyze(lens, prompts, generate=ll.Generation(32), metrics="entropy", layers=1).data
        samples = [ll.Sample(texts["text_token_id"].values[texts["text_sample"].values == number].tolist()) for number in range(4)]
        runs = [
            ll.analyze(ll.load(name, device=where, dtype="float32"), samples, norm="final", backend=backend).data
            for where, backend in (("cpu", "torch"), (device, "auto"), (device, "auto"))
        ]
        on_cpu, first, second = runs
        worst = {
            key: float((abs(first[key] - on_cpu[key]) / abs(on_cpu[key]).clip(1)).max())
            for key in ("entropy", "logp_next", "kl_to_final", "similarity")
        }
        figure[name] = {"largest_difference": worst, "repeats": first.equals(second)}
    held = all(max(each["largest_difference"].values()) <= SAME and each["repeats"] for each in figure.values())
    return Outcome(held, figure, {"largest_difference": SAME, "repeats": True})


def readout(device: str) -> Outcome:
    """Entropy of 4,096 states: time over that of the bfloat16 product alone, memory and error. On a CPU the error alone."""
    if device == "cuda":
        from benchmarks.gpu import TARGETS, against_cublas

        results = [against_cublas(d_model, rounds=5, seed=0) for d_model in TARGETS["ratio"]]
        figure = {str(each["d_model"]): {**each["methods"]["auto"], "cublas_ms": each["cublas_ms"]} for each in results}
        return Outcome(all(each["target_met"] for each in results), figure, TARGETS)
    generator = torch.Generator().manual_seed(0)
    hidden, weight = (torch.randn(rows, 64, generator=generator) for rows in (256, 4096))
    logp = (hidden.double() @ weight.double().T).log_softmax(-1)
    error = float((decode(hidden, weight).entropy.double() + (logp.exp() * logp).sum(-1)).abs().max())
    return Outcome(error <= SAME, {"largest_error": error}, {"largest_error": SAME})


def analysis_4b(device: str) -> Outcome:
    """One text of 3,000 tokens through a random model of Qwen3-4B's shape: forward passes, times the host waited for the card, speed."""
    return _long_text("qwen3", QWEN3_4B, 3000, device)


def analysis_8b(device: str) -> Outcome:
    """One text of 8,192 tokens through a random model of Llama-8B's shape: as before, and the memory over the weights."""
    return _long_text("llama", LLAMA_8B, 8192, device)


def _long_text(family: str, shape: dict[str, Any], tokens: int, device: str) -> Outcome:
    lens = _random_lens(family, shape, device)
    tokens = tokens if device == "cuda" else 512
    vocabulary = lens.info().vocabulary or 0
    ids = torch.randint(0, vocabulary, (tokens,), generator=torch.Generator().manual_seed(0)).tolist()
    ll.analyze(lens, [ll.Sample(ids[:64])])  # the first call compiles kernels
    forwards = 0

    def count(_: nn.Module, states: tuple[Any, ...]) -> None:
        nonlocal forwards
        forwards += states[0].shape[1] == tokens  # the forecast times passes of a few tokens

    hook = lens.parts.blocks[0].register_forward_pre_hook(count)
    weights = sum(weight.numel() * weight.element_size() for weight in lens.parts.model.parameters())
    start, waits = time.perf_counter(), 0
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
        torch.cuda.set_sync_debug_mode("warn")
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            ll.analyze(lens, [ll.Sample(ids)])
        torch.cuda.set_sync_debug_mode("default")
        waits = sum("synchronizing" in str(each.message) for each in caught)
        torch.cuda.synchronize()
    else:
        ll.analyze(lens, [ll.Sample(ids)])
    seconds = time.perf_counter() - start
    hook.remove()
    figure: dict[str, Any] = {"tokens": tokens, "forwards": forwards, "tokens_per_second": round(tokens / seconds, 1)}
    bound: dict[str, Any] = {"forwards": 2}
    held = forwards <= 2
    if device == "cuda":
        over = (torch.cuda.max_memory_allocated() - weights) / 2**30
        figure |= {"waits": waits, "waits_per_layer": round(waits / lens.n_layers, 1), "gib_over_weights": round(over, 2)}
        room = 0.9 * torch.cuda.mem_get_info()[1] / 2**30 - weights / 2**30
        bound |= {"gib_over_weights": round(room, 1)}
        held = held and over <= room
    return Outcome(held, figure, bound)


def sampling(device: str) -> Outcome:
    """32 responses of 256 tokens from a random model of Qwen3-4B's shape: tokens per second, and whether the same seed repeats them."""
    lens = _random_lens("qwen3", QWEN3_4B, device)
    prompts, tokens = (32, 256) if device == "cuda" else (4, 16)
    samples = [ll.Sample([number + 1] * 16, 16) for number in range(prompts)]
    texts, seconds = [], 0.0
    for _ in range(2):
        start = time.perf_counter()
        run = ll.analyze(lens, samples, metrics="entropy", sites="resid_post", layers=1, generate=ll.Generation(tokens), rows="response")
        seconds = time.perf_counter() - start
        texts.append(run.data["text_token_id"].values)
    figure = {"tokens_per_second": round(prompts * tokens / seconds, 1), "repeats": bool(np.array_equal(*texts))}
    return Outcome(figure["repeats"], figure, {"repeats": True})


def device_map(device: str) -> Outcome:
    """A model with every second block on the CPU's side of a card, or on disk: the largest difference from the resident model."""
    away = "cpu" if device == "cuda" else "disk"
    here = 0 if device == "cuda" else "cpu"
    blocks = {f"model.layers.{number}": away if number % 2 else here for number in range(ll.load("tiny-llama").n_layers)}
    places = {"model.embed_tokens": here, "model.rotary_emb": here, "model.norm": here, "lm_head": here, **blocks}
    spread, resident = ll.load("tiny-llama", device_map=places), ll.load("tiny-llama", device=device)
    sample = [ll.Sample(list(range(3, 40)))]
    one, other = (ll.analyze(lens, sample, norm="final").data for lens in (spread, resident))
    worst = float(abs(one["entropy"] - other["entropy"]).max())
    return Outcome(worst <= SAME, {"largest_difference": worst}, {"largest_difference": SAME})


def processes(device: str) -> Outcome:
    """Four processes (two on a CPU) fill one folder, one of them is killed: complete, and the numbers that one process has."""
    prompts, tokens, count = (64, 64, 4) if device == "cuda" else (12, 16, 2)
    command = [sys.executable, "-m", "layerlens", "analyze", "tiny-qwen3", str(bundled_prompts()), "--device", device, "--top-k", "2"]
    command += ["--limit", str(prompts), "--max-new-tokens", str(tokens)]
    with tempfile.TemporaryDirectory() as folder:
        shared, alone = Path(folder) / "shared", Path(folder) / "alone"
        quiet: dict[str, Any] = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        workers = [subprocess.Popen([*command, "--out", str(shared)], **quiet) for _ in range(count)]
        while not list(shared.glob("**/*.nc")) and any(worker.poll() is None for worker in workers):
            time.sleep(0.05)
        workers[0].send_signal(signal.SIGKILL)
        codes = [worker.wait() for worker in workers]
        subprocess.run([*command, "--out", str(alone)], check=True, **quiet)
        one, other = (ll.open_run(path).data for path in (shared, alone))
        figure = {"exit_codes": sorted(codes[1:]), "samples": len(np.unique(one["sample"])), "same": bool(one.equals(other))}
    bound = {"exit_codes": [0] * (count - 1), "samples": prompts, "same": True}
    return Outcome(figure == bound, figure, bound)


def bupo(device: str) -> Outcome:
    """BuPO of tiny-qwen3, four steps; resumed from the checkpoint after two: the largest difference of a weight at the end.

    None on a CPU. On a card, gradients add up in no fixed order: 1e-3 is about what four steps of 2e-4 can move a weight.
    """
    size = "64" if device == "cuda" else "8"
    command = [sys.executable, "-m", "layerlens", "train", "--config", "tiny-qwen3-cpu", "--internal_layer", "6"]
    command += ["--internal_rollouts", "1", "--max_steps", "4", "--save_steps", "2", "--save_total_limit", "9", "--monitor_every", "0"]
    command += ["--per_device_train_batch_size", size, "--max_completion_length", "24", "--problems_limit", "256"]
    command += ["--use_cpu", str(device == "cpu").lower()]
    with tempfile.TemporaryDirectory() as folder:
        whole, resumed = Path(folder) / "whole", Path(folder) / "resumed"
        for out, more in ((whole, []), (resumed, ["--resume", "true"])):
            if more:
                shutil.copytree(whole / "checkpoint-2", resumed / "checkpoint-2")
            done = subprocess.run([*command, "--output_dir", str(out), *more], capture_output=True, text=True)
            if done.returncode:
                return Outcome(False, {"train": done.stderr.strip().splitlines()[-1][:300]})
        weights = [dict(ll.load(path, device="cpu").parts.model.named_parameters()) for path in (whole, resumed)]
        start = dict(ll.load("tiny-qwen3", device="cpu").parts.model.named_parameters())
        worst, moved = (_largest_gap(weights[0], other) for other in (weights[1], start))
    bound = 0.0 if device == "cpu" else 1e-3
    return Outcome(
        worst <= bound and moved > 0, {"largest_difference": worst, "moved": moved}, {"largest_difference": bound, "moved": "> 0"}
    )


def _largest_gap(one: dict[str, Any], other: dict[str, Any]) -> float:
    return max(float((one[name] - other[name]).abs().max().detach()) for name in one)


def vllm(device: str) -> Outcome:
    """Avg@4 of tiny-qwen3 through vLLM and through transformers, on 200 problems: two draws, at most 8 points apart."""
    if device == "cpu" or find_spec("vllm") is None:
        return Outcome(None, skipped="vLLM is not installed here" if device == "cuda" else "vLLM is run on a card")
    shares = {}
    with tempfile.TemporaryDirectory() as folder:
        for engine in ("transformers", "vllm"):
            command = [sys.executable, "-m", "layerlens", "eval", "tiny-qwen3", "--tasks", str(bundled_prompts()), "--limit", "200"]
            command += ["--answers", "4", "--engine", engine, "--max-new-tokens", "112", "--out", f"{folder}/{engine}"]
            done = subprocess.run(command, capture_output=True, text=True)
            if done.returncode:
                return Outcome(False, {engine: done.stderr.strip().splitlines()[-1][:300]})
            shares[engine] = open_evaluation(next(Path(folder, engine).glob("*/eval.json")).parent).avg().mean
    return Outcome(abs(shares["vllm"] - shares["transformers"]) <= 0.08, shares, {"difference": 0.08})


def _random_lens(family: str, shape: dict[str, Any], device: str) -> ll.LensModel:
    """A random bfloat16 model of a shape, made on its device; a small float32 one on a CPU."""
    from transformers import LlamaConfig, LlamaForCausalLM, Qwen3Config, Qwen3ForCausalLM

    config, kind = {"qwen3": (Qwen3Config, Qwen3ForCausalLM), "llama": (LlamaConfig, LlamaForCausalLM)}[family]
    torch.manual_seed(0)
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.bfloat16 if device == "cuda" else torch.float32)
    with torch.device(device):
        model: nn.Module = kind(config(**(shape if device == "cuda" else SMALL))).eval()
    torch.set_default_dtype(before)
    return ll.LensModel.wrap(model, name=f"random {family}")
