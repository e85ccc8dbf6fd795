"""What each option of TRL's GRPOConfig does in an internal phase, as groups of options, and the table of them for docs/training.md."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Group:
    """Options that an internal phase treats alike: what they do there, and the file in tests/train that shows it, or "" if none does."""

    what: str
    options: str
    test: str = ""

    @property
    def names(self) -> list[str]:
        return self.options.split()


OBJECTIVE = Group(
    "right, on the internal policy: loss and gradients are those of GRPO on a model that ends with the layer's block. `beta` needs "
    "`internal_norm: final`",
    "loss_type epsilon epsilon_high delta temperature importance_sampling_level beta use_bias_correction_kl entropy_coef "
    "top_entropy_quantile off_policy_mask_threshold sapo_temperature_pos sapo_temperature_neg vespo_k_pos vespo_k_neg vespo_lambda_pos "
    "vespo_lambda_neg max_completion_length pad_to_multiple_of cast_lm_head_to_fp32 router_aux_loss_coef "
    "vllm_importance_sampling_correction",
    "test_grpo_options.py",
)
ROLLOUT = Group(
    "as in GRPO: prompts, answers, rewards and advantages are the final policy's, bit for bit",
    "num_generations top_p top_k min_p repetition_penalty generation_kwargs cache_implementation chat_template_kwargs scale_rewards "
    "reward_weights multi_objective_aggregation mask_truncated_completions "
    "max_tool_calling_iterations shuffle_dataset seed",
    "test_grpo_options.py",
)
STEPS = Group(
    "as in GRPO: batches, gradients, optimizer, log and checkpoints; at the last layer with the final norm two steps end on GRPO's "
    "weights, bit for bit",
    "learning_rate lr_scheduler_type lr_scheduler_kwargs warmup_steps optim optim_args weight_decay adam_beta1 adam_beta2 adam_epsilon "
    "max_grad_norm gradient_accumulation_steps steps_per_generation generation_batch_size num_iterations per_device_train_batch_size "
    "num_train_epochs max_steps gradient_checkpointing gradient_checkpointing_kwargs activation_checkpointing "
    "activation_checkpointing_kwargs neftune_noise_alpha disable_dropout sync_ref_model ref_model_mixup_alpha ref_model_sync_steps "
    "output_dir save_strategy save_steps save_total_limit save_only_model logging_strategy logging_steps "
    "logging_first_step log_completions num_completions_to_print log_unique_prompts include_num_input_tokens_seen disable_tqdm report_to "
    "run_name use_cpu bf16 dataloader_num_workers dataloader_drop_last dataloader_pin_memory "
    "remove_unused_columns ignore_data_skip dataloader_prefetch_factor dataloader_persistent_workers dataloader_in_order "
    "model_init_kwargs full_determinism torch_empty_cache_steps log_level save_on_each_node debug",
    "test_grpo_options.py",
)
EVALUATION = Group(
    "of the final policy, whichever is trained; `layerlens train` has `layerlens eval` for it and refuses `eval_strategy`",
    "eval_strategy eval_steps eval_delay eval_on_start per_device_eval_batch_size num_generations_eval do_eval load_best_model_at_end "
    "metric_for_best_model greater_is_better",
    "test_grpo_options.py",
)
SAMPLER = Group(
    "right: vLLM's log-probabilities are compared with the final policy's, and the weights act on the internal loss",
    "vllm_importance_sampling_mode vllm_importance_sampling_clip_min vllm_importance_sampling_clip_max vllm_importance_sampling_cap",
    "test_sampler.py",
)
ADAPTIVE = Group(
    "rests in an internal phase, and starts with the final policy",
    "use_adaptive_entropy entropy_target entropy_coef_min entropy_coef_max entropy_coef_delta",
    "test_trainer.py",
)
SHARDED = Group(
    "right with DDP and FSDP2 on gloo, where two processes take the optimizer step of one; FSDP1 is refused",
    "fsdp fsdp_config ddp_backend ddp_bucket_cap_mb ddp_broadcast_buffers log_level_replica log_on_each_node",
    "test_distributed.py",
)
WAITING = Group(
    "as in GRPO: how long processes on GPUs wait for one another; what one of them does alone (`auto`, the monitor) is refused if it "
    "would take longer",
    "ddp_timeout",
    "test_waiting.py",
)
REFUSED = Group(
    "refused in an internal phase (`deepspeed`: ZeRO-3; `ddp_find_unused_parameters`: false; a mode or a backend turns `torch_compile` on)",
    "use_liger_kernel torch_compile torch_compile_backend torch_compile_mode ddp_find_unused_parameters ddp_static_graph deepspeed",
    "test_config.py",
)
IDLE = Group(
    "without effect in an internal phase: they act only beside `use_liger_kernel` and under ZeRO-3, which are refused there",
    "liger_kernel_config ds3_gather_for_generation",
    "test_grpo_options.py",
)
REFUSED_BY_TRL = Group("refused by TRL, in GRPO too", "auto_find_batch_size parallelism_config", "test_grpo_options.py")
NO_EFFECT = Group(
    "without effect, in GRPO too, which has its own loss, sampler and evaluation, or since `--resume true` and the constructor say it",
    "label_smoothing_factor label_names average_tokens_across_devices prediction_loss_only include_for_metrics "
    "eval_do_concat_batches eval_use_gather_object eval_accumulation_steps train_sampling_strategy length_column_name data_seed use_cache "
    "do_train do_predict resume_from_checkpoint local_rank logging_nan_inf_filter",
    "test_grpo_options.py",
)
NOT_RUN = Group(
    "TRL's and transformers' own, which know nothing of the layer: hardware, vLLM, services, and what is loaded. Not run here",
    "trust_remote_code use_vllm vllm_mode vllm_model_impl vllm_enable_sleep_mode vllm_structured_outputs_regex "
    "vllm_server_base_url vllm_server_host vllm_server_port vllm_server_timeout vllm_group_port vllm_gpu_memory_utilization "
    "vllm_max_model_length vllm_tensor_parallel_size fp16 tf32 bf16_full_eval fp16_full_eval optim_target_modules "
    "accelerator_config dataloader_multiprocessing_context project trackio_space_id trackio_bucket_id trackio_static_space_id "
    "enable_jit_checkpoint push_to_hub hub_token hub_private_repo hub_model_id hub_strategy hub_always_push hub_revision "
    "log_completions_hub_repo log_multimodal restore_callback_states_from_checkpoint batch_eval_metrics use_transformers_paged "
    "use_transformers_continuous_batching transformers_continuous_batching_config skip_memory_metrics",
)
GROUPS = (OBJECTIVE, SAMPLER, ROLLOUT, STEPS, EVALUATION, ADAPTIVE, SHARDED, WAITING, REFUSED, IDLE, REFUSED_BY_TRL, NO_EFFECT, NOT_RUN)


def table() -> str:
    """The groups as a table in Markdown."""
    rows = ["| in an internal phase | options | shown by |", "|---|---|---|"]
    for group in GROUPS:
        shown = f"[{group.test}](../tests/train/{group.test})" if group.test else ""
        rows.append(f"| {group.what} | {', '.join(f'`{name}`' for name in sorted(group.names))} | {shown} |")
    return "\n".join(rows)


if __name__ == "__main__":
    print(table())
