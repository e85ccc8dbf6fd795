"""The tokenizer of the bundled models: byte-level BPE, so that any text survives a round trip, with every digit a token of its own."""

from __future__ import annotations

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from layerlens.prompts.arithmetic import problems

VOCABULARY = 1024
"""Tokens in the vocabulary, special tokens included."""
MAX_LENGTH = 1024
"""The longest text that a bundled model takes, in tokens."""

_PAD, _BOS, _END = "<|pad|>", "<|bos|>", "<|end|>"
_ROLES = ("<|system|>", "<|user|>", "<|assistant|>")
_PIECES = Regex(r"\p{N}| ?\p{L}+| ?[^\s\p{L}\p{N}]+ ?|\s+")
_CHAT_TEMPLATE = (
    "{{ bos_token }}"
    "{% for message in messages %}{{ '<|' + message['role'] + '|>' + message['content'] + eos_token }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)


def build_tokenizer(n_problems: int = 20_000) -> PreTrainedTokenizerFast:
    """Trains the tokenizer on the first `n_problems` training problems of seed 0; equal numbers give equal tokenizers.

    The chat template writes `<|bos|>`, then each message as `<|role|>content<|end|>`; `<|end|>` is also the end of text.
    """
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(_PIECES, "isolated"), pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=[_PAD, _BOS, _END, *_ROLES],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    texts = (text for problem in problems("train", n_problems, seed=0) for text in (problem.prompt[0]["content"], problem.solution))
    tokenizer.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=_PAD,
        bos_token=_BOS,
        eos_token=_END,
        extra_special_tokens=list(_ROLES),
        chat_template=_CHAT_TEMPLATE,
        model_max_length=MAX_LENGTH,
        padding_side="left",
        clean_up_tokenization_spaces=False,
    )
