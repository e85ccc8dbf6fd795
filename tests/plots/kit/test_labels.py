from __future__ import annotations

import pytest
from matplotlib.figure import Figure

from layerlens.plots.kit.labels import plain, token_label


@pytest.mark.parametrize(
    ("text", "label"),
    [
        (" the", "␣the"), ("", "∅"), ("a b", "a␣b"), ("\n\n", "⏎⏎"), (" " * 8, "␣×8"), ("$5", r"\$5"), ("\x1b", r"\x1b"),
        ("\ue000", r"\ue000"), ("e\u0301", "e\u0301"), ("antidisestablishmentarianism", "antidis…ianism"), ("<|im_end|>", "<|im_end|>"),
    ],
)  # fmt: skip
def test_token_label(text, label):
    assert token_label(text) == label


def test_token_label_is_cut_between_escapes():
    label = token_label("\ue000" * 2 + "\ue001" * 3)
    assert label == r"\ue000…\ue001"


def test_plain_shows_every_letter_as_it_is():
    figure = Figure()
    for text in ("$x$", r"\$", "a$b$c$", "_^{}", r"\frac{1}{2}", "100%"):
        shown, is_math = figure.text(0, 0, plain(text))._preprocess_math(plain(text))
        assert (shown, bool(is_math)) == (text, False)
