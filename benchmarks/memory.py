"""Peak memory of analysing one long text at every layer and site, on a random model of a real one's exact shape.

    python benchmarks/memory.py --shape qwen3-0.6b --tokens 1024 --threads 1

Prints one JSON object: the memory of the process once the weights are loaded, the peak during the analysis (the kernel's own
high-water mark, Linux only), their difference, and the time.
"""

from __future__ import annotations

import argparse
import gc
import json
import platform
import sys
import time
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, LlamaConfig, Qwen3Config

import layerlens as ll
from layerlens.decode.bench import resident

SMOLLM2 = {
    "vocab_size": 49152,
    "hidden_size": 576,
    "intermediate_size": 1536,
    "num_hidden_layers": 30,
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
    "max_position_embeddings": 8192,
    "tie_word_embeddings": True,
}
SHAPES = {
    "qwen3-0.6b": Qwen3Config(
        vocab_size=151936,
        hidden_size=1024,
        intermediate_size=3072,
        num_hidden_layers=28,
        num_attention_heads=16,
        num_key_value_heads=8,
        head_dim=128,
        max_position_embeddings=40960,
        tie_word_embeddings=True,
        rope_theta=1e6,
    ),
    "smollm2-135m": LlamaConfig(**SMOLLM2),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shape", choices=SHAPES, default="qwen3-0.6b")
    parser.add_argument("--vocabulary", type=int, help="tokens in place of the shape's: memory without the time of the readout")
    parser.add_argument("--tokens", type=int, default=4096)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(args.seed)
    torch.set_default_dtype(getattr(torch, args.dtype))
    config = SHAPES[args.shape]
    config.vocab_size = args.vocabulary or config.vocab_size
    model = AutoModelForCausalLM.from_config(config, attn_implementation="sdpa").eval()
    torch.set_default_dtype(torch.float32)
    lens = ll.LensModel.wrap(model, name=f"random {args.shape}")
    sample = ll.Sample(torch.randint(0, config.vocab_size, (args.tokens,)).tolist())
    gc.collect()
    Path("/proc/self/clear_refs").write_text("5")
    weights = resident("VmRSS")
    before, start = time.process_time(), time.perf_counter()
    run = ll.analyze(lens, [sample])
    seconds = time.perf_counter() - start
    processor = time.process_time() - before
    peak = resident("VmHWM")
    json.dump(
        {
            "shape": args.shape,
            "vocabulary": config.vocab_size,
            "tokens": args.tokens,
            "layers": run.n_layers,
            "sites": len(run.sites),
            "metrics": run.manifest.config.metrics,
            "dtype": args.dtype,
            "threads": args.threads,
            "seed": args.seed,
            "with_weights_mib": round(weights),
            "peak_mib": round(peak),
            "over_weights_mib": round(peak - weights),
            "seconds": round(seconds, 1),
            "processor_seconds": round(processor, 1),
            "tokens_per_second": round(args.tokens / seconds, 2),
            "machine": platform.machine(),
            "torch": torch.__version__,
            "python": platform.python_version(),
        },
        sys.stdout,
        indent=2,
    )
    print()


if __name__ == "__main__":
    main()
