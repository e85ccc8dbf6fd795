"""Tokens as text and texts as tokens: what can be told apart stays apart, and nothing is put behind or in front twice."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

import layerlens as ll
from layerlens.plots.kit.labels import token_label
from layerlens.prompts.tokens import plain_ids, token_texts
from tests.support.tiny_models import byte_tokenizer, tiny_model, tiny_tokenizer

BYTES = byte_tokenizer(None)


def sentencepiece_tokenizer(**special: str) -> PreTrainedTokenizerFast:
    """Pieces with ▁ for a blank, single bytes where no piece fits, and a decoder that strips the first blank, as Llama 2's."""
    words = [*special.values(), "▁the", "▁", "c", "a", "t", *(f"<0x{byte:02X}>" for byte in range(256))]
    tokenizer = Tokenizer(models.BPE({word: i for i, word in enumerate(words)}, [], byte_fallback=True))
    tokenizer.add_special_tokens([AddedToken(word, special=True) for word in special.values()])
    tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special)


@given(st.text(min_size=1))
def test_bytes_of_any_text_are_shown_and_told_apart(text: str) -> None:
    ids = BYTES(text)["input_ids"]
    shown = token_texts(BYTES, ids)
    assert "\ufffd" not in shown
    raw = b"".join(
        bytes([int(piece[3:5], 16)]) if len(piece) == 6 and piece.startswith("<0x") else piece.encode("utf-8") for piece in shown
    )
    assert raw == text.encode("utf-8")


def test_tokens_that_end_within_a_character_show_whole_characters_and_bytes() -> None:
    letters = {byte: char for char, byte in _alphabet().items()}
    half = "".join(letters[byte] for byte in " é€".encode()[:-1])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=_byte_level({half: 0, letters[0xAC]: 1}))
    assert tokenizer.decode([0]) == " é\ufffd"
    assert token_texts(tokenizer, [0, 1]) == [" é<0xE2><0x82>", "<0xAC>"]
    assert [token_label(text) for text in token_texts(tokenizer, [0, 1])] == ["␣é<0xE2><0x82>", "<0xAC>"]


def test_replacement_character_that_a_text_holds_is_no_byte() -> None:
    letters = {byte: char for char, byte in _alphabet().items()}
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=_byte_level({"".join(letters[byte] for byte in "\ufffd".encode()): 0}))
    assert token_texts(tokenizer, [0]) == ["\ufffd"]


def test_sentencepiece_blanks_bytes_and_special_tokens_are_shown() -> None:
    tokenizer = sentencepiece_tokenizer(bos_token="<s>", eos_token="</s>")
    ids = [0, *(tokenizer.convert_tokens_to_ids(piece) for piece in ("▁the", "▁", "c", "<0xE2>", "<0x41>")), 1]
    assert tokenizer.decode([ids[1]]) == "the"
    assert token_texts(tokenizer, ids) == ["<s>", " the", " ", "c", "<0xE2>", "A", "</s>"]


def test_ids_beyond_the_tokenizer_and_without_one() -> None:
    n = len(BYTES)
    assert token_texts(BYTES, [n, n + 5, -1, 0]) == [f"<{n}>", f"<{n + 5}>", "<-1>", "<pad>"]
    assert token_texts(None, [7, 8]) == ["7", "8"]


def test_a_padded_vocabulary_is_analysed_sampled_and_shown() -> None:
    """A model with more embeddings than its tokenizer has tokens, no pad and no EOS token."""
    words = {word: i for i, word in enumerate(["the", "cat", "sat"])}
    plain = Tokenizer(models.WordLevel(words, unk_token="the"))
    plain.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=plain)
    assert (tokenizer.pad_token, tokenizer.eos_token) == (None, None)
    model = tiny_model()
    model.config.eos_token_id = model.generation_config.eos_token_id = model.config.pad_token_id = None
    lens = ll.LensModel.wrap(model, tokenizer)
    assert lens.end_tokens == ()
    prompts = ll.read_prompts(["the cat", "the"], lens)
    run = ll.analyze(lens, prompts, metrics="entropy", top_k=2, generate=ll.Generation(6))
    assert run.data["in_response"].values.sum() == 12
    beyond = run.data["token_id"].values >= len(tokenizer)
    assert beyond.sum() >= 8
    expected = [f"<{i}>" if far else list(words)[i] for i, far in zip(run.data["token_id"].values, beyond, strict=True)]
    assert run.data["token_text"].values.tolist() == expected
    top = lens.policy(2).top("the cat", 5)
    assert top["token_text"].tolist() == [f"<{i}>" if i >= 3 else list(words)[i] for i in top["token_id"]]
    assert set(run.to_frame()["token_text"]) == set(expected)
    alone = ll.analyze(lens, prompts[:1], metrics="entropy")
    np.testing.assert_allclose(alone.data["entropy"], run.data["entropy"][:2], atol=1e-5)


@pytest.mark.parametrize("figure", ["svg", "png"])
def test_bytes_and_ids_reach_a_figure_as_they_are_shown(figure: str, tmp_path: Any) -> None:
    lens = ll.LensModel.wrap(_model_for(BYTES), BYTES)
    run = ll.analyze(lens, [ll.Sample([*BYTES("€ a")["input_ids"], len(BYTES) + 3], 2)], metrics="entropy")
    ax = ll.plots.entropy_heatmap(run, sample=0)
    labels = [label.get_text() for label in ax.get_xticklabels()]
    assert labels == ["<0xE2>", "<0x82>", "<0xAC>", "␣", "a", f"<{len(BYTES) + 3}>"]
    ll.plots.save(ax, tmp_path / f"tokens.{figure}")


def test_plain_texts_get_one_bos_and_no_eos() -> None:
    tokenizer = tiny_tokenizer(None)
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 1), ("</s>", 2)]
    )
    assert tokenizer("w1")["input_ids"] == [1, 9, 2]
    assert plain_ids(tokenizer, "w1 w2") == [1, 9, 10]
    assert plain_ids(tokenizer, "<s> w1") == [1, 9]
    assert plain_ids(tokenizer, "w1 </s>")[-1] == 2
    assert ll.read_prompts([{"prompt": "w1", "response": "w2"}], tokenizer)[0] == ll.Sample([1, 9, 10], 2, id="0")


def _alphabet() -> dict[str, int]:
    """The inverse of transformers' own table."""
    from transformers.convert_slow_tokenizer import bytes_to_unicode

    return {char: byte for byte, char in bytes_to_unicode().items()}


def _byte_level(vocabulary: dict[str, int]) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE(vocabulary, []))
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def _model_for(tokenizer: Any) -> Any:
    from tests.support.architectures import build

    return build("llama", {"vocab_size": len(tokenizer) + 8})
