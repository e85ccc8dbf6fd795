"""The streamed readout, which analysis and training share: hidden vectors to the numbers of their internal policies."""

from layerlens.decode.interface import Readout, readout

__all__ = ["Readout", "readout"]
