"""Dynamic loss scaling for half precision, decided on the host: it is the same on all ranks."""

from __future__ import annotations

from dataclasses import dataclass

FIRST_SCALE = 2.0**16
GROWTH_AFTER = 2000
SMALLEST = 2.0**-10


@dataclass
class LossScale:
    """Halved after an update with infinite gradients, doubled after 2000 good ones in a row.

    With `dynamic` False (float32) it stays 1.
    """

    dynamic: bool
    scale: float = 1.0
    good: int = 0

    @classmethod
    def for_precision(cls, precision: str) -> LossScale:
        """65536 to begin with where products are float16."""
        return cls(False) if precision == "O0" else cls(True, FIRST_SCALE)

    def after(self, finite: bool) -> None:
        """Takes notice of one update."""
        if not self.dynamic:
            return
        self.good = self.good + 1 if finite else 0
        if not finite:
            self.scale /= 2
        elif self.good == GROWTH_AFTER:
            self.scale, self.good = self.scale * 2, 0

    @property
    def exhausted(self) -> bool:
        """Whether even the smallest sensible scale overflows: the loss itself has diverged."""
        return self.dynamic and self.scale < SMALLEST
