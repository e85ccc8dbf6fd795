"""Decoders inside multimodal models: read on text, like the text model with the same weights."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForImageTextToText

import layerlens as ll
from layerlens.models import count_blocks, truncated_at
from tests.support.architectures import ARCHITECTURES, SIZES, perturb
from tests.support.tiny_models import random_ids

VISION = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "patch_size": 4, "image_size": 8}
VISION |= {"depth": 1, "num_heads": 2, "out_hidden_size": 32}
VISION |= {"vision_output_dim": 32, "projector_input_dim": 16, "projector_output_dim": 16}
IMAGE = {"image_token_index": 200, "boi_token_index": 201, "eoi_token_index": 202}
TOKENS = {"image_token_id": 200, "video_token_id": 201, "audio_token_id": 202}

MULTIMODAL: dict[str, tuple[str, dict[str, Any], str]] = {
    "gemma3": ("gemma3_text", {**IMAGE, "mm_tokens_per_image": 4}, "model.language_model"),
    "gemma4": ("gemma4_text", TOKENS, "model.language_model"),
    "llama4": ("llama4_text", IMAGE, "language_model.model"),
    "mistral3": ("mistral", {"image_token_index": 200}, "model.language_model"),
    "qwen3_5": ("qwen3_5_text", {**TOKENS, "vision_start_token_id": 203, "vision_end_token_id": 204}, "model.language_model"),
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", MULTIMODAL)
def test_decoder_inside_a_multimodal_model_is_read_as_the_text_model(name: str) -> None:
    text_type, more, path = MULTIMODAL[name]
    text = {**SIZES, **ARCHITECTURES[text_type].config, "model_type": text_type, "tie_word_embeddings": False}
    if name == "gemma3":
        text["final_logit_softcapping"] = None  # which the multimodal class does not apply
    config = AutoConfig.for_model(name, text_config=text, vision_config=VISION, **more)
    config.tie_word_embeddings = False
    model = perturb(AutoModelForImageTextToText.from_config(config, attn_implementation="eager").eval())
    lens = ll.LensModel.wrap(model)
    assert (lens.parts.decoder_path, lens.discovered) == (path, False)
    assert count_blocks(model) == lens.n_layers == 4

    alone = AutoModelForCausalLM.from_config(config.get_text_config(), attn_implementation="eager").eval()
    head = model.get_output_embeddings()
    lacking = alone.get_submodule("model").load_state_dict(lens.parts.decoder.state_dict())
    alone.lm_head.load_state_dict(head.state_dict())
    assert not lacking.missing_keys
    samples = [ll.Sample([token % 190 for token in random_ids(11)])]
    theirs, ours = ll.analyze(ll.LensModel.wrap(alone), samples), ll.analyze(lens, samples)
    for variable in theirs.data.data_vars:
        np.testing.assert_allclose(ours.data[variable], theirs.data[variable], atol=1e-5, err_msg=str(variable))
    ids = torch.tensor([samples[0].token_ids])
    with torch.no_grad(), truncated_at(model, 2):
        logp = model(input_ids=ids, use_cache=False).logits[0].log_softmax(-1)
    entropy = lens.policy(2).entropy(samples[0].token_ids)
    torch.testing.assert_close(-(logp.exp() * logp).sum(-1), entropy, atol=1e-4, rtol=0)
