"""What one sample contributes to the spread that norm "matched" scales logits to."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass


@dataclass(frozen=True)
class TextSpread:
    """One text's part of the mean spread of the final policy's logits.

    Attributes:
        total: sum over the rows of the spread of the final policy's logits.
        rows: number of rows.
    """

    total: float
    rows: int

    def to_json(self) -> str:
        return json.dumps(asdict(self)) + "\n"

    @classmethod
    def from_json(cls, text: str) -> TextSpread:
        """The part that `to_json` wrote. Raises ValueError, KeyError or TypeError if the text is no such part."""
        found = json.loads(text)
        return cls(float(found["total"]), int(found["rows"]))
