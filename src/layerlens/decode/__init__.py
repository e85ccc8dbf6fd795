"""Hidden vectors to internal policies: the streamed readout, and policies to sample from."""

from layerlens.decode.policy import InternalPolicy
from layerlens.decode.streamed import Readout, readout

__all__ = ["InternalPolicy", "Readout", "readout"]
