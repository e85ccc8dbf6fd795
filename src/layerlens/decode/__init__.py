"""Hidden vectors to the numbers of internal policies: the streamed readout that analysis and training share."""

from layerlens.decode.interface import Readout, readout

__all__ = ["Readout", "readout"]
