"""Files and locks."""

from __future__ import annotations

import signal

import pytest

from layerlens.storage.files import defer_interrupt


def test_an_interrupt_waits_for_the_file_in_hand() -> None:
    done = []

    def work() -> None:
        with defer_interrupt(), defer_interrupt():
            signal.raise_signal(signal.SIGINT)
            done.append(True)

    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # tests may have been started where it is ignored
    try:
        with pytest.raises(KeyboardInterrupt):
            work()
        assert done
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    finally:
        signal.signal(signal.SIGINT, before)
