"""What BuPO relies on inside TRL, beyond what TRL promises, and the refusal of a TRL that differs."""

from __future__ import annotations

import importlib.metadata
import inspect

from layerlens.errors import TrainingError

TRL, TRANSFORMERS = "1.16", (5, 17)
METHODS = {
    "_generate_and_score_completions": {"inputs"},
    "_get_per_token_logps_and_entropies": {"model", "input_ids", "attention_mask", "logits_to_keep", "batch_size", "compute_entropy"},
    "_compute_loss": {"model", "inputs"},
    "_tokenize_prompts": {"prompts"},
    "_generate": {"prompts"},
    "get_high_entropy_mask": {"entropies", "mask", "threshold"},
    "_calculate_rewards": {"inputs", "prompts", "completions", "completion_ids_list"},
    "_get_train_sampler": {"dataset"},
    "_save_rng_state": {"output_dir"},
    "_load_rng_state": {"checkpoint"},
    "_save_optimizer_and_scheduler": {"output_dir"},
    "_get_grad_norm": {"model", "grad_norm"},
}
"""Methods of GRPOTrainer, its own or transformers', that BuPO overrides or calls, with the parameters that BuPO passes or reads."""
VLLM = {"sync_weights": set(), "generate": {"prompts", "images", "num_generations"}}
"""Methods of TRL's VLLMGeneration that "auto" and the monitor call."""
VLLM_STATE = ("_dist", "_weight_metadata")
"""Attributes of it that `vllm_answers` sets."""
KERNEL = (
    "ctx", "hidden", "weight", "bias", "targets", "temperature", "chunk_size", "final_logit_softcapping", "logit_scale", "outputs",
)  # fmt: skip
"""Parameters, in this order, of TRL's log-probability kernel, which `use_readout_head` replaces."""


def require_trl_contract() -> None:
    """Raises TrainingError if TRL is missing, transformers too old, or TRL's inner methods not those that BuPO was written against."""
    try:
        version = importlib.metadata.version("trl")
    except importlib.metadata.PackageNotFoundError:
        raise TrainingError("training needs TRL: pip install 'layerlens-policy[train]'") from None
    remedy = "pip install 'trl>=1.16,<1.17'"
    if not version.startswith(f"{TRL}."):
        raise TrainingError(
            f"BuPO needs TRL {TRL}, since it overrides inner methods that change between versions; installed is {version}: {remedy}"
        )
    transformers = importlib.metadata.version("transformers")
    if tuple(int(part) for part in transformers.split(".")[:2]) < TRANSFORMERS:
        least = ".".join(map(str, TRANSFORMERS))
        raise TrainingError(
            f"training needs transformers {least} or newer; installed is {transformers}: pip install 'transformers>={least}'"
        )
    from trl import GRPOTrainer
    from trl.generation.vllm_generation import VLLMGeneration

    for owner, methods in ((GRPOTrainer, METHODS), (VLLMGeneration, VLLM)):
        for name, needed in methods.items():
            missing = needed - inspect.signature(getattr(owner, name, lambda: None)).parameters.keys()
            if missing or not hasattr(owner, name):
                raise TrainingError(
                    f"the installed TRL {version} is not as released: {owner.__name__}.{name} lacks "
                    f"{', '.join(sorted(missing)) or 'everything'}: {remedy}"
                )
    for name in VLLM_STATE:
        if name not in VLLMGeneration.__init__.__code__.co_names:
            raise TrainingError(f"the installed TRL {version} is not as released: VLLMGeneration lacks {name}: {remedy}")
    from trl.trainer import utils

    kernel = getattr(utils, "_ChunkedLogProbFunction", None)
    if kernel is None or tuple(inspect.signature(kernel.forward).parameters) != KERNEL:
        raise TrainingError(f"the installed TRL {version} is not as released: its log-probability kernel differs: {remedy}")
