"""The style of figures, and what it leaves as it was."""

from __future__ import annotations

import matplotlib
import pytest

from layerlens.plots.kit.style import STYLE, styled


def test_a_plot_is_drawn_in_the_style_and_leaves_the_callers_settings() -> None:
    before = dict(matplotlib.rcParams)
    assert styled(lambda: matplotlib.rcParams["font.size"])() == STYLE["font.size"]
    assert dict(matplotlib.rcParams) == before


@pytest.mark.parametrize("fails", [False, True])
def test_pyplot_stays_interactive_if_drawing_made_it_so(fails: bool) -> None:
    """As the first figure of a notebook does; every later one was hidden."""

    @styled
    def draw() -> None:
        matplotlib.interactive(True)
        if fails:
            raise ValueError("no such metric")

    try:
        if fails:
            with pytest.raises(ValueError, match="no such metric"):
                draw()
        else:
            draw()
        assert matplotlib.is_interactive()
    finally:
        matplotlib.interactive(False)
